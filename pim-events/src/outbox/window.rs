//! Windows between snapshots: on a server many write at once, and who took a lower number may commit later.
//!
//! A window is what one snapshot sees and the one before it does not. It is complete whatever the order of commits, and a
//! transaction that stays open holds back nothing but its own events. Lanes are leased one by one; those that stand at the
//! same snapshot are read together.
//!
//! A snapshot is one of an era: as long as the server gives out no transaction id twice, which it does after a crash and as a
//! promoted standby (`1031_outbox_era.sql`). In another era what is remembered here is neither compared nor written; what is
//! written is safe there, because the transaction that wrote it had an id above all that it names.

use std::collections::BTreeMap;
use std::time::Duration;

use pim_data::backend::{Db, DbError, Row, SqlPair, Statement, Value};
use serde_json::json;
use uuid::Uuid;

pub(super) const LEASE: SqlPair = SqlPair::postgres(
    "SELECT share, lane, epoch, low, high, last_seq, era FROM pim_outbox_lease(?, ?, ?), pim_outbox_era() era",
);
/// What a relay that holds nothing has leased before: it could not give that back, or was never told that it has it. What it sent
/// then and comes late is of an earlier epoch.
pub(super) const OWN: SqlPair = SqlPair::postgres(
    "UPDATE outbox_cursor c SET owner = NULL, lease_until_ms = 0 \
     FROM (SELECT own.lane FROM outbox_cursor own WHERE own.owner = ? FOR UPDATE SKIP LOCKED) o WHERE c.lane = o.lane",
);
pub(super) const NOW: SqlPair =
    SqlPair::postgres("SELECT pg_current_snapshot()::text, (SELECT e.id FROM outbox_era e)");
pub(super) const NEXT: SqlPair = SqlPair::postgres(
    "SELECT seq, bucket, owner_epoch, home_key, n, event_id, topic, event_type, schema_version, aggregate, aggregate_id, \
     aggregate_version, correlation, causation, traceparent, actor, role, at, payload, high, \
     (SELECT e.id FROM outbox_era e) FROM pim_outbox_next(?, ?, CAST(? AS text), ?, ?)",
);
pub(super) const SAVE: SqlPair = SqlPair::postgres(
    "UPDATE outbox_cursor c SET low = (g.value->>'low')::pg_snapshot, high = (g.value->>'high')::pg_snapshot,
       last_seq = (g.value->>'last')::bigint, lease_until_ms = pim_now_ms() + ?
     FROM jsonb_array_elements(?) g, jsonb_array_elements(g.value->'lanes') l
     WHERE c.lane = (l.value->>0)::bigint AND c.epoch = (l.value->>1)::bigint AND c.owner = ?
       AND EXISTS (SELECT FROM outbox_era e WHERE e.id = ?) RETURNING c.lane",
);
pub(super) const GIVE_BACK: SqlPair = SqlPair::postgres(
    "UPDATE outbox_cursor c SET owner = NULL, lease_until_ms = 0 FROM jsonb_array_elements(?) l
     WHERE c.lane = (l.value->>0)::bigint AND c.epoch = (l.value->>1)::bigint AND c.owner = ?",
);
pub(super) const LEAVE: SqlPair = SqlPair::postgres("DELETE FROM outbox_relay WHERE owner = ?");

/// Which column of [`NEXT`] names the window's end.
const HIGH: usize = 19;
/// Which column of [`NEXT`] names the era.
const ERA: usize = 20;

/// The lanes of one relay in one outbox.
#[derive(Clone, Debug)]
pub(super) struct Windows {
    owner: Uuid,
    /// Of which all snapshots are; none before the first lease.
    era: Option<Uuid>,
    groups: Vec<Group>,
    /// Which group is read next.
    turn: usize,
    read: Option<ReadOnce>,
    /// Whether the last round over all groups found nothing.
    is_idle: bool,
    unsaved: bool,
}

