//! What a consumer remembers in its store: position per partition, head per key, held sequences, dead records.

mod held;

pub(crate) use held::{HeldEvent, Hold, draining, drop_held, gap_filled, give_up, held, hold, release, set_reason};

use std::collections::HashMap;
use std::time::Duration;

use pim_core::clock::Timestamp;
use pim_core::role::ClosedEnum;
use pim_core::shard::Epoch;
use pim_data::backend::{DbError, Row, SqlPair, Statement, Value};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::head::Head;
use super::hold::HoldReason;
pub(crate) use super::hold::KeyState;
use crate::bus::Record;

/// Tables of every store that consumers use.
pub(crate) const LEDGER_SCHEMA: SqlPair =
    SqlPair::of(include_str!("ledger/schema_postgres.sql"), include_str!("ledger/schema.sql"));

/// One partition as one consumer sees it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) consumer: &'static str,
    pub(crate) topic: String,
    pub(crate) partition: u16,
}

impl Place {
    fn bind(statement: Statement, place: &Self) -> Statement {
        statement.bind(place.consumer).bind(place.topic.as_str()).bind(place.partition)
    }

    fn bound(&self, text: &'static str) -> Statement {
        Self::bind(Statement::same(text), self)
    }
}

/// Enters the consumer at offset 0 when it is new, and reads where it is.
pub(crate) fn enter(place: &Place, now: Timestamp) -> [Statement; 2] {
    let enter = place
        .bound(
            "INSERT INTO projection_checkpoint (consumer, topic, part, next_offset, event_at, at)
             VALUES (?, ?, ?, 0, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(now)
        .bind(now);
    [enter, position(place)]
}

/// Reads where the consumer is.
pub(crate) fn position(place: &Place) -> Statement {
    place.bound("SELECT next_offset FROM projection_checkpoint WHERE consumer = ? AND topic = ? AND part = ?")
}

/// Keeps every other transaction of this partition out until this one ends. Whoever changes heads or holds has moved the
/// checkpoint before, or has done this; on the embedded engine every transaction is alone anyway.
pub(crate) fn lock(place: &Place) -> Statement {
    Place::bind(Statement::of(LOCK), place)
}

pub(crate) const LOCK: SqlPair = SqlPair::of(
    "SELECT 1 FROM projection_checkpoint WHERE consumer = ? AND topic = ? AND part = ? FOR UPDATE",
    "SELECT 1 FROM projection_checkpoint WHERE consumer = ? AND topic = ? AND part = ?",
);

/// Ends what waits for a lock at half the time of a statement: it speaks of whoever has the lock, and not of the event. The
/// server would else say the same of both, that a statement took too long.
pub(crate) fn hasten_locks() -> Statement {
    Statement::of(HASTEN_LOCKS)
}

pub(crate) const HASTEN_LOCKS: SqlPair = SqlPair::of(
    "SELECT set_config('lock_timeout',
                       (extract(epoch FROM current_setting('statement_timeout')::interval) * 500)::bigint::text, true)",
    "SELECT 1",
);

/// Lets a statement that follows take no longer than most of `patience`, and wait for a lock half as long: so it is the server that
/// ends it, and says why, before its batch is cut short here. What holds already stays where it is less.
pub(crate) fn hurry(patience: Duration) -> Statement {
    Statement::of(HURRY).bind(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX).saturating_mul(9) / 10)
}

// Zero is no limit. The settings are set in the order in which they are written here.
pub(crate) const HURRY: SqlPair = SqlPair::of(
    "SELECT set_config('pim.statement_timeout', current_setting('statement_timeout'), true),
            set_config('pim.lock_timeout', current_setting('lock_timeout'), true),
            set_config('lock_timeout', (millis / 2)::text, true),
            set_config('statement_timeout', millis::text, true)
     FROM (SELECT least(?::bigint,
                        nullif((extract(epoch FROM current_setting('statement_timeout')::interval) * 1000)::bigint, 0))
                  AS millis) AS allowed",
    "SELECT ?, 1, 1, 1",
);

/// Takes [`hurry`] back: what the consumer itself writes behind a batch is no part of it.
pub(crate) fn relax() -> Statement {
    Statement::of(RELAX)
}

pub(crate) const RELAX: SqlPair = SqlPair::of(
    "SELECT set_config('statement_timeout', current_setting('pim.statement_timeout'), true),
            set_config('lock_timeout', current_setting('pim.lock_timeout'), true)",
    "SELECT 1, 1",
);

/// Lets one worker of a consumer park at a time, so that each sees all that the others have parked.
pub(crate) fn parking(consumer: &str) -> Statement {
    Statement::of(PARKING).bind(consumer)
}

pub(crate) const PARKING: SqlPair = SqlPair::of("SELECT pg_advisory_xact_lock(7471, hashtext(?))", "SELECT ?");

