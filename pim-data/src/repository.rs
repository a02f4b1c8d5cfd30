//! Reading rows: one call, within the permit's scope, as fresh as asked.

mod history;
mod nearby;

pub use history::{History, Period};

use std::time::Duration;

use pim_core::context::RequestContext;
use pim_core::id::Id;
use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::rbac::{Permit, Read, Scope};
use pim_core::shard::{Bucket, HomeKey, ShardId};
use uuid::Uuid;

use crate::backend::{ColumnError, DbError, Engine, Row, SqlPair, Statement, Value};
use crate::cache::Loaded;
use crate::cluster::{CONTROL, Cluster, Need, Shard};
use crate::consistency::Consistency;
use crate::entity::{Calls, DecodeError, Entity, Table, from_row, select_list};
use crate::scope;
use crate::unit::place_name;

/// Most rows of one page.
pub const PAGE_MAX: u32 = 500;

/// A part of a list: by id, or by whatever else its items are in order of.
#[derive(Clone, Copy, Debug)]
pub struct Page<P = Uuid> {
    /// Begin behind this id or place.
    pub after: Option<P>,
    /// At most this many items, and never more than [`PAGE_MAX`].
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
    /// The schema of the shards, or that of the control database, does not have this entity.
    #[error("{entity} is not an entity of {place}: add it to the schema's builder")]
    UnknownEntity {
        /// What.
        entity: &'static str,
        /// `the shards` or `the control database`.
        place: &'static str,
    },
    /// The map names a shard that could not be opened here.
    #[error("shard {0} is not open in this program: why is in its log, and it is tried again")]
    UnknownShard(ShardId),
    /// The deadline passed.
    #[error("the deadline passed while reading")]
    Deadline,
    /// A row and its entity do not fit.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The database failed.
    #[error(transparent)]
    Database(DbError),
}

impl From<DbError> for ReadError {
    fn from(error: DbError) -> Self {
        if matches!(error, DbError::Late | DbError::Unanswered) { Self::Deadline } else { Self::Database(error) }
    }
}

impl From<ColumnError> for ReadError {
    fn from(error: ColumnError) -> Self {
        Self::Database(error.into())
    }
}

impl ReadError {
    /// What it is, as one word for logs; stable.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Denied { .. } => "read.denied",
            Self::UnknownEntity { .. } => "read.unknown_entity",
            Self::UnknownShard(_) => "read.unknown_shard",
            Self::Deadline => "read.deadline",
            Self::Decode(error) => error.code(),
            Self::Database(error) => error.code(),
        }
    }
}

