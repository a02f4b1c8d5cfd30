//! What a row was: its state as of an instant, and its periods a page at a time.

use pim_core::clock::Timestamp;
use pim_core::context::RequestContext;
use pim_core::id::Id;
use pim_core::rbac::{Permit, Read, Scope};
use serde::Serialize;
use uuid::Uuid;

use super::{PAGE_MAX, Page, ReadError, check_resource, query};
use crate::backend::{DbError, Engine, Row, SqlPair, Statement, Value};
use crate::cluster::{CONTROL, Cluster};
use crate::entity::{Calls, Entity, Table, from_row, select_list};
use crate::scope;
use crate::unit::place_name;

/// Before every period.
const BEGINNING: Timestamp = Timestamp::from_micros(i64::MIN);

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

/// One page of a row's history.
#[derive(Clone, Debug, Serialize)]
pub struct History<E> {
    /// Oldest first.
    pub periods: Vec<Period<E>>,
    /// Behind which beginning there is more; `None` when these are the newest.
    pub next: Option<Timestamp>,
}

/// Which periods.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sought {
    /// The one that was in force.
    At(Timestamp),
    /// A page of them.
    Page(Page<Timestamp>),
}

/// One of each kind.
pub(super) fn sought() -> impl Iterator<Item = Sought> {
    [Sought::At(BEGINNING), Sought::Page(Page::FIRST)].into_iter()
}

impl Cluster {
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
        Ok(self.period_at::<E>(cx, permit, id, at).await?.map(|period| period.row))
    }

    /// The period that an instant is in; `None` when the row was not there, or is out of the permit's scope.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn period_at<E: Entity>(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        id: Id<E::Kind>,
        at: Timestamp,
    ) -> Result<Option<Period<E>>, ReadError> {
        Ok(self.periods::<E>(cx, permit, id, Sought::At(at)).await?.pop())
    }

    /// The periods of a row, oldest first, a page at a time: at most [`PAGE_MAX`], and [`History::next`] tells whether there
    /// are more. A period that begins while somebody goes through the pages comes behind all others, so none is passed over
    /// or shown twice.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn history<E: Entity>(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        id: Id<E::Kind>,
        page: Page<Timestamp>,
    ) -> Result<History<E>, ReadError> {
        let mut periods = self.periods::<E>(cx, permit, id, Sought::Page(page)).await?;
        let bound = page.bound() as usize;
        let is_more = periods.len() > bound;
        periods.truncate(bound);
        let next = periods.last().filter(|_| is_more).map(|period| period.valid_from);
        Ok(History { periods, next })
    }

    async fn periods<E: Entity>(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        id: Id<E::Kind>,
        sought: Sought,
    ) -> Result<Vec<Period<E>>, ReadError> {
        let table = E::TABLE;
        let is_control = self.schema().is_control(table);
        check_resource::<E>(permit)?;
        if !self.schema().holds(table, is_control) {
            return Err(ReadError::UnknownEntity { entity: table.name, place: place_name(is_control) });
        }
        let calls = self.schema().calls(table);
        let mut tries = 0;
        // Ends: leaving is believed a bounded number of times.
        let rows = loop {
            let route = self.router().route(&id);
            let shard = self.home_shard(if is_control { CONTROL } else { route.shard })?;
            let select = select(table, shard.db().engine(), calls, permit.scope(), (id.uuid(), sought));
            let rows = match query(cx, &shard, select, false).await {
                // Ends: each time another one has taken its place.
                Err(ReadError::Database(DbError::Closed)) if self.is_replaced(&shard) => continue,
                rows => rows?,
            };
            if is_control || !rows.is_empty() || !self.has_left(route, cx.deadline(), tries).await? {
                break rows;
            }
            tries += 1;
        };
        rows.iter().map(period).collect()
    }
}

fn period<E: Entity>(row: &Row) -> Result<Period<E>, ReadError> {
    let valid_to = if *row.get(1) == Value::Null { None } else { Some(row.time(1)?) };
    Ok(Period { row: from_row::<E>(row, 2)?, valid_from: row.time(0)?, valid_to })
}

/// Of a page one more than it shows, which tells whether there is more.
pub(super) fn select(
    table: &Table,
    engine: Engine,
    calls: Option<&Calls>,
    scope: &Scope,
    (id, sought): (Uuid, Sought),
) -> Statement {
    let (at, behind, most) = match sought {
        Sought::At(at) => (Some(at), BEGINNING, PAGE_MAX),
        Sought::Page(page) => (None, page.after.unwrap_or(BEGINNING), page.bound() + 1),
    };
    if let (Engine::Postgres, Some(calls)) = (engine, calls) {
        let history = Statement::of(calls.history.clone()).bind(scope::setting(scope));
        return history.bind(id).bind(at).bind(behind).bind(most);
    }
    let (reach, reach_binds) = scope::predicate(scope);
    let condition =
        if at.is_some() { "valid_from <= ? AND (valid_to IS NULL OR valid_to > ?)" } else { "valid_from > ?" };
    let text = format!(
        "SELECT valid_from, valid_to, {} FROM {}_history r WHERE id = ? AND {condition} AND {reach} \
         ORDER BY valid_from LIMIT {most}",
        select_list(table),
        table.name
    );
    let binds = at.map_or_else(|| vec![behind.into()], |at| vec![at.into(), at.into()]);
    Statement::of(SqlPair::generated(text)).bind(id).bind_all(binds).bind_all(reach_binds)
}
