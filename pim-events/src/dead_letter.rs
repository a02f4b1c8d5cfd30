//! Dead letters: what consumers hold, why, and how it is applied after all. Payloads stay closed; their digests show.

mod replay;
mod rewound;

pub use replay::{ReplayPlan, ReplaySelection, ReplayedKey};

use pim_core::clock::Timestamp;
use pim_core::role::ClosedEnum as _;
use pim_data::backend::{DbError, Row, SqlPair, Statement};
use uuid::Uuid;

use crate::bus::BusError;
use crate::consumer::HoldReason;
use crate::consumer::ledger::set_reason;
use crate::projection::{ReadStore, StoreError};

/// Most entries that one listing answers.
pub const LIST_MAX: u32 = 500;

/// A key that a consumer holds.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct HeldKey {
    /// Which consumer.
    pub consumer: String,
    /// Which home key.
    pub key: Uuid,
    /// Why: `poison`, `gap`, `rewound` or `draining`.
    pub reason: String,
    /// The static code of the failure.
    pub code: String,
    /// How often un-parking failed.
    pub tries: u64,
    /// Since when.
    pub since: Timestamp,
    /// How many events wait.
    pub events: u64,
    /// The n of the first of them.
    pub n_first: u64,
    /// The n of the last of them.
    pub n_last: u64,
}

/// Where a page of held keys begins: behind this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldPlace {
    /// Since when the last key of the page before is held.
    pub since: Timestamp,
    /// Its consumer.
    pub consumer: String,
    /// Which key.
    pub key: Uuid,
}

impl HeldPlace {
    /// Before the first one.
    #[must_use]
    pub const fn start() -> Self {
        Self { since: Timestamp::from_micros(i64::MIN), consumer: String::new(), key: Uuid::nil() }
    }
}

impl From<&HeldKey> for HeldPlace {
    fn from(key: &HeldKey) -> Self {
        Self { since: key.since, consumer: key.consumer.clone(), key: key.key }
    }
}

/// Where a page of records begins: behind this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadPlace {
    /// Since when the last record of the page before is put aside.
    pub at: Timestamp,
    /// By which consumer.
    pub consumer: String,
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: u64,
    /// Its offset.
    pub offset: u64,
}

impl DeadPlace {
    /// Before the first one.
    #[must_use]
    pub const fn start() -> Self {
        let at = Timestamp::from_micros(i64::MIN);
        Self { at, consumer: String::new(), topic: String::new(), partition: 0, offset: 0 }
    }
}

impl From<&DeadRecord> for DeadPlace {
    fn from(record: &DeadRecord) -> Self {
        let (consumer, topic) = (record.consumer.clone(), record.topic.clone());
        Self { at: record.at, consumer, topic, partition: record.partition, offset: record.offset }
    }
}

/// An event that a consumer holds.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeadLetter {
    /// The event.
    pub event_id: Uuid,
    /// Its type.
    pub event_type: String,
    /// When it was written.
    pub event_at: Timestamp,
    /// Its number in the key.
    pub n: u64,
    /// The ownership epoch it was written under.
    pub owner_epoch: u64,
    /// Where in the bus it stands.
    pub partition: u64,
    /// Where in the partition.
    pub offset: u64,
    /// SHA-256 of its payload, in hex.
    pub payload_sha256: String,
    /// Since when it is held.
    pub held_at: Timestamp,
}

/// A record that is no event at all.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeadRecord {
    /// Which consumer put it aside.
    pub consumer: String,
    /// Which topic.
    pub topic: String,
    /// Which partition.
    pub partition: u64,
    /// Which offset.
    pub offset: u64,
    /// The static code of the failure.
    pub code: String,
    /// SHA-256 of its payload, in hex.
    pub payload_sha256: String,
    /// Since when.
    pub at: Timestamp,
}

