//! Looking records up by request, user or entity.

use std::cmp::Ordering;

use pim_core::clock::Timestamp;
use pim_core::context::RequestContext;
use pim_core::rbac::{Permit, Read, Scope};
use pim_core::shard::ShardId;
use serde::Serialize;
use serde_json::Value as Json;
use uuid::Uuid;

use crate::backend::{Row, SqlPair, Statement, Value};
use crate::cluster::{CONTROL, Cluster};
use crate::fan_out::{FanOut, FanOutError, Gathered};
use crate::repository::{Page, ReadError};

const REQUEST: &str = "request_id";
const USER: &str = "user_id";
const ENTITY: &str = "entity_id";

/// What to look for.
#[derive(Clone, Debug)]
pub enum AuditFilter {
    /// Everything that a request changed.
    Request(Uuid),
    /// Everything that a user changed.
    User(String),
    /// Every change of one row.
    Entity(Uuid),
}

/// One record.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct AuditEntry {
    /// Where it stands; `None` for the control database.
    pub shard: Option<u16>,
    /// Its lane.
    pub lane: u64,
    /// Its number in the lane.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Everything that was recorded.
    pub body: Json,
}

/// Where a record stands among those of all shards: by time first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditPlace {
    /// When.
    pub at: Timestamp,
    /// The shard; `None`, the control database, comes before all others.
    pub shard: Option<u16>,
    /// The lane.
    pub lane: u64,
    /// The number in the lane.
    pub seq: u64,
}

impl AuditPlace {
    /// Before every record.
    pub const START: Self = Self { at: Timestamp::from_micros(i64::MIN), shard: None, lane: 0, seq: 0 };

    /// What the records of a shard have to come behind, in its own order.
    fn within(self, shard: Option<u16>) -> (Timestamp, u64, u64) {
        match shard.cmp(&self.shard) {
            // Of the same instant these come before it, so all of them are past.
            Ordering::Less => (self.at, u64::MAX, u64::MAX),
            Ordering::Equal => (self.at, self.lane, self.seq),
            // And these behind it: no record has the number zero.
            Ordering::Greater => (self.at, 0, 0),
        }
    }
}

impl AuditEntry {
    /// Where it stands among all.
    #[must_use]
    pub const fn place(&self) -> AuditPlace {
        AuditPlace { at: self.at, shard: self.shard, lane: self.lane, seq: self.seq }
    }
}

impl Cluster {
    /// Records that match, oldest first, a page at a time. Looks on every shard: the trail of a request or a user is not bound
    /// to one key, and that of a row stays where it was written when its bucket moves. The permit must reach every row.
    ///
    /// A record that is there from the first page to the last is shown exactly once, whatever is written meanwhile; one that
    /// is written meanwhile is shown when its place is behind the page. As with
    /// [`list_across`](Cluster::list_across), a page may have fewer records than its limit and yet not be the last, and
    /// [`Next::Again`](crate::fan_out::Next::Again) says that it is not whole.
    ///
    /// # Errors
    /// [`FanOutError`] when the permit's scope is narrower, a shard of the newest map is not open here, or there are more shards
    /// than the reason allows; a shard that fails is told in [`Gathered::failed`].
    pub async fn audit(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        fan_out: FanOut,
        filter: &AuditFilter,
        page: Page<AuditPlace>,
    ) -> Result<Gathered<AuditEntry, AuditPlace>, FanOutError> {
        let (reason, cx) = (fan_out.reason(), &fan_out.hurry(cx));
        if *permit.scope() != Scope::All {
            return Err(FanOutError::Narrow { reason });
        }
        let whole = self.is_whole_until(cx.deadline().instant()).await;
        whole.map_err(|error| FanOutError::NotWhole { reason, error })?;
        let version = self.map().version();
        let places: Vec<_> = self.sources().collect();
        fan_out.admit(places.iter().filter(|place| **place != CONTROL).count())?;
        let shown = fan_out.ask(places, |shard| self.records_of(cx, shard, filter, page)).await;
        let gathered = shown.page(page.bound() as usize, AuditEntry::place, |_, _| true);
        Ok(self.unless_remapped(cx, version, gathered).await)
    }

    /// A page of one shard's records.
    async fn records_of(
        &self,
        cx: &RequestContext,
        shard: ShardId,
        filter: &AuditFilter,
        page: Page<AuditPlace>,
    ) -> Result<Vec<AuditEntry>, ReadError> {
        let (column, value) = match filter {
            AuditFilter::Request(request) => (REQUEST, Value::from(*request)),
            AuditFilter::User(user) => (USER, Value::from(user.as_str())),
            AuditFilter::Entity(entity) => (ENTITY, Value::from(*entity)),
        };
        let number = (shard != CONTROL).then_some(shard.0);
        let (at, lane, seq) = page.after.unwrap_or(AuditPlace::START).within(number);
        let select = Statement::of(records_by(column)).bind(value).bind(at).bind(lane).bind(seq).bind(page.bound());
        self.rows_of(cx, shard, select).await?.iter().map(|row| entry(number, row)).collect()
    }
}

fn entry(shard: Option<u16>, row: &Row) -> Result<AuditEntry, ReadError> {
    Ok(AuditEntry {
        shard,
        lane: row.count(0)?,
        seq: row.count(1)?,
        at: row.time(2)?,
        body: serde_json::from_str(row.text(3)?).unwrap_or(Json::Null),
    })
}

fn records_by(column: &'static str) -> SqlPair {
    SqlPair::generated(format!(
        "SELECT lane, seq, at, body FROM audit WHERE {column} = ? AND (at, lane, seq) > (?, ?, ?) \
         ORDER BY at, lane, seq LIMIT ?"
    ))
}

/// Every statement of this room.
pub(super) fn pairs() -> [SqlPair; 3] {
    [REQUEST, USER, ENTITY].map(records_by)
}