/// Lanes that stand at the same place.
#[derive(Clone, Debug)]
struct Group {
    /// Each with the epoch of its lease.
    lanes: BTreeMap<u64, u64>,
    /// Everything that this snapshot sees has been sent.
    low: String,
    /// The end of the window that is being sent.
    high: Option<String>,
    /// How far it has been sent.
    last_seq: u64,
}

/// What was read and not yet passed.
#[derive(Clone, Debug)]
struct ReadOnce {
    high: String,
    is_whole: bool,
}

impl Windows {
    pub(super) async fn take(db: &Db, owner: Uuid, length: Duration) -> Result<Option<Self>, DbError> {
        let mut windows =
            Self { owner, era: None, groups: Vec::new(), turn: 0, read: None, is_idle: false, unsaved: false };
        let _fresh = windows.lease(db, length).await?;
        Ok((!windows.groups.is_empty()).then_some(windows))
    }

    fn count(&self) -> u64 {
        self.groups.iter().map(|group| group.lanes.len() as u64).sum()
    }

    /// Leases more lanes, up to the share; answers the share, and whether there are new ones. `None` in another era.
    async fn lease(&mut self, db: &Db, length: Duration) -> Result<Option<(u64, bool)>, DbError> {
        let mut asked = Vec::with_capacity(2);
        if self.groups.is_empty() {
            asked.push(Statement::of(OWN).bind(self.owner));
        }
        asked.push(Statement::of(LEASE).bind(self.owner).bind(millis(length)).bind(self.count()));
        let (tx, answers) = db.begin_with(&asked).await?;
        let rows = answers.last().ok_or(DbError::Closed)?;
        let present = rows.first().ok_or(DbError::Closed)?.uuid(6)?;
        if *self.era.get_or_insert(present) != present {
            tx.rollback().await?;
            return Ok(None);
        }
        tx.commit().await?;
        let (mut share, mut is_new) = (super::cursor::LANES, false);
        for row in rows {
            share = row.count(0)?;
            if *row.get(1) == Value::Null {
                continue;
            }
            is_new = true;
            let (low, high) = (row.text(3)?.to_owned(), row.text_or_null(4)?.map(str::to_owned));
            let (lane, epoch, last_seq) = (row.count(1)?, row.count(2)?, row.count(5)?);
            self.join(Group { lanes: BTreeMap::from([(lane, epoch)]), low, high, last_seq });
        }
        // What stands behind new lanes may be a backlog, which is read in windows that are cheap to sort.
        self.is_idle &= !is_new;
        Ok(Some((share, is_new)))
    }

    /// Adds lanes, to others that stand at the same place if there are some.
    fn join(&mut self, mut new: Group) {
        let same =
            |group: &&mut Group| group.low == new.low && group.high == new.high && group.last_seq == new.last_seq;
        match self.groups.iter_mut().find(same) {
            Some(group) => group.lanes.append(&mut new.lanes),
            None => self.groups.push(new),
        }
    }

    pub(super) async fn share(&mut self, db: &Db, length: Duration) -> Result<Option<bool>, DbError> {
        let Some((share, is_new)) = self.lease(db, length).await? else { return Ok(None) };
        let excess = self.count().saturating_sub(share);
        if excess == 0 {
            return Ok(Some(is_new));
        }
        // Whoever takes them goes on from what is written.
        if !self.save(db, length, Vec::new()).await? {
            return Ok(None);
        }
        let mut given = Vec::new();
        for group in &mut self.groups {
            while (given.len() as u64) < excess
                && let Some((lane, epoch)) = group.lanes.pop_last()
            {
                given.push((lane, epoch));
            }
        }
        self.groups.retain(|group| !group.lanes.is_empty());
        self.give_back(db, &given, false).await?;
        Ok(Some(is_new))
    }

