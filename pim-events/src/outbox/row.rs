//! Rows of the outbox as events.

use pim_core::context::{RequestId, TraceContext};
use pim_core::shard::{Bucket, Epoch};
use pim_data::backend::{ColumnError, DbError, Row, SqlPair, Statement, Value};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::event::{Event, Origin, is_name};

const COLUMNS: &str = "seq, bucket, owner_epoch, home_key, n, event_id, topic, event_type, schema_version, aggregate, \
                       aggregate_id, aggregate_version, correlation, causation, traceparent, actor, role, at, payload";

/// A row of the outbox. One that is no event has a place and a key all the same, and holds up nobody but that key.
pub(super) struct Entry {
    pub(super) seq: u64,
    pub(super) home: Uuid,
    pub(super) read: Result<OutboxRow, RowError>,
}

impl Entry {
    pub(super) fn of(row: &Row, origin: Origin) -> Result<Self, DbError> {
        // What names no key holds up the nil one, which nobody has.
        Ok(Self { seq: row.count(0)?, home: row.uuid(3).unwrap_or_default(), read: OutboxRow::of(row, origin) })
    }
}

/// An event with its topic.
pub(super) struct OutboxRow {
    pub(super) topic: String,
    pub(super) event: Event,
}

/// A row of the outbox that is no event: somebody wrote it by hand.
#[derive(Debug, thiserror::Error)]
pub(super) enum RowError {
    #[error("a column is not of its type")]
    Column(#[from] ColumnError),
    #[error("column {0} does not hold what it should")]
    Form(&'static str),
}

impl RowError {
    /// What is wrong, for logs.
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::Column(_) => "column",
            Self::Form(column) => column,
        }
    }
}

/// Asks for at most `max` events behind `last_seq`.
pub(super) fn behind(last_seq: u64, max: usize) -> Statement {
    // The bound is part of the text: SQLite prepares a statement with a bound LIMIT anew at every run.
    let text = format!("SELECT {COLUMNS} FROM outbox_event WHERE seq > ? ORDER BY seq LIMIT {max}");
    Statement::of(SqlPair::generated(text)).bind(last_seq)
}

/// Asks for at most `max` held events of some lanes whose keys are to be tried again.
pub(super) fn to_retry(lanes: String, max: usize) -> Statement {
    Statement::of(TO_RETRY).bind(Value::Json(lanes)).bind(max as u64)
}

pub(super) const TO_RETRY: SqlPair = SqlPair::of(
    "SELECT e.seq, e.bucket, e.owner_epoch, e.home_key, e.n, e.event_id, e.topic, e.event_type, e.schema_version,
            e.aggregate, e.aggregate_id, e.aggregate_version, e.correlation, e.causation, e.traceparent, e.actor, e.role,
            e.at, e.payload
     FROM outbox_event e JOIN outbox_held h ON h.seq = e.seq
     WHERE h.retry = 1 AND e.lane IN (SELECT value::bigint FROM jsonb_array_elements_text(?)) ORDER BY e.seq LIMIT ?",
    "SELECT e.seq, e.bucket, e.owner_epoch, e.home_key, e.n, e.event_id, e.topic, e.event_type, e.schema_version,
            e.aggregate, e.aggregate_id, e.aggregate_version, e.correlation, e.causation, e.traceparent, e.actor, e.role,
            e.at, e.payload
     FROM outbox_event e JOIN outbox_held h ON h.seq = e.seq
     WHERE h.retry = 1 AND e.lane IN (SELECT value FROM json_each(?)) ORDER BY e.seq LIMIT ?",
);

impl OutboxRow {
    fn of(row: &Row, origin: Origin) -> Result<Self, RowError> {
        // Nobody could have appended it: whoever typed it meant another, which consumers would pass over, or wait for.
        if !is_name(row.text(7)?) {
            return Err(RowError::Form("event_type"));
        }
        let small = |index, name| u16::try_from(row.count(index)?).map_err(|_| RowError::Form(name));
        let event = Event {
            id: row.uuid(5)?,
            origin,
            event_type: row.text(7)?.to_owned(),
            schema_version: small(8, "schema_version")?,
            time: row.time(17)?,
            home: row.uuid(3)?,
            bucket: Bucket::new(small(1, "bucket")?).map_err(|_| RowError::Form("bucket"))?,
            n: row.count(4)?,
            owner_epoch: Epoch(u32::try_from(row.count(2)?).map_err(|_| RowError::Form("owner_epoch"))?),
            aggregate: row.text(9)?.to_owned(),
            aggregate_id: row.uuid(10)?,
            aggregate_version: row.count(11)?,
            correlation: RequestId::from_uuid(row.uuid(12)?),
            causation: row.uuid_or_null(13)?,
            trace: row.text(14)?.parse::<TraceContext>().map_err(|_| RowError::Form("traceparent"))?,
            actor: row.text(15)?.to_owned(),
            role: row.text(16)?.to_owned(),
            seq: row.count(0)?,
            published_at: None,
            payload: RawValue::from_string(row.text(18)?.to_owned()).map_err(|_| RowError::Form("payload"))?,
        };
        Ok(Self { topic: row.text(6)?.to_owned(), event })
    }
}
