//! Retention: outboxes forget what is on the bus and old, the embedded log moves what everybody has read into its archive.
//!
//! | what | goes when | and then |
//! | --- | --- | --- |
//! | outbox event | the cursor has passed it, it is not held, it is older than `outbox_age_secs` | the bus has it |
//! | bus record | every consumer has passed it, and it is older than `log_age_secs` or the partition is above `log_records_max` | it is in a segment of the archive, and read from there by the same offset |
//! | archive segment | never by itself | the archive is what a rebuild reads; its files may be moved away, and a read of them then names what is missing |
//! | head of a key | never | one row a key and consumer |
//!
//! A late consumer, a new one and a rebuild read archive and live log as one: the offsets are the same.

use std::future::Future;
use std::time::Duration;

use pim_core::clock::{Clock, Timestamp};
use pim_data::backend::{DbError, Statement};
use serde::{Deserialize, Serialize};

use crate::bus::{BusError, EmbeddedBus, Keep, Subscriber as _};
use crate::outbox::Sources;
use crate::pace::{GoesOn, Stop, sleep, until};
use crate::projection::{ReadStore, StoreError};
use crate::signals::{EventSignals, Swept};

/// What is kept, for how long, and how gently the rest goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSettings {
    /// Pause between two sweeps, in milliseconds: 100 to a day.
    pub pause_ms: u64,
    /// How long an outbox keeps what is on the bus, in seconds: up to ten years.
    pub outbox_age_secs: u64,
    /// How long the live log keeps what everybody has read, in seconds: up to ten years.
    pub log_age_secs: u64,
    /// Records of a partition above which age no longer matters: a segment at least.
    pub log_records_max: u64,
    /// Records of one segment of the archive: 1 to ten million.
    pub segment_records: u64,
    /// Rows that one transaction moves or removes: 1 to 5,000.
    pub batch_max: usize,
}

impl Default for RetentionSettings {
    fn default() -> Self {
        Self {
            pause_ms: 60_000,
            outbox_age_secs: 24 * 3600,
            log_age_secs: 7 * 24 * 3600,
            log_records_max: 1_000_000,
            segment_records: 50_000,
            batch_max: 500,
        }
    }
}

/// A setting that is out of its bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("retention setting {key} must be between {min} and {max}, not {found}")]
pub struct RetentionSettingsError {
    /// Which setting.
    pub key: &'static str,
    /// Its least value.
    pub min: u64,
    /// Its largest value.
    pub max: u64,
    /// What it is.
    pub found: u64,
}