    /// The next events of one group. A group without any stands at the end of its window then. `None` in another era.
    pub(super) async fn next(&mut self, db: &Db, max: usize) -> Result<Option<Vec<Row>>, DbError> {
        // Groups meet at a common snapshot, once there is nothing left behind any of them.
        let mut common = None;
        if self.is_idle && self.groups.len() > 1 {
            let Some(now) = self.snapshot(db).await? else { return Ok(None) };
            common = Some(now);
        }
        for _ in 0..self.groups.len() {
            self.turn %= self.groups.len();
            let Some(group) = self.groups.get_mut(self.turn) else { break };
            let high = group.high.as_deref().or(common.as_deref());
            let next = Statement::of(NEXT).bind(Value::Json(group.lanes_json())).bind(group.low.as_str());
            let rows = db.query(next.bind(high).bind(group.last_seq).bind(max as u64)).await?;
            let first = rows.first().ok_or(DbError::Closed)?;
            if first.uuid_or_null(ERA)? != self.era {
                return Ok(None);
            }
            let high = first.text(HIGH)?.to_owned();
            let rows: Vec<Row> = rows.into_iter().filter(|row| *row.get(0) != Value::Null).collect();
            if rows.is_empty() {
                (group.low, group.high, group.last_seq) = (high, None, 0);
                self.turn += 1;
                continue;
            }
            self.is_idle = false;
            self.read = Some(ReadOnce { high, is_whole: rows.len() < max });
            return Ok(Some(rows));
        }
        self.is_idle = true;
        for group in std::mem::take(&mut self.groups) {
            self.join(group);
        }
        Ok(Some(Vec::new()))
    }

    async fn snapshot(&self, db: &Db) -> Result<Option<String>, DbError> {
        let rows = db.query(Statement::of(NOW)).await?;
        let now = rows.first().ok_or(DbError::Closed)?;
        Ok(if now.uuid_or_null(1)? == self.era { Some(now.text(0)?.to_owned()) } else { None })
    }

    pub(super) fn pass(&mut self, last: u64) {
        let (Some(read), Some(group)) = (self.read.take(), self.groups.get_mut(self.turn)) else { return };
        if read.is_whole {
            (group.low, group.high, group.last_seq) = (read.high, None, 0);
            self.turn += 1;
        } else {
            (group.high, group.last_seq) = (Some(read.high), last);
        }
        self.unsaved = true;
    }

    pub(super) const fn is_unsaved(&self) -> bool {
        self.unsaved
    }

    pub(super) async fn save(&mut self, db: &Db, length: Duration, with: Vec<Statement>) -> Result<bool, DbError> {
        let places = self.groups.iter().map(Group::place).collect::<Vec<_>>();
        let places = Value::Json(serde_json::Value::Array(places).to_string());
        let save = Statement::of(SAVE)
            .bind(millis(length))
            .bind(places)
            .bind(self.owner)
            .bind(self.era.map_or(Value::Null, Value::from));
        let (tx, answers) = db.begin_with(&[save]).await?;
        if answers.first().map_or(0, Vec::len) as u64 != self.count() {
            tx.rollback().await?;
            return Ok(false);
        }
        tx.commit_with(with).await?;
        self.unsaved = false;
        Ok(true)
    }

    pub(super) async fn release(&self, db: &Db) -> Result<(), DbError> {
        let lanes = self.groups.iter().flat_map(|group| &group.lanes).map(|(lane, epoch)| (*lane, *epoch));
        self.give_back(db, &lanes.collect::<Vec<_>>(), true).await
    }

    async fn give_back(&self, db: &Db, lanes: &[(u64, u64)], and_leave: bool) -> Result<(), DbError> {
        let give_back = Statement::of(GIVE_BACK).bind(Value::Json(json!(lanes).to_string())).bind(self.owner);
        let mut last = vec![give_back];
        if and_leave {
            last.push(Statement::of(LEAVE).bind(self.owner));
        }
        db.begin().await?.commit_with(last).await.map(drop)
    }

    pub(super) fn lanes(&self) -> String {
        json!(self.groups.iter().flat_map(|group| group.lanes.keys()).collect::<Vec<_>>()).to_string()
    }
}

impl Group {
    fn lanes_json(&self) -> String {
        json!(self.lanes.keys().collect::<Vec<_>>()).to_string()
    }

    fn place(&self) -> serde_json::Value {
        let lanes: Vec<_> = self.lanes.iter().collect();
        json!({"low": self.low, "high": self.high, "last": self.last_seq, "lanes": lanes})
    }
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}