/// Moves the checkpoint from `expected` to `next`; answers no row when it was not there, so another owner moved it.
pub(crate) fn advance(place: &Place, (expected, next): (u64, u64), event_at: Timestamp, now: Timestamp) -> Statement {
    Statement::same(
        "UPDATE projection_checkpoint SET next_offset = ?, event_at = ?, at = ?
         WHERE consumer = ? AND topic = ? AND part = ? AND next_offset = ? RETURNING 1",
    )
    .bind(next)
    .bind(event_at)
    .bind(now)
    .bind(place.consumer)
    .bind(place.topic.as_str())
    .bind(place.partition)
    .bind(expected)
}

/// Whether a consumer may run, how often an operator has let it run again, and which version its read model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) stopped: bool,
    pub(crate) resumes: u64,
    /// Zero where there is none.
    pub(crate) version: u64,
}

impl Standing {
    /// The answer to [`standing`].
    pub(crate) fn of(rows: &[Row]) -> Result<Self, DbError> {
        let row = rows.first().ok_or(DbError::Closed)?;
        Ok(Self { stopped: row.count(0)? > 0, resumes: row.count(1)?, version: row.count(2)? })
    }
}

/// Asks how a consumer stands; read the answer with [`Standing::of`].
pub(crate) fn standing(consumer: &str) -> Statement {
    let asked = Statement::same(
        "SELECT (SELECT count(*) FROM consumer_stop WHERE consumer = ?),
                COALESCE((SELECT resumes FROM consumer_resume WHERE consumer = ?), 0),
                COALESCE((SELECT version FROM projection_version WHERE name = ?), 0)",
    );
    asked.bind(consumer).bind(consumer).bind(consumer)
}

/// Lets a stopped consumer run again: whoever parks has done so before, or learns of this. The second answers a row when it
/// was stopped.
pub(crate) fn resume(consumer: &str, now: Timestamp) -> [Statement; 3] {
    let lift = Statement::same("DELETE FROM consumer_stop WHERE consumer = ? RETURNING 1").bind(consumer);
    [parking(consumer), lift, answered_for(consumer, now)]
}

/// Notes that what was parked until now counts against no limit any more, and that what failed before is tried anew.
pub(crate) fn answered_for(consumer: &str, now: Timestamp) -> Statement {
    let mark = Statement::same(
        "INSERT INTO consumer_resume AS r (consumer, resumes, at) VALUES (?, 1, ?)
         ON CONFLICT (consumer) DO UPDATE SET resumes = r.resumes + 1, at = excluded.at",
    );
    mark.bind(consumer).bind(now)
}

/// Stops the consumer, should it have parked more than `max` keys since `since`, or since it was resumed.
pub(crate) fn stop_above(consumer: &str, max: u32, since: Timestamp, now: Timestamp) -> Statement {
    Statement::same(
        "INSERT INTO consumer_stop (consumer, reason, since) SELECT ?, 'parked_keys', ?
         WHERE (SELECT count(*) FROM held_key WHERE consumer = ? AND since > ? AND reason = 'poison'
                AND since >= COALESCE((SELECT at FROM consumer_resume WHERE consumer = ?), 0)) > ?
         ON CONFLICT DO NOTHING",
    )
    .bind(consumer)
    .bind(now)
    .bind(consumer)
    .bind(since)
    .bind(consumer)
    .bind(max)
}

/// Stops the consumer when it has as many rows in a table as it may.
macro_rules! stop_when_full_of {
    ($table:literal) => {
        concat!(
            "INSERT INTO consumer_stop (consumer, reason, since) SELECT ?, '",
            $table,
            "s', ? WHERE (SELECT count(*) FROM (SELECT 1 FROM ",
            $table,
            " WHERE consumer = ? LIMIT ?) held) >= ? ON CONFLICT DO NOTHING",
        )
    };
}

/// What a transaction has added to what a consumer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Added {
    /// Events of held sequences, and with them keys.
    pub(crate) held: bool,
    /// Records that are no events.
    pub(crate) dead: bool,
}

/// Stops the consumer, should it keep as much as it may of what was added. What was there before, and is more than it may have of
/// that, an operator has seen and let be.
pub(crate) fn stop_when_full(consumer: &str, added: Added, limits: &HoldLimits, now: Timestamp) -> Vec<Statement> {
    let stop = |text, max: u64| Statement::same(text).bind(consumer).bind(now).bind(consumer).bind(max).bind(max);
    let mut all = Vec::new();
    if added.held {
        all.push(stop(stop_when_full_of!("held_key"), limits.keys));
        all.push(stop(stop_when_full_of!("held_event"), limits.events));
    }
    if added.dead {
        all.push(stop(stop_when_full_of!("dead_record"), limits.records));
    }
    all
}

/// How much a consumer may hold before it stops.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HoldLimits {
    pub(crate) keys: u64,
    pub(crate) events: u64,
    pub(crate) records: u64,
}

impl HoldLimits {
    /// Of each kind the larger one.
    pub(crate) fn max(self, other: Self) -> Self {
        let (keys, events) = (self.keys.max(other.keys), self.events.max(other.events));
        Self { keys, events, records: self.records.max(other.records) }
    }
}

