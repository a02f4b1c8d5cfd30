//! Reading rows: one call, within the permit's scope, as fresh as asked.

use pim_core::clock::Timestamp;
use pim_core::context::RequestContext;
use pim_core::id::Id;
use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::rbac::{Permit, Read};
use pim_core::shard::{HomeKey, ShardId};
use serde::Serialize;
use tokio::time::timeout_at;
use uuid::Uuid;

use crate::backend::{ColumnError, DbError, Row, SqlPair, Statement, Value};
use crate::cluster::{CONTROL, Cluster, Shard};
use crate::consistency::Consistency;
use crate::entity::{DecodeError, Entity, from_row, select_list};
use crate::scope;

/// Most rows of one page.
pub const PAGE_MAX: u32 = 500;

/// A part of a list, by id.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Begin behind this id.
    pub after: Option<Uuid>,
    /// At most this many rows, and never more than [`PAGE_MAX`].
    pub limit: u32,
}

/// A read that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The permit speaks of something else.
    #[error("the permit does not speak of {entity}")]
    Denied {
        /// What was to be read.
        entity: &'static str,
    },
    /// The map names a shard that this cluster does not have.
    #[error("shard {0} is not part of this cluster")]
    UnknownShard(ShardId),
    /// The deadline passed.
    #[error("the deadline passed while reading")]
    Deadline,
    /// A row and its entity do not fit.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbError),
}

impl From<ColumnError> for ReadError {
    fn from(error: ColumnError) -> Self {
        Self::Database(error.into())
    }
}

impl IntoProblem for ReadError {
    fn into_problem(self) -> Problem {
        match self {
            Self::Denied { entity } => Problem::of(problem::FORBIDDEN).with("entity", entity),
            Self::UnknownShard(_) => Problem::of(problem::UNAVAILABLE),
            Self::Deadline => Problem::of(problem::DEADLINE_EXCEEDED),
            Self::Database(error) if error.is_retryable() => Problem::of(problem::UNAVAILABLE).retry_after_secs(1),
            Self::Decode(_) | Self::Database(_) => Problem::of(problem::INTERNAL),
        }
    }
}

/// One period of a row's history.
#[derive(Clone, Debug, Serialize)]
pub struct Period<E> {
    /// The row as it was.
    pub row: E,
    /// From when.
    pub valid_from: Timestamp,
    /// Until when; `None` while it is in force.
    pub valid_to: Option<Timestamp>,
}

impl Cluster {
    /// Reads one row by id; `None` when there is none within the permit's scope.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read<E: Entity>(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        id: Id<E::Kind>,
        consistency: &Consistency,
    ) -> Result<Option<E>, ReadError> {
        let shard = self.home_shard(self.router().route(&id).shard)?;
        let rows = fetch::<E>(cx, permit, shard, consistency, &by_id::<E>(id.uuid())).await?;
        rows.first().map(|row| Ok(from_row::<E>(row, 0)?.0)).transpose()
    }

    /// Reads one row of the control database.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_control<E: Entity>(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        id: Id<E::Kind>,
    ) -> Result<Option<E>, ReadError> {
        let shard = self.home_shard(CONTROL)?;
        let rows = fetch::<E>(cx, permit, shard, &Consistency::Strong, &by_id::<E>(id.uuid())).await?;
        rows.first().map(|row| Ok(from_row::<E>(row, 0)?.0)).transpose()
    }

    /// The rows of a home key, by id.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn list<E: Entity>(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        home: impl Into<HomeKey>,
        page: Page,
        consistency: &Consistency,
    ) -> Result<Vec<E>, ReadError> {
        let home = home.into();
        let shard = self.home_shard(self.router().route(&home).shard)?;
        let filter = Filter {
            condition: "home_key = ? AND id > ?",
            binds: vec![home.uuid().into(), after(page)],
            home: home.uuid(),
        };
        let rows = fetch::<E>(cx, permit, shard, consistency, &filter.paged(page)).await?;
        rows.iter().map(|row| Ok(from_row::<E>(row, 0)?.0)).collect()
    }

    /// Rows of the control database, by id.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn list_control<E: Entity>(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        page: Page,
    ) -> Result<Vec<E>, ReadError> {
        let shard = self.home_shard(CONTROL)?;
        let filter = Filter { condition: "id > ?", binds: vec![after(page)], home: Uuid::nil() };
        let rows = fetch::<E>(cx, permit, shard, &Consistency::Strong, &filter.paged(page)).await?;
        rows.iter().map(|row| Ok(from_row::<E>(row, 0)?.0)).collect()
    }

    /// The row as it was at an instant; `None` when it was not there yet, or is out of the permit's scope.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn as_of<E: Entity>(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        id: Id<E::Kind>,
        at: Timestamp,
    ) -> Result<Option<E>, ReadError> {
        let condition = "valid_from <= ? AND (valid_to IS NULL OR valid_to > ?)";
        let periods = self.periods::<E>(cx, permit, id, condition, &[at.into(), at.into()]).await?;
        Ok(periods.into_iter().next_back().map(|period| period.row))
    }

    /// Every period of a row, oldest first, at most [`PAGE_MAX`] of them.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn history<E: Entity>(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        id: Id<E::Kind>,
    ) -> Result<Vec<Period<E>>, ReadError> {
        self.periods::<E>(cx, permit, id, "true", &[]).await
    }

    async fn periods<E: Entity>(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        id: Id<E::Kind>,
        condition: &'static str,
        binds: &[Value],
    ) -> Result<Vec<Period<E>>, ReadError> {
        let table = E::TABLE;
        let is_control = self.schema().is_control(table);
        let shard = self.home_shard(if is_control { CONTROL } else { self.router().route(&id).shard })?;
        check_resource::<E>(permit)?;
        let text = format!(
            "SELECT valid_from, valid_to, {} FROM {}_past WHERE id = ? AND {condition} ORDER BY valid_from LIMIT {PAGE_MAX}",
            select_list(table),
            table.name
        );
        let select = Statement::of(SqlPair::generated(text)).bind(id.uuid()).bind_all(binds.iter().cloned());
        let statements = [scope::set(permit.scope()), select, scope::clear()];
        let mut reader = shard.db().read().await?;
        let answers = within(cx, reader.snapshot(&statements)).await?;
        let period = |row: &Row| {
            let valid_to = if *row.get(1) == Value::Null { None } else { Some(row.time(1)?) };
            Ok(Period { row: from_row::<E>(row, 2)?.0, valid_from: row.time(0)?, valid_to })
        };
        answers[1].iter().map(period).collect()
    }

    fn home_shard(&self, id: ShardId) -> Result<&Shard, ReadError> {
        self.shard(id).ok_or(ReadError::UnknownShard(id))
    }
}