impl IntoProblem for ReadError {
    fn into_problem(self) -> Problem {
        let code = self.code();
        match self {
            Self::Denied { entity } => Problem::of(problem::FORBIDDEN).with("entity", entity),
            Self::UnknownShard(_) => Problem::of(problem::UNAVAILABLE),
            Self::Deadline => Problem::of(problem::DEADLINE_EXCEEDED),
            Self::Database(error) => error.into_problem(),
            Self::UnknownEntity { .. } | Self::Decode(_) => Problem::of(problem::INTERNAL).because(code),
        }
    }
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
        let (home, id) = (id.into(), id.uuid());
        // Only who has written before needs to be told how new the answer is.
        let has_written = matches!(consistency, Consistency::ReadYourWrites(_));
        let filter = if has_written { Filter::Numbered(id) } else { Filter::Id(id) };
        let rows = self.fetch_routed::<E>(cx, permit, home, consistency, &filter).await?;
        rows.first().map(|row| Ok(from_row::<E>(row, 1)?)).transpose()
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
        let strong = &Consistency::Strong;
        let Found { rows, .. } = self.fetch::<E>(cx, permit, (&shard, None), strong, &Filter::Id(id.uuid())).await?;
        rows.first().map(|row| Ok(from_row::<E>(row, 1)?)).transpose()
    }

    /// Reads one row of the control database with what tells its age, to be held in a
    /// [`ReferenceCache`](crate::cache::ReferenceCache).
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn load_control<E: Entity>(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        id: Id<E::Kind>,
    ) -> Result<Option<Loaded<E>>, ReadError> {
        let shard = self.home_shard(CONTROL)?;
        let (strong, filter) = (&Consistency::Strong, Filter::Numbered(id.uuid()));
        let Found { rows, .. } = self.fetch::<E>(cx, permit, (&shard, None), strong, &filter).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let value = from_row::<E>(row, 1)?;
        let n = if *row.get(0) == Value::Null { 0 } else { row.count(0)? };
        Ok(Some(Loaded { version: value.version(), value, n }))
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
        let filter = Filter::Page { home: Some(home.uuid()), page };
        let rows = self.fetch_routed::<E>(cx, permit, home, consistency, &filter).await?;
        rows.iter().map(|row| Ok(from_row::<E>(row, 1)?)).collect()
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
        self.page_of(cx, permit, CONTROL, page, &Consistency::Strong).await
    }

    /// Where the key lives, and where it lives now when nothing was found, or less than the caller has seen, because its bucket has
    /// moved.
    async fn fetch_routed<E: Entity>(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        home: HomeKey,
        consistency: &Consistency,
        filter: &Filter,
    ) -> Result<Vec<Row>, ReadError> {
        let mut tries = 0;
        // Ends: leaving is believed a bounded number of times.
        loop {
            let route = self.router().route(&home);
            let shard = self.home_shard(route.shard)?;
            cx.went_to(route.shard);
            let found = match self.fetch::<E>(cx, permit, (&shard, Some(route.bucket)), consistency, filter).await {
                // Ends: each time another one has taken its place.
                Err(ReadError::Database(DbError::Closed)) if self.is_replaced(&shard) => continue,
                found => found?,
            };
            let Found { rows, by } = found;
            let is_found = by == By::Replica || (!rows.is_empty() && nearby::is_met_by(consistency, &rows)?);
            if is_found || !self.has_left(route, cx.deadline(), tries).await? {
                return Ok(rows);
            }
            tries += 1;
        }
    }

    /// A page of one shard's rows, whichever home key they belong to.
    pub(crate) async fn page_of<E: Entity>(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        shard: ShardId,
        page: Page,
        consistency: &Consistency,
    ) -> Result<Vec<E>, ReadError> {
        let filter = Filter::Page { home: None, page };
        let found = self.fetch::<E>(cx, permit, (&self.home_shard(shard)?, None), consistency, &filter).await?;
        found.rows.iter().map(|row| Ok(from_row::<E>(row, 1)?)).collect()
    }

    async fn fetch<E: Entity>(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        (shard, bucket): (&Shard, Option<Bucket>),
        consistency: &Consistency,
        filter: &Filter,
    ) -> Result<Found, ReadError> {
        let (calls, control) = (self.schema().calls(E::TABLE), shard.id() == CONTROL);
        if !self.schema().holds(E::TABLE, control) {
            return Err(ReadError::UnknownEntity { entity: E::TABLE.name, place: place_name(control) });
        }
        let most = self.oldest(consistency, bucket);
        let outcome = fetch::<E>(cx, permit, (shard, bucket, calls), (consistency, most), filter).await;
        self.told(cx, shard.id(), outcome)
    }

    /// How old an answer may be. One that is to be of a certain age is not older for having moved, and a page of a whole shard has
    /// the rows of every bucket that this program looks for there.
    fn oldest(&self, consistency: &Consistency, bucket: Option<Bucket>) -> Option<Duration> {
        match consistency {
            Consistency::Bounded(most) => Some(self.mapped_for().map_or(*most, |since| since.min(*most))),
            Consistency::Eventual | Consistency::ReadYourWrites(_) if bucket.is_none() => self.mapped_for(),
            _ => None,
        }
    }

    /// What the primary of a shard answers, whoever may see it: the caller has looked at the permit.
    pub(crate) async fn rows_of(
        &self,
        cx: &RequestContext,
        shard: ShardId,
        select: Statement,
    ) -> Result<Vec<Row>, ReadError> {
        let outcome = query(cx, &self.home_shard(shard)?, select, false).await;
        self.told(cx, shard, outcome)
    }

    /// Counts an answer, and puts into the log what has failed.
    fn told<T>(&self, cx: &RequestContext, shard: ShardId, outcome: Result<T, ReadError>) -> Result<T, ReadError> {
        self.0.settings.signals.read(shard, &outcome);
        if let Err(ReadError::Database(error)) = &outcome {
            self.complain(shard, error, cx);
        }
        outcome
    }

    fn home_shard(&self, id: ShardId) -> Result<Shard, ReadError> {
        self.shard(id).ok_or(ReadError::UnknownShard(id))
    }
}

/// Which rows.
enum Filter {
    /// The one with this id.
    Id(Uuid),
    /// The one with this id, with its key's number.
    Numbered(Uuid),
    /// Those of a home key, or of any, by id.
    Page { home: Option<Uuid>, page: Page },
}

impl Filter {
    const fn is_one(&self) -> bool {
        matches!(self, Self::Id(_) | Self::Numbered(_))
    }

    /// Condition, binds and limit over the base table of the embedded engine.
    fn predicate(&self) -> (&'static str, Vec<Value>, u32) {
        match *self {
            Self::Id(id) | Self::Numbered(id) => ("id = ?", vec![id.into()], 1),
            Self::Page { home: None, page } => ("id > ?", vec![page.begin().into()], page.bound()),
            Self::Page { home: Some(home), page } => {
                ("home_key = ? AND id > ?", vec![home.into(), page.begin().into()], page.bound())
            }
        }
    }
}

impl Page {
    fn begin(&self) -> Uuid {
        self.after.unwrap_or(Uuid::nil())
    }
}

impl<P> Page<P> {
    /// As much from the beginning as one page may have.
    pub const FIRST: Self = Self { after: None, limit: PAGE_MAX };

