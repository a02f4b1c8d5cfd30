//! How far consumers are: lag in offsets and seconds, held keys, stops. Positions are compared, rows never counted.

use std::future::Future;
use std::time::Duration;

use futures_util::future::join_all;
use pim_core::clock::Timestamp;
use pim_data::backend::{DbError, Row, Statement};
use tokio::time::{Instant, timeout_at};

use super::{ReadStore, StoreError};
use crate::bus::{BusError, Subscriber};
use crate::consumer::ledger;

/// How long a bus may take for a status.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

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
    /// read: its segment of the archive was moved away, or the bus does not answer this time.
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

/// What is known when a bus does not tell all.
pub(crate) struct Known {
    /// Every consumer, without the partitions of which the bus does not tell the end.
    pub(crate) consumers: Vec<ConsumerStatus>,
    /// Why it does not tell an end.
    pub(crate) endless: Option<BusError>,
    /// Why it does not tell, this time, how old a record is. That a record is lost is no such reason.
    pub(crate) ageless: Option<BusError>,
}

/// Where a consumer stands in a partition.
struct Place {
    consumer: usize,
    topic: String,
    partition: u16,
    next_offset: u64,
    moved_at: Timestamp,
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
    /// How far every consumer of this store is. All partitions are asked about at once.
    ///
    /// # Errors
    /// [`StatusError`] when store or bus do not answer within thirty seconds.
    pub async fn status(&self, bus: &dyn Subscriber) -> Result<Vec<ConsumerStatus>, StatusError> {
        let known = self.known_status(bus, Instant::now() + ANSWERED_WITHIN).await?;
        known.endless.map_or(Ok(known.consumers), |error| Err(error.into()))
    }

    /// The same, as far as the bus tells it until an instant.
    pub(crate) async fn known_status(&self, bus: &dyn Subscriber, until: Instant) -> Result<Known, StatusError> {
        let asked = [
            Statement::same(
                "SELECT c.consumer, c.topic, c.part, c.next_offset, v.version, v.state, c.at
                 FROM projection_checkpoint c LEFT JOIN projection_version v ON v.name = c.consumer
                 ORDER BY c.consumer, c.topic, c.part",
            ),
            Statement::same("SELECT consumer, count(*), min(since) FROM held_key GROUP BY consumer"),
            Statement::same("SELECT consumer, reason FROM consumer_stop"),
        ];
        let answers = self.ask_until(&asked, until).await?;
        let [positions, held, stops] = &answers[..] else { return Err(DbError::Closed.into()) };
        let (mut all, mut places): (Vec<ConsumerStatus>, Vec<Place>) = (Vec::new(), Vec::new());
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
            places.push(place(row, all.len() - 1)?);
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
        let mut known = Known { consumers: all, endless: None, ageless: None };
        let answers = join_all(places.iter().map(|place| self.partition(bus, place, until))).await;
        for (place, answer) in places.iter().zip(answers) {
            match answer {
                Ok((partition, ageless)) => {
                    known.ageless = known.ageless.or(ageless);
                    known.consumers[place.consumer].partitions.push(partition);
                }
                Err(error) => known.endless = known.endless.or(Some(error)),
            }
        }
        Ok(known)
    }

    /// Answers to questions of one snapshot, until an instant.
    pub(crate) async fn ask_until(&self, asked: &[Statement], until: Instant) -> Result<Vec<Vec<Row>>, DbError> {
        let asking = async { self.db().read_until(until).await?.snapshot(asked).await };
        timeout_at(until, asking).await.unwrap_or(Err(DbError::Unanswered))
    }

    /// One partition; and why the age of its oldest record is not known this time.
    async fn partition(
        &self,
        bus: &dyn Subscriber,
        place: &Place,
        until: Instant,
    ) -> Result<(PartitionStatus, Option<BusError>), BusError> {
        let (topic, partition, next_offset) = (place.topic.as_str(), place.partition, place.next_offset);
        let end_offset = in_time(until, bus.end_offset(topic, partition)).await?;
        let mut status = PartitionStatus {
            topic: topic.to_owned(),
            partition,
            next_offset,
            end_offset,
            lag: end_offset.saturating_sub(next_offset),
            lag_ms: Some(0),
            moved_at: place.moved_at,
        };
        if status.lag == 0 {
            return Ok((status, None));
        }
        // A consumer that stands before what cannot be read is what a status is asked for.
        let (lag_ms, ageless) = match in_time(until, bus.fetch(topic, partition, next_offset, 1)).await {
            Ok(oldest) => (Some(oldest.first().map_or(0, |record| self.age_ms(record.at))), None),
            Err(error) if is_lost(&error) => (None, None),
            Err(error) => (None, Some(error)),
        };
        status.lag_ms = lag_ms;
        Ok((status, ageless))
    }

    fn age_ms(&self, at: Timestamp) -> u64 {
        u64::try_from(self.clock().now().since(at).as_millis()).unwrap_or(u64::MAX)
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

fn place(row: &Row, consumer: usize) -> Result<Place, DbError> {
    Ok(Place {
        consumer,
        topic: row.text(1)?.to_owned(),
        partition: u16::try_from(row.count(2)?).unwrap_or(u16::MAX),
        next_offset: row.count(3)?,
        moved_at: row.time(6)?,
    })
}

/// Whether it is the record that is lost, and will not be there at the next look either.
const fn is_lost(error: &BusError) -> bool {
    matches!(error, BusError::SegmentMissing { .. } | BusError::Corrupt { .. })
}

async fn in_time<T>(until: Instant, answer: impl Future<Output = Result<T, BusError>>) -> Result<T, BusError> {
    timeout_at(until, answer).await.unwrap_or(Err(BusError::Log(DbError::Unanswered)))
}