/// Asks for heads and holds of `keys`; read the answer with [`states_of`].
pub(crate) fn states(consumer: &str, keys: impl IntoIterator<Item = Uuid>) -> Statement {
    let mut list: Vec<String> = keys.into_iter().map(|key| key.simple().to_string()).collect();
    list.sort_unstable();
    list.dedup();
    let asked = Statement::of(STATES).bind(Value::Json(serde_json::json!(list).to_string()));
    asked.bind(consumer).bind(consumer)
}

pub(crate) const STATES: SqlPair = SqlPair::of(
    "SELECT k.home_key, h.owner_epoch, h.n, p.reason, p.last_epoch, p.last_n, h.event_id
     FROM (SELECT value::uuid AS home_key FROM jsonb_array_elements_text(?)) k
     LEFT JOIN inbox_head h ON h.consumer = ? AND h.home_key = k.home_key
     LEFT JOIN held_key p ON p.consumer = ? AND p.home_key = k.home_key",
    "SELECT k.home_key, h.owner_epoch, h.n, p.reason, p.last_epoch, p.last_n, h.event_id
     FROM (SELECT unhex(value) AS home_key FROM json_each(?)) k
     LEFT JOIN inbox_head h ON h.consumer = ? AND h.home_key = k.home_key
     LEFT JOIN held_key p ON p.consumer = ? AND p.home_key = k.home_key",
);

/// The answer to [`states`].
pub(crate) fn states_of(rows: &[Row]) -> Result<HashMap<Uuid, KeyState>, DbError> {
    let mut all = HashMap::with_capacity(rows.len());
    for row in rows {
        let head = pair(row, 1)?.unwrap_or(Head::START);
        let hold = row.text_or_null(3)?.and_then(HoldReason::from_name);
        let head_event = row.uuid_or_null(6)?;
        all.insert(row.uuid(0)?, KeyState { head, head_event, hold, held_last: pair(row, 4)? });
    }
    Ok(all)
}

fn pair(row: &Row, at: usize) -> Result<Option<Head>, DbError> {
    if *row.get(at) == Value::Null {
        return Ok(None);
    }
    Ok(Some(Head { epoch: epoch_at(row, at)?, n: row.count(at + 1)? }))
}

pub(crate) fn epoch_at(row: &Row, at: usize) -> Result<Epoch, DbError> {
    Ok(Epoch(u32::try_from(row.count(at)?).unwrap_or(u32::MAX)))
}

/// Moves heads forward, never back. Each comes with its event's id, where that is known.
pub(crate) fn save_heads(consumer: &str, heads: &[(Uuid, Head, Option<Uuid>)], now: Timestamp) -> Statement {
    let told = |(key, head, event): &(Uuid, Head, Option<Uuid>)| {
        (key.simple().to_string(), head.epoch.0, head.n, event.map(|event| event.simple().to_string()))
    };
    let list: Vec<_> = heads.iter().map(told).collect();
    let heads = Value::Json(serde_json::json!(list).to_string());
    Statement::of(SAVE_HEADS).bind(consumer).bind(now).bind(heads)
}

pub(crate) const SAVE_HEADS: SqlPair = SqlPair::of(
    "INSERT INTO inbox_head (consumer, home_key, owner_epoch, n, event_id, at)
     SELECT ?, (value ->> 0)::uuid, (value ->> 1)::bigint, (value ->> 2)::bigint, (value ->> 3)::uuid, ?
     FROM jsonb_array_elements(?)
     ON CONFLICT (consumer, home_key)
     DO UPDATE SET owner_epoch = excluded.owner_epoch, n = excluded.n, event_id = excluded.event_id, at = excluded.at
     WHERE excluded.n > inbox_head.n",
    "INSERT INTO inbox_head (consumer, home_key, owner_epoch, n, event_id, at)
     SELECT ?, unhex(value ->> 0), value ->> 1, value ->> 2, unhex(value ->> 3), ? FROM json_each(?) WHERE true
     ON CONFLICT (consumer, home_key)
     DO UPDATE SET owner_epoch = excluded.owner_epoch, n = excluded.n, event_id = excluded.event_id, at = excluded.at
     WHERE excluded.n > inbox_head.n",
);

/// Keeps a record that is no event, so that nothing vanishes. A server takes no NUL in a text: its symbol stands there instead,
/// and the digest is that of what the bus has.
pub(crate) fn bury(place: &Place, record: &Record, code: &'static str, now: Timestamp) -> Statement {
    place
        .bound(
            "INSERT INTO dead_record (consumer, topic, part, pos, home_key, code, digest, headers, payload, at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(record.offset)
        .bind(record.key)
        .bind(code)
        .bind(digest(&record.payload))
        .bind(headers_text(record))
        .bind(record.payload.replace('\0', "\u{2400}"))
        .bind(now)
}

fn digest(payload: &str) -> Vec<u8> {
    Sha256::digest(payload.as_bytes()).to_vec()
}

fn headers_text(record: &Record) -> String {
    serde_json::to_string(&record.headers).unwrap_or_default()
}