struct Filter {
    condition: &'static str,
    binds: Vec<Value>,
    home: Uuid,
}

impl Filter {
    fn paged(mut self, page: Page) -> Self {
        self.binds.push(Value::from(page.limit.clamp(1, PAGE_MAX)));
        self
    }
}

fn by_id<E: Entity>(id: Uuid) -> Filter {
    Filter { condition: "id = ?", binds: vec![id.into(), Value::Int(1)], home: id }
}

fn after(page: Page) -> Value {
    Value::from(page.after.unwrap_or(Uuid::nil()))
}

async fn fetch<E: Entity>(
    cx: &RequestContext,
    permit: &Permit<Read>,
    shard: &Shard,
    consistency: &Consistency,
    filter: &Filter,
) -> Result<Vec<Row>, ReadError> {
    check_resource::<E>(permit)?;
    let table = E::TABLE;
    let columns = select_list(table);
    let text = format!("SELECT {columns} FROM {} WHERE {} ORDER BY id LIMIT ?", table.name, filter.condition);
    // The key's n of the same snapshot tells whether this copy is fresh enough.
    let head = "SELECT key, n FROM key_head WHERE key = COALESCE((SELECT home_key FROM {}_row WHERE id = ?), ?)";
    let head = Statement::of(SqlPair::generated(head.replace("{}", table.name))).bind(filter.home).bind(filter.home);
    let select = Statement::of(SqlPair::generated(text)).bind_all(filter.binds.iter().cloned());
    let statements = [scope::set(permit.scope()), head, select, scope::clear()];
    if let Some(rows) = from_replica(cx, shard, consistency, &statements, filter.home).await? {
        return Ok(rows);
    }
    let mut reader = shard.db().read().await?;
    let mut answers = within(cx, reader.snapshot(&statements)).await?;
    Ok(std::mem::take(&mut answers[2]))
}

/// The replica's answer, when it may be asked and is fresh enough.
async fn from_replica(
    cx: &RequestContext,
    shard: &Shard,
    consistency: &Consistency,
    statements: &[Statement],
    home: Uuid,
) -> Result<Option<Vec<Row>>, ReadError> {
    let may_be_asked = match consistency {
        Consistency::Strong => false,
        Consistency::Bounded(most) => shard.replica().delay() <= *most,
        Consistency::ReadYourWrites(_) | Consistency::Eventual => true,
    };
    if !may_be_asked {
        return Ok(None);
    }
    let mut answers = within(cx, shard.replica().snapshot(statements)).await?;
    if let Consistency::ReadYourWrites(token) = consistency {
        let (key, n) = match answers[1].first() {
            Some(row) => (row.uuid(0)?, row.count(1)?),
            // Not there yet in this snapshot: only a token that has seen nothing of anybody is met by that.
            None => (home, 0),
        };
        if answers[1].is_empty() && !token.is_empty() || !token.is_met_by(key, n) {
            return Ok(None);
        }
    }
    Ok(Some(std::mem::take(&mut answers[2])))
}

async fn within<T>(cx: &RequestContext, work: impl Future<Output = Result<T, DbError>>) -> Result<T, ReadError> {
    Ok(timeout_at(cx.deadline().instant(), work).await.map_err(|_| ReadError::Deadline)??)
}

fn check_resource<E: Entity>(permit: &Permit<Read>) -> Result<(), ReadError> {
    if permit.resource() == E::resource() { Ok(()) } else { Err(ReadError::Denied { entity: E::TABLE.name }) }
}