    /// How many items it has at most.
    pub(crate) fn bound(&self) -> u32 {
        self.limit.clamp(1, PAGE_MAX)
    }
}

/// One statement is one snapshot: the key's n beside a row tells whether this copy is fresh enough.
fn select(table: &Table, engine: Engine, calls: Option<&Calls>, scope: &Scope, filter: &Filter) -> Statement {
    let one = |read: &SqlPair, id: Uuid| Statement::of(read.clone()).bind(scope::setting(scope)).bind(id);
    if let (Engine::Postgres, Some(calls)) = (engine, calls) {
        return match *filter {
            Filter::Id(id) => one(&calls.read, id),
            Filter::Numbered(id) => one(&calls.read_numbered, id),
            Filter::Page { home, page } => {
                let list = Statement::of(calls.list.clone()).bind(scope::setting(scope));
                list.bind(home).bind(page.begin()).bind(page.bound())
            }
        };
    }
    let (reach, reach_binds) = scope::predicate(scope);
    let (condition, binds, limit) = filter.predicate();
    // The limit stands in the text: as a parameter it makes SQLite prepare the statement anew for every run.
    let text = format!(
        "SELECT (SELECT n FROM key_head WHERE key = r.home_key) AS n, {} FROM {}_row r WHERE {condition} AND {reach} \
         ORDER BY id LIMIT {limit}",
        select_list(table),
        table.name,
    );
    Statement::of(SqlPair::generated(text)).bind_all(binds).bind_all(reach_binds)
}

/// Every reading statement of an entity, for both engines.
pub(crate) fn pairs(table: &Table, calls: Option<&Calls>) -> Vec<SqlPair> {
    let page = Page::FIRST;
    let home = Some(Uuid::nil());
    let (id, numbered) = (Filter::Id(Uuid::nil()), Filter::Numbered(Uuid::nil()));
    let filters = [id, numbered, Filter::Page { home: None, page }, Filter::Page { home, page }];
    let both = |make: &dyn Fn(Engine) -> Statement| {
        SqlPair::joined(make(Engine::Postgres).into_pair(), make(Engine::Sqlite).into_pair())
    };
    let of_scope = |scope: Scope| {
        let reads = filters.iter().map(|filter| both(&|engine| select(table, engine, calls, &scope, filter)));
        let past = history::sought()
            .map(|sought| both(&|engine| history::select(table, engine, calls, &scope, (Uuid::nil(), sought))));
        reads.chain(past).collect::<Vec<_>>()
    };
    scope::shapes().into_iter().flat_map(of_scope).collect()
}

/// What one shard answers.
struct Found {
    rows: Vec<Row>,
    by: By,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// It has looked for the bucket as well, if it found nothing: nobody has to be asked whether that has moved.
    Replica,
    Primary,
}

async fn fetch<E: Entity>(
    cx: &RequestContext,
    permit: &Permit<Read>,
    (shard, bucket, calls): (&Shard, Option<Bucket>, Option<&Calls>),
    (consistency, most): (&Consistency, Option<Duration>),
    filter: &Filter,
) -> Result<Found, ReadError> {
    check_resource::<E>(permit)?;
    let select = select(E::TABLE, shard.db().engine(), calls, permit.scope(), filter);
    let one = filter.is_one();
    let read = nearby::NearbyRead { cx, shard, bucket, consistency, most, select: &select, one };
    let _fallen_back = match read.answer().await? {
        nearby::Answer::Rows(rows) => return Ok(Found { rows, by: By::Replica }),
        nearby::Answer::Primary(place) => place,
    };
    Ok(Found { rows: query(cx, shard, select, one).await?, by: By::Primary })
}

/// The primary's answer. A read does nothing, so it may go to whoever is the primary next.
async fn query(cx: &RequestContext, shard: &Shard, select: Statement, one: bool) -> Result<Vec<Row>, ReadError> {
    in_time(cx)?;
    let until = cx.deadline().instant();
    let ask = async || {
        let mut reader = shard.db().read_until(until).await?;
        // Without waiting for the engine to say that there is no second row: that costs another wake-up.
        if one {
            Ok(reader.first(select.clone()).await?.into_iter().collect())
        } else {
            reader.query(select.clone()).await
        }
    };
    shard.ready(until, Need::Read).await?;
    // Ends with the deadline.
    loop {
        match ask().await {
            Ok(rows) => return Ok(rows),
            Err(error) => shard.recover(until, Need::Read, error).await?,
        }
    }
}

pub(crate) fn in_time(cx: &RequestContext) -> Result<(), ReadError> {
    cx.deadline().remaining().map(drop).ok_or(ReadError::Deadline)
}

pub(crate) fn check_resource<E: Entity>(permit: &Permit<Read>) -> Result<(), ReadError> {
    if permit.resource() == E::resource() { Ok(()) } else { Err(ReadError::Denied { entity: E::TABLE.name }) }
}