/// Why a key cannot be un-parked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnparkError {
    /// The consumer holds no such key.
    #[error("consumer holds no such key")]
    NotHeld,
    /// The key waits for an event that is missing; it continues by itself when that arrives.
    #[error("key waits for a missing event")]
    Gap,
    /// History was rewound: the key's read model has to be rebuilt. Commands go on ([`ReadStore::unpark_command`]).
    #[error("key was rewound, rebuild the read model")]
    Rewound,
    /// The log has too many events of the key to go through them again.
    #[error("the log has more than {most} events of the key")]
    TooLong {
        /// The bound.
        most: usize,
    },
    /// The log does not answer.
    #[error("read the log")]
    Bus(#[source] BusError),
    /// The store does not answer.
    #[error("use the read store")]
    Store(#[from] DbError),
}

pub(crate) const LOCK_PARTITION: SqlPair = SqlPair::of(
    "SELECT 1 FROM projection_checkpoint WHERE consumer = ?
       AND part = (SELECT part FROM held_key WHERE consumer = ? AND home_key = ?) FOR UPDATE",
    "SELECT 1 FROM projection_checkpoint WHERE consumer = ?
       AND part = (SELECT part FROM held_key WHERE consumer = ? AND home_key = ?)",
);

impl ReadStore {
    /// The first keys that are held, longest first; of one consumer or of all.
    ///
    /// # Errors
    /// [`StoreError::Db`].
    pub async fn held_keys(&self, consumer: Option<&str>, max: u32) -> Result<Vec<HeldKey>, StoreError> {
        self.held_keys_behind(&HeldPlace::start(), consumer, max).await
    }

    /// The keys behind a place in the same order, a page of at most [`LIST_MAX`].
    ///
    /// # Errors
    /// [`StoreError::Db`].
    pub async fn held_keys_behind(
        &self,
        place: &HeldPlace,
        consumer: Option<&str>,
        max: u32,
    ) -> Result<Vec<HeldKey>, StoreError> {
        let asked = Statement::same(
            "SELECT k.consumer, k.home_key, k.reason, k.code, k.tries, k.since,
                    count(e.n), coalesce(min(e.n), k.last_n), k.last_n
             FROM held_key k LEFT JOIN held_event e ON e.consumer = k.consumer AND e.home_key = k.home_key
             WHERE k.consumer = coalesce(?, k.consumer) AND (k.since, k.consumer, k.home_key) > (?, ?, ?)
             GROUP BY k.consumer, k.home_key ORDER BY k.since, k.consumer, k.home_key LIMIT ?",
        );
        let asked = asked.bind(consumer);
        let asked = asked.bind(place.since).bind(place.consumer.as_str()).bind(place.key).bind(max.min(LIST_MAX));
        self.query(asked).await?.iter().map(held_key).collect()
    }

    /// Who holds a home key: one entry for each consumer that does.
    ///
    /// # Errors
    /// [`StoreError::Db`].
    pub async fn holds_of(&self, key: Uuid) -> Result<Vec<HeldKey>, StoreError> {
        let asked = Statement::same(
            "SELECT k.consumer, k.home_key, k.reason, k.code, k.tries, k.since,
                    count(e.n), coalesce(min(e.n), k.last_n), k.last_n
             FROM held_key k LEFT JOIN held_event e ON e.consumer = k.consumer AND e.home_key = k.home_key
             WHERE k.consumer IN (SELECT consumer FROM projection_checkpoint) AND k.home_key = ?
             GROUP BY k.consumer, k.home_key ORDER BY k.consumer",
        );
        self.query(asked.bind(key)).await?.iter().map(held_key).collect()
    }

    /// The held events of a key, in order; from `after_n` on.
    ///
    /// # Errors
    /// [`StoreError::Db`].
    pub async fn dead_letters(
        &self,
        consumer: &str,
        key: Uuid,
        after_n: u64,
        max: u32,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let asked = Statement::same(
            "SELECT event_id, event_type, event_at, n, owner_epoch, part, pos, digest, at FROM held_event
             WHERE consumer = ? AND home_key = ? AND n > ? ORDER BY owner_epoch, n LIMIT ?",
        );
        let asked = asked.bind(consumer).bind(key).bind(after_n).bind(max.min(LIST_MAX));
        self.query(asked).await?.iter().map(dead_letter).collect()
    }

    /// The first records that were no events, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Db`].
    pub async fn dead_records(&self, max: u32) -> Result<Vec<DeadRecord>, StoreError> {
        self.dead_records_behind(&DeadPlace::start(), max).await
    }

    /// The records behind a place in the same order, a page of at most [`LIST_MAX`].
    ///
    /// # Errors
    /// [`StoreError::Db`].
    pub async fn dead_records_behind(&self, place: &DeadPlace, max: u32) -> Result<Vec<DeadRecord>, StoreError> {
        let asked = Statement::same(
            "SELECT consumer, topic, part, pos, code, digest, at FROM dead_record
             WHERE (at, consumer, topic, part, pos) > (?, ?, ?, ?, ?)
             ORDER BY at, consumer, topic, part, pos LIMIT ?",
        );
        let asked = asked.bind(place.at).bind(place.consumer.as_str()).bind(place.topic.as_str());
        let asked = asked.bind(place.partition).bind(place.offset).bind(max.min(LIST_MAX));
        self.query(asked).await?.iter().map(dead_record).collect()
    }

    /// Dismisses the records of a partition that a consumer has put aside, up to an offset and with it: somebody has seen to them,
    /// and they count against no bound any more. Answers how many went. The log has them still, and a rebuild finds them again.
    ///
    /// A consumer puts the records of a partition aside in order of their offsets, so that none comes in before one that was listed.
    /// Of the times by which they are listed that is not true: workers have clocks of their own, and commit when they do.
    ///
    /// # Errors
    /// [`StoreError::Db`].
    pub async fn dismiss_records(
        &self,
        consumer: &str,
        (topic, partition): (&str, u64),
        upto: u64,
    ) -> Result<u64, StoreError> {
        let dismiss = Statement::same(
            "DELETE FROM dead_record WHERE consumer = ? AND topic = ? AND part = ? AND pos <= ? RETURNING 1",
        );
        let dismiss = dismiss.bind(consumer).bind(topic).bind(partition).bind(upto);
        let (tx, answers) = self.db().begin_with(&[dismiss]).await?;
        tx.commit().await?;
        Ok(answers.first().map_or(0, |rows| rows.len() as u64))
    }

    /// Lets a parked key be applied again, in order, by the consumer's own worker. What fails again is parked again.
    ///
    /// # Errors
    /// [`UnparkError`]; a gap fills itself, and a rewound key needs a rebuild.
    pub async fn unpark(&self, consumer: &str, key: Uuid) -> Result<(), UnparkError> {
        // The key's partition stands still before its hold is read, or a worker that has read it would undo this.
        let look = [
            Statement::of(LOCK_PARTITION).bind(consumer).bind(consumer).bind(key),
            Statement::same("SELECT reason FROM held_key WHERE consumer = ? AND home_key = ?").bind(consumer).bind(key),
        ];
        let (tx, answers) = self.db().begin_with(&look).await?;
        let reason = answers.get(1).and_then(|rows| rows.first()).map(|row| row.text(0).map(str::to_owned));
        let reason = reason.transpose().map_err(DbError::from)?;
        let refused = match reason.as_deref().map(HoldReason::from_name) {
            None => Some(UnparkError::NotHeld),
            Some(Some(HoldReason::Gap)) => Some(UnparkError::Gap),
            Some(Some(HoldReason::Rewound)) => Some(UnparkError::Rewound),
            Some(_) => None,
        };
        if let Some(refused) = refused {
            tx.rollback().await?;
            return Err(refused);
        }
        let drain = (HoldReason::Draining, "unparked");
        tx.commit_with(vec![set_reason(consumer, key, drain, self.clock().now())]).await?;
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn held_key(row: &Row) -> Result<HeldKey, StoreError> {
    let read = || {
        Ok::<_, pim_data::backend::ColumnError>(HeldKey {
            consumer: row.text(0)?.to_owned(),
            key: row.uuid(1)?,
            reason: row.text(2)?.to_owned(),
            code: row.text(3)?.to_owned(),
            tries: row.count(4)?,
            since: row.time(5)?,
            events: row.count(6)?,
            n_first: row.count(7)?,
            n_last: row.count(8)?,
        })
    };
    read().map_err(|error| DbError::from(error).into())
}

fn dead_letter(row: &Row) -> Result<DeadLetter, StoreError> {
    let read = || {
        Ok::<_, pim_data::backend::ColumnError>(DeadLetter {
            event_id: row.uuid(0)?,
            event_type: row.text(1)?.to_owned(),
            event_at: row.time(2)?,
            n: row.count(3)?,
            owner_epoch: row.count(4)?,
            partition: row.count(5)?,
            offset: row.count(6)?,
            payload_sha256: hex(row.bytes(7)?),
            held_at: row.time(8)?,
        })
    };
    read().map_err(|error| DbError::from(error).into())
}

fn dead_record(row: &Row) -> Result<DeadRecord, StoreError> {
    let read = || {
        Ok::<_, pim_data::backend::ColumnError>(DeadRecord {
            consumer: row.text(0)?.to_owned(),
            topic: row.text(1)?.to_owned(),
            partition: row.count(2)?,
            offset: row.count(3)?,
            code: row.text(4)?.to_owned(),
            payload_sha256: hex(row.bytes(5)?),
            at: row.time(6)?,
        })
    };
    read().map_err(|error| DbError::from(error).into())
}
