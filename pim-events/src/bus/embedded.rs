//! The embedded bus: a durable append-only log in a SQLite file of its own. No server.

mod archive;
mod write;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use pim_core::clock::Clock;
use pim_data::backend::{Db, DbError, DbSettings, Row, SqlPair, Statement};
use tokio::sync::watch;

use super::{Ack, BusError, NewRecord, Publisher, Record, Subscriber, standard_topics};
use crate::event::{HEADER_BYTES_MAX, Headers};
use crate::outbox::EVENT_BYTES_MAX;
use archive::Archive;
pub(crate) use archive::Keep;
use write::Queue;

/// Offsets of one log; a trillion records a partition.
const OFFSETS: u64 = 1 << 40;

/// How the embedded bus is made and what it takes.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BusSettings {
    /// Partitions of a topic that is made now, 1 to 1,024; a topic that exists keeps its own.
    pub partitions: u16,
    /// Most bytes of one record, headers included: at least those of the largest event, at most 64 MiB.
    pub record_bytes_max: usize,
    /// Topics besides the standard ones.
    pub topics: Vec<String>,
}

impl Default for BusSettings {
    fn default() -> Self {
        Self { partitions: 4, record_bytes_max: 1 << 20, topics: Vec::new() }
    }
}

/// A setting that is out of its bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bus setting {key} must be between {min} and {max}, not {found}")]
pub struct BusSettingsError {
    /// Which setting.
    pub key: &'static str,
    /// Its least value.
    pub min: u64,
    /// Its largest value.
    pub max: u64,
    /// What it is.
    pub found: u64,
}

/// Bytes of the largest event that a unit may append: a bus that takes less would have the relay hold its key.
const EVENT_MAX: u64 = (EVENT_BYTES_MAX + HEADER_BYTES_MAX) as u64;

impl BusSettings {
    fn check(&self) -> Result<(), BusSettingsError> {
        let bounds = [
            ("partitions", u64::from(self.partitions), 1, 1024),
            ("record_bytes_max", self.record_bytes_max as u64, EVENT_MAX, 64 << 20),
        ];
        let broken = bounds.into_iter().find(|(_, found, min, max)| found < min || found > max);
        broken.map_or(Ok(()), |(key, found, min, max)| Err(BusSettingsError { key, min, max, found }))
    }
}

/// One partition of one topic.
#[derive(Debug)]
struct Log {
    id: i64,
    part: u16,
    end: watch::Sender<u64>,
}

impl Log {
    /// Where a record of this log stands among all records.
    fn record_id(&self, offset: u64) -> i64 {
        self.id * i64::try_from(OFFSETS).unwrap_or(i64::MAX) + i64::try_from(offset.min(OFFSETS)).unwrap_or(i64::MAX)
    }
}

#[derive(Debug)]
struct Inner {
    db: Db,
    clock: Clock,
    topics: BTreeMap<String, Vec<Log>>,
    record_bytes_max: usize,
    queue: Queue,
    archive: Archive,
}

/// A durable log in a file. Clones share it; several processes may open the same file.
#[derive(Clone, Debug)]
pub struct EmbeddedBus(Arc<Inner>);

impl EmbeddedBus {
    /// The log's own file, to be backed up. Its archive lies beside it, in a folder called `bus.archive` for a `bus.db`.
    #[must_use]
    pub fn db(&self) -> &Db {
        &self.0.db
    }

    /// Opens or creates the log and its topics.
    ///
    /// # Errors
    /// [`BusError::Open`], [`BusError::Settings`].
    pub async fn open(path: &Path, settings: BusSettings, clock: Clock) -> Result<Self, BusError> {
        settings.check()?;
        let db =
            Db::open(path, DbSettings { readers_max: 8, ..DbSettings::default() }).await.map_err(BusError::Open)?;
        let topics = Self::enter_topics(&db, &settings).await.map_err(BusError::Open)?;
        let (queue, archive) = (Queue::default(), Archive::beside(path));
        Ok(Self(Arc::new(Inner { db, clock, topics, record_bytes_max: settings.record_bytes_max, queue, archive })))
    }

