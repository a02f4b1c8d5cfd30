//! How far consumers are: lag in offsets and seconds, held keys, stops. Positions are compared, rows never counted.

use std::time::Duration;

use pim_core::clock::Timestamp;
use pim_data::backend::{DbError, Statement};

use super::{ReadStore, StoreError};
use crate::bus::{BusError, Subscriber};
use crate::consumer::ledger;

/// One partition of a consumer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PartitionStatus {
    /// Which topic.
    pub topic: String,
    /// Which partition.
    pub partition: u16,
    /// The offset that is read next.
    pub next_offset: u64,
    /// The offset that the next record will get.
    pub end_offset: u64,
    /// Records not yet read.
    pub lag: u64,
    /// Age of the oldest record not yet read, in milliseconds; zero when there is none. Not known when that record cannot be
    /// read, as when its segment of the archive was moved away.
    pub lag_ms: Option<u64>,
    /// When the consumer moved last, or began.
    pub moved_at: Timestamp,
}

/// One consumer: a projection or a command handler.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ConsumerStatus {
    /// Its name.
    pub consumer: String,
    /// Version of its read model, if it has one.
    pub version: Option<u64>,
    /// State of its read model, if it has one.
    pub state: Option<String>,
    /// Its partitions.
    pub partitions: Vec<PartitionStatus>,
    /// Keys held for poison, a gap, or rewound history.
    pub held_keys: u64,
    /// Since when the oldest of them is held.
    pub held_since: Option<Timestamp>,
    /// Why it is stopped, if it is.
    pub stopped: Option<String>,
}

/// Why a status is not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatusError {
    /// The read store does not answer.
    #[error("read consumer positions")]
    Store(#[from] StoreError),
    /// The bus does not answer.
    #[error("read bus positions")]
    Bus(#[from] BusError),
}

impl From<DbError> for StatusError {
    fn from(error: DbError) -> Self {
        Self::Store(error.into())
    }
}

impl ReadStore {
    /// How far every consumer of this store is.
    ///
    /// # Errors
    /// [`StatusError`] when store or bus do not answer.
    pub async fn status(&self, bus: &dyn Subscriber) -> Result<Vec<ConsumerStatus>, StatusError> {
        let (all, unknown) = self.known_status(bus).await?;
        unknown.map_or(Ok(all), |error| Err(error.into()))
    }

    /// The same, without the partitions of which the bus does not tell the end; and why it does not.
    pub(crate) async fn known_status(
        &self,
        bus: &dyn Subscriber,
    ) -> Result<(Vec<ConsumerStatus>, Option<BusError>), StatusError> {
        let asked = [
            Statement::same(
                "SELECT c.consumer, c.topic, c.part, c.next_offset, v.version, v.state, c.at
                 FROM projection_checkpoint c LEFT JOIN projection_version v ON v.name = c.consumer
                 ORDER BY c.consumer, c.topic, c.part",
            ),
            Statement::same("SELECT consumer, count(*), min(since) FROM held_key GROUP BY consumer"),
            Statement::same("SELECT consumer, reason FROM consumer_stop"),
        ];
        let answers = self.db().read().await?.snapshot(&asked).await?;
        let [positions, held, stops] = &answers[..] else { return Err(DbError::Closed.into()) };
        let (mut all, mut unknown): (Vec<ConsumerStatus>, Option<BusError>) = (Vec::new(), None);
        for row in positions {
            let name = row.text(0).map_err(DbError::from)?;
            if all.last().is_none_or(|last| last.consumer != name) {
                all.push(ConsumerStatus {
                    consumer: name.to_owned(),
                    version: row.count(4).ok(),
                    state: row.text_or_null(5).map_err(DbError::from)?.map(str::to_owned),
                    partitions: Vec::new(),
                    held_keys: 0,
                    held_since: None,
                    stopped: None,
                });
            }
            let topic = row.text(1).map_err(DbError::from)?;
            let partition = u16::try_from(row.count(2).map_err(DbError::from)?).unwrap_or(u16::MAX);
            let stands = (row.count(3).map_err(DbError::from)?, row.time(6).map_err(DbError::from)?);
            match (self.partition(bus, (topic, partition), stands).await, all.last_mut()) {
                (Ok(partition), Some(last)) => last.partitions.push(partition),
                (Ok(_), None) => {}
                (Err(error), _) => unknown = unknown.or(Some(error)),
            }
        }
        for row in held {
            let name = row.text(0).map_err(DbError::from)?;
            if let Some(status) = all.iter_mut().find(|status| status.consumer == name) {
                status.held_keys = row.count(1).map_err(DbError::from)?;
                status.held_since = row.time(2).ok();
            }
        }
        for row in stops {
            let name = row.text(0).map_err(DbError::from)?;
            if let Some(status) = all.iter_mut().find(|status| status.consumer == name) {
                status.stopped = row.text_or_null(1).map_err(DbError::from)?.map(str::to_owned);
            }
        }
        Ok((all, unknown))
    }

    async fn partition(
        &self,
        bus: &dyn Subscriber,
        (topic, partition): (&str, u16),
        (next_offset, moved_at): (u64, Timestamp),
    ) -> Result<PartitionStatus, BusError> {
        let end_offset = bus.end_offset(topic, partition).await?;
        // A consumer that stands before what cannot be read is what a status is asked for.
        let oldest = bus.fetch(topic, partition, next_offset, 1).await.ok();
        let now = self.clock().now();
        let age = oldest.map(|oldest| oldest.first().map_or(Duration::ZERO, |record| now.since(record.at)));
        Ok(PartitionStatus {
            topic: topic.to_owned(),
            partition,
            next_offset,
            end_offset,
            lag: end_offset.saturating_sub(next_offset),
            lag_ms: age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            moved_at,
        })
    }

    /// Lets a stopped consumer run again; false when it was not stopped.
    ///
    /// What was parked before does not count against `parked_per_minute_max` any more, and an event that failed before is tried
    /// anew before its key is parked.
    ///
    /// # Errors
    /// [`StoreError::Db`].
    pub async fn resume(&self, consumer: &str) -> Result<bool, StoreError> {
        let (tx, answers) = self.db().begin_with(&ledger::resume(consumer, self.clock().now())).await?;
        let was_stopped = answers.get(1).is_some_and(|rows| !rows.is_empty());
        if was_stopped {
            tx.commit().await?;
        } else {
            tx.rollback().await?;
        }
        Ok(was_stopped)
    }
}