/// What a sweep could not do; it has gone on with everything else, and the next one tries again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RetentionError {
    /// An outbox does not answer.
    #[error("sweep an outbox")]
    Outbox(#[source] DbError),
    /// Log or archive do not answer.
    #[error("archive the log")]
    Bus(#[from] BusError),
    /// The consumers' positions cannot be read.
    #[error("read the consumers' positions")]
    Store(#[from] StoreError),
}

impl RetentionError {
    const fn code(&self) -> &'static str {
        match self {
            Self::Outbox(_) => "outbox",
            Self::Bus(BusError::Folder(_)) => "archive_folder",
            Self::Bus(_) => "bus",
            Self::Store(_) => "store",
        }
    }
}

const TEN_YEARS_SECS: u64 = 10 * 366 * 24 * 3600;
const DAY_MS: u64 = 24 * 3_600_000;

impl RetentionSettings {
    /// Refuses what is out of its bounds, for programs that want to know before they open anything.
    ///
    /// # Errors
    /// [`RetentionSettingsError`] names the setting and its bounds.
    pub fn check(&self) -> Result<(), RetentionSettingsError> {
        let bounds = [
            ("pause_ms", self.pause_ms, 100, DAY_MS),
            ("outbox_age_secs", self.outbox_age_secs, 0, TEN_YEARS_SECS),
            ("log_age_secs", self.log_age_secs, 0, TEN_YEARS_SECS),
            ("segment_records", self.segment_records, 1, 10_000_000),
            ("log_records_max", self.log_records_max, self.segment_records, u64::MAX),
            ("batch_max", self.batch_max as u64, 1, 5_000),
        ];
        let broken = bounds.into_iter().find(|(_, found, min, max)| found < min || found > max);
        broken.map_or(Ok(()), |(key, found, min, max)| Err(RetentionSettingsError { key, min, max, found }))
    }
}

enum Subject {
    Outboxes(Sources),
    Log { bus: EmbeddedBus, store: Box<ReadStore> },
}

impl Subject {
    const fn label(&self) -> Swept {
        match self {
            Self::Outboxes(_) => Swept::Outbox,
            Self::Log { .. } => Swept::Log,
        }
    }
}

/// What came of a sweep.
#[derive(Default)]
struct Sweep {
    removed: u64,
    failures: u64,
    /// The first of them.
    failed: Option<RetentionError>,
}

impl Sweep {
    fn take(&mut self, part: Result<u64, RetentionError>, tell: impl FnOnce(&'static str)) {
        match part {
            Ok(removed) => self.removed += removed,
            Err(error) => {
                tell(error.code());
                self.failures += 1;
                self.failed = self.failed.take().or(Some(error));
            }
        }
    }
}

/// Sweeps from time to time. Several sweepers over the same stores do no harm.
#[must_use = "retention does nothing until `run`"]
pub struct Retention {
    subject: Subject,
    settings: RetentionSettings,
    clock: Clock,
    signals: EventSignals,
}

impl std::fmt::Debug for Retention {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Retention").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Retention {
    /// Sweeps outboxes: runs beside a relay.
    ///
    /// # Errors
    /// [`RetentionSettingsError`] names the setting and its bounds.
    pub fn of_outboxes(
        sources: impl Into<Sources>,
        clock: Clock,
        settings: &RetentionSettings,
    ) -> Result<Self, RetentionSettingsError> {
        settings.check()?;
        Ok(Self {
            subject: Subject::Outboxes(sources.into()),
            settings: settings.clone(),
            clock,
            signals: EventSignals::unbound(),
        })
    }

    /// Sweeps the log, of which `store` knows the consumers: runs beside projections.
    ///
    /// # Errors
    /// [`RetentionSettingsError`] names the setting and its bounds.
    pub fn of_log(
        bus: &EmbeddedBus,
        store: &ReadStore,
        settings: &RetentionSettings,
    ) -> Result<Self, RetentionSettingsError> {
        settings.check()?;
        let (subject, clock) =
            (Subject::Log { bus: bus.clone(), store: Box::new(store.clone()) }, store.clock().clone());
        Ok(Self { subject, settings: settings.clone(), clock, signals: store.signals().clone() })
    }

    /// Tells `signals` what goes.
    pub fn with_signals(mut self, signals: &EventSignals) -> Self {
        self.signals = signals.clone();
        self
    }

    /// Sweeps once; answers how many rows left. An outbox or a partition that fails keeps nothing old in the others.
    ///
    /// # Errors
    /// [`RetentionError`], the first of them; what could go is gone.
    pub async fn sweep(&self) -> Result<u64, RetentionError> {
        let Sweep { removed, failed, .. } = self.sweep_while(&|| true).await;
        failed.map_or(Ok(removed), Err)
    }

    /// As [`Retention::sweep`], as long as it is to go on: a sweep behind a long pause moves millions of rows.
    async fn sweep_while(&self, goes_on: GoesOn<'_>) -> Sweep {
        let mut sweep = Sweep::default();
        match &self.subject {
            Subject::Outboxes(sources) => {
                let before = self.clock.now().minus(Duration::from_secs(self.settings.outbox_age_secs));
                for source in sources.now() {
                    let pruned = source.prune(before, self.settings.batch_max, goes_on).await;
                    let shard_id = source.origin.shard();
                    let tell = |code| pim_core::warn!("retention.waits", shard_id = shard_id, code = code);
                    sweep.take(pruned.map_err(RetentionError::Outbox), tell);
                }
            }
            Subject::Log { bus, store } => {
                let since = self.clock.now().minus(Duration::from_secs(self.settings.log_age_secs));
                for (topic, partitions) in bus.topics() {
                    for partition in 0..partitions {
                        let archived = self.archive((bus, store), (topic, partition), since, goes_on).await;
                        let tell = |code| pim_core::warn!("retention.waits", partition = partition, code = code);
                        sweep.take(archived, tell);
                    }
                }
            }
        }
        sweep
    }

    async fn archive(
        &self,
        (bus, store): (&EmbeddedBus, &ReadStore),
        (topic, partition): (&str, u16),
        since: Timestamp,
        goes_on: GoesOn<'_>,
    ) -> Result<u64, RetentionError> {
        let passed = match store.passed_by_all(topic, partition).await? {
            Some(passed) => passed,
            // A topic without consumers keeps nothing back.
            None => bus.end_offset(topic, partition).await?,
        };
        let keep = Keep {
            passed,
            since,
            records_max: self.settings.log_records_max,
            segment_records: self.settings.segment_records,
            batch_max: self.settings.batch_max,
        };
        Ok(bus.archive(topic, partition, &keep, goes_on).await?)
    }

    /// Sweeps until `shutdown`; then ends after the page in hand. What fails is logged, and tried again by the next sweep.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (stopper, mut stop) = Stop::pair();
        let sweeping = async {
            while !stop.is_set() {
                let Sweep { removed, failures, .. } = self.sweep_while(&|| !stop.is_set()).await;
                self.signals.swept(self.subject.label(), removed, failures);
                sleep(Duration::from_millis(self.settings.pause_ms), &mut stop).await;
            }
        };
        until(shutdown, stopper, sweeping).await;
    }
}

/// What goes with a consumer. The positions first: whoever changes heads or holds has moved or locked one of them.
const FORGET: [&str; 5] = [
    "DELETE FROM projection_checkpoint WHERE consumer = ? RETURNING 1",
    "DELETE FROM held_event WHERE consumer = ?",
    "DELETE FROM held_key WHERE consumer = ?",
    "DELETE FROM dead_record WHERE consumer = ?",
    "DELETE FROM consumer_stop WHERE consumer = ?",
];

impl ReadStore {
    /// Forgets a consumer that no program runs any more, so that it holds back no log: where it is, what it holds and why it
    /// stopped. False when it is not known.
    ///
    /// Its heads and the rows of its read model stay. Should it run again it begins at the start of the log, passes over what it
    /// has applied, and applies what it held; a rebuild is not needed for that.
    ///
    /// # Errors
    /// [`StoreError::Db`].
    pub async fn forget(&self, consumer: &str) -> Result<bool, StoreError> {
        let forget = FORGET.map(|text| Statement::same(text).bind(consumer));
        let (tx, answers) = self.db().begin_with(&forget).await?;
        tx.commit().await?;
        Ok(answers.first().is_some_and(|rows| !rows.is_empty()))
    }

    /// Frees the name of a consumer that no program runs any more, for a read model or a command handler: as [`ReadStore::forget`], and
    /// its heads and its version as well. Its tables stay, and are the program's own to drop. False when no read model had the name.
    ///
    /// Whoever has the name next begins at the start of the log.
    ///
    /// # Errors
    /// [`StoreError::Db`].
    pub async fn retire(&self, consumer: &str) -> Result<bool, StoreError> {
        let rest =
            ["DELETE FROM inbox_head WHERE consumer = ?", "DELETE FROM projection_version WHERE name = ? RETURNING 1"];
        let retire: Vec<_> = FORGET.into_iter().chain(rest).map(|text| Statement::same(text).bind(consumer)).collect();
        let (tx, answers) = self.db().begin_with(&retire).await?;
        tx.commit().await?;
        Ok(answers.last().is_some_and(|rows| !rows.is_empty()))
    }

    /// The first offset of a partition that some consumer of this store has still to read; `None` without consumers.
    pub(crate) async fn passed_by_all(&self, topic: &str, partition: u16) -> Result<Option<u64>, StoreError> {
        // A consumer that has not begun with this partition is at its start.
        let asked = Statement::same(
            "SELECT min(coalesce(c.next_offset, 0))
             FROM (SELECT DISTINCT consumer FROM projection_checkpoint WHERE topic = ?) k
             LEFT JOIN projection_checkpoint c ON c.consumer = k.consumer AND c.topic = ? AND c.part = ?
             HAVING count(*) > 0",
        );
        let rows = self.query(asked.bind(topic).bind(topic).bind(partition)).await?;
        Ok(rows.first().map(|row| row.count(0)).transpose().map_err(DbError::from)?)
    }
}