    async fn enter_topics(db: &Db, settings: &BusSettings) -> Result<BTreeMap<String, Vec<Log>>, DbError> {
        let mut tx = db.begin().await?;
        tx.script(include_str!("embedded/schema.sql")).await?;
        let known = tx.query(Statement::sqlite("SELECT DISTINCT topic FROM bus_log")).await?;
        let known: Vec<&str> = known.iter().map(|row| row.text(0)).collect::<Result<_, _>>()?;
        let wanted = standard_topics().into_iter().chain(settings.topics.iter().map(String::as_str));
        // A topic that exists keeps its partitions: keys must not move.
        for topic in wanted.filter(|topic| !known.contains(topic)) {
            for part in 0..settings.partitions {
                let enter = Statement::sqlite("INSERT INTO bus_log (topic, part) VALUES (?, ?) ON CONFLICT DO NOTHING");
                tx.query(enter.bind(topic).bind(part)).await?;
            }
        }
        let rows =
            tx.query(Statement::sqlite("SELECT topic, id, next_offset FROM bus_log ORDER BY topic, part")).await?;
        tx.commit().await?;
        let mut topics: BTreeMap<String, Vec<Log>> = BTreeMap::new();
        for row in rows {
            let end = watch::Sender::new(row.count(2)?);
            let logs = topics.entry(row.text(0)?.to_owned()).or_default();
            logs.push(Log { id: row.int(1)?, part: u16::try_from(logs.len()).unwrap_or(u16::MAX), end });
        }
        Ok(topics)
    }

    /// Every partition of every topic, with the offset that its next record gets.
    pub(crate) fn ends(&self) -> impl Iterator<Item = (&str, u16, u64)> {
        let topics = self.0.topics.iter();
        topics.flat_map(|(topic, logs)| logs.iter().map(|log| (topic.as_str(), log.part, *log.end.borrow())))
    }

    fn log(&self, topic: &str, partition: u16) -> Result<&Log, BusError> {
        let logs = self.0.topics.get(topic).ok_or(BusError::UnknownTopic)?;
        logs.get(usize::from(partition)).ok_or(BusError::UnknownTopic)
    }
}

#[async_trait]
impl Publisher for EmbeddedBus {
    async fn publish(&self, batch: Vec<NewRecord>) -> Result<Vec<Ack>, BusError> {
        self.0.publish(batch).await
    }
}

#[async_trait]
impl Subscriber for EmbeddedBus {
    async fn partitions(&self, topic: &str) -> Result<u16, BusError> {
        let logs = self.0.topics.get(topic).ok_or(BusError::UnknownTopic)?;
        Ok(u16::try_from(logs.len()).unwrap_or(u16::MAX))
    }

    async fn fetch(&self, topic: &str, partition: u16, offset: u64, max: usize) -> Result<Vec<Record>, BusError> {
        let log = self.log(topic, partition)?;
        let asked = self.0.db.query(records_from(log, offset, max)).await?;
        // Offsets are dense: a log that begins later than what is asked for has been moved to the archive up to there.
        if first_offset(asked.first())?.is_none_or(|first| first > offset)
            && let Some(rows) = self.0.archived(log, (partition, offset), max).await?
        {
            return rows.iter().map(|row| record(row, topic, partition)).collect();
        }
        asked.iter().map(|row| record(row, topic, partition)).collect()
    }

    async fn end_offset(&self, topic: &str, partition: u16) -> Result<u64, BusError> {
        let log = self.log(topic, partition)?;
        let rows =
            self.0.db.query(Statement::sqlite("SELECT next_offset FROM bus_log WHERE id = ?").bind(log.id)).await?;
        Ok(rows.first().ok_or(BusError::UnknownTopic)?.count(0).map_err(DbError::from)?)
    }

    fn arrivals(&self, topic: &str, partition: u16) -> watch::Receiver<u64> {
        self.log(topic, partition).map_or_else(|_| watch::Sender::new(0).subscribe(), |log| log.end.subscribe())
    }
}

/// Asks for at most `max` records of a log, in the live file or in one of its segments.
fn records_from(log: &Log, offset: u64, max: usize) -> Statement {
    // The bound is part of the text: SQLite prepares a statement with a bound LIMIT anew at every run.
    let text = format!(
        "SELECT id, key, at, headers, payload FROM bus_record WHERE id >= ? AND id < ? ORDER BY id LIMIT {max}"
    );
    Statement::of(SqlPair::generated(text)).bind(log.record_id(offset)).bind(log.record_id(OFFSETS))
}

fn first_offset(row: Option<&Row>) -> Result<Option<u64>, DbError> {
    Ok(row.map(|row| row.count(0)).transpose()?.map(|id| id % OFFSETS))
}

fn record(row: &Row, topic: &str, partition: u16) -> Result<Record, BusError> {
    let offset = row.count(0).map_err(DbError::from)? % OFFSETS;
    let headers: Headers = serde_json::from_str(row.text(3).map_err(DbError::from)?)
        .map_err(|_| BusError::Corrupt { partition, offset })?;
    Ok(Record {
        topic: topic.to_owned(),
        partition,
        offset,
        key: row.uuid(1).map_err(DbError::from)?,
        headers,
        payload: row.text(4).map_err(DbError::from)?.to_owned(),
        at: row.time(2).map_err(DbError::from)?,
    })
}
