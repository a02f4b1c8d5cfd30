//! Rebuilding a read model beside the live one: building, catching up, verifying, live; the swap is one transaction.

mod compare;
mod copy;
mod green;
mod indexes;
mod pages;
mod turn;

use std::path::Path;
use std::sync::Arc;

use pim_data::backend::{DbError, Row, Statement, Transaction};

use super::runner::{ProjectionSink, engine};
use super::{Projection, ReadStore, StoreError};
use crate::bus::{BusError, Subscriber};
use crate::consumer::ledger::{self, HoldLimits, Place};
use crate::consumer::{ApplyError, ConsumerSettings, Engine, Step, Superseded, TooMany};
use crate::event::Registry;
use crate::signals::RebuildOutcome;
pub use compare::TableSummary;
use green::Green;
pub(super) use pages::plain;
use turn::Turn;

/// Records that the live model may still be ahead when the swap begins.
const TAIL_MAX: u64 = 2000;
/// Records that are applied at once, and how long that may take.
const BATCH_MAX: usize = 2000;
const APPLY_MS_MAX: u64 = 60_000;
/// Most keys that may have been rewound, and their events that wait for the second look at the log.
const REWOUND_MAX: u64 = 200_000;
const REWOUND_EVENTS_MAX: u64 = 10_000_000;
/// Records that are no events: those of years come at once, the dismissed ones too.
const DEAD_RECORDS_MAX: u64 = 1_000_000;
/// Most of their events that are remembered while the log is looked at, unless more is asked for.
const NOTED_MAX: usize = 2_000_000;
/// Rounds of catching up before a rebuild gives up: writers are faster than it is.
const ROUNDS_MAX: usize = 1000;

pim_core::closed_enum! {
    /// How far a rebuild is.
    pub enum RebuildState {
        /// The new tables follow the log from its start.
        Building = "building",
        /// They are near its end.
        CatchingUp = "catching_up",
        /// They stand where the live ones stand, and are compared.
        Verifying = "verifying",
        /// They are the live ones.
        Live = "live",
        /// The comparison failed; the live ones stay.
        Retired = "retired",
    }
}

/// What to do when the rebuilt tables differ from the live ones of the same version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Keep the live ones and report: something is wrong with one of them.
    MustEqual,
    /// Swap all the same: the difference is the reason for the rebuild.
    MayDiffer,
}

/// How a rebuild went.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RebuildReport {
    /// Which read model.
    pub name: &'static str,
    /// `live` when it was swapped in, `retired` when it was not.
    pub state: &'static str,
    /// Records read from the log.
    pub records: u64,
    /// Keys whose events a restore has numbered again: what it gave up is passed over.
    pub rewound: u64,
    /// How long the live model stood still for the swap, in milliseconds.
    pub pause_ms: u64,
    /// Whether the tables were equal.
    pub equal: bool,
    /// The tables as they were.
    pub live: Vec<TableSummary>,
    /// The tables as rebuilt.
    pub rebuilt: Vec<TableSummary>,
}

/// Why a rebuild did not come to its end. The live model is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RebuildError {
    /// The bus does not answer.
    #[error("read the log")]
    Bus(#[from] BusError),
    /// A store does not answer.
    #[error("use the read store")]
    Store(#[from] StoreError),
    /// The projection could not go on.
    #[error("apply the log")]
    Apply(#[from] ApplyError),
    /// Another rebuild of it is at work, here or in another process; when that has ended this may be tried again.
    #[error("read model {name} is being rebuilt already")]
    Running {
        /// Which one.
        name: &'static str,
    },
    /// Writers are faster than the rebuild.
    #[error("the rebuild does not catch up")]
    Behind,
    /// The rebuilt model was stopped, because it had to put aside more than it may: [`Rebuild::holding`] more helps.
    #[error("the rebuilt model holds more keys, events or unreadable records than it may")]
    Stopped,
    /// The log has more events of the keys that were rewound than are remembered at once: [`Rebuild::remembering`] more helps.
    #[error("the log has more than {most} events of the keys that were rewound; remember more of them")]
    Rewound {
        /// The bound.
        most: usize,
    },
    /// It would be rebuilt to nothing, as with a type that was mistyped, or not registered.
    #[error("{name} handles none of the event types that are registered for topic {topic}")]
    HandlesNothing {
        /// Which read model.
        name: &'static str,
        /// The topic that it follows.
        topic: &'static str,
    },
    /// The folder for the new tables cannot be used.
    #[error("make room for the new tables")]
    Folder(#[source] std::io::Error),
}

impl From<DbError> for RebuildError {
    fn from(error: DbError) -> Self {
        Self::Store(error.into())
    }
}

/// A rebuild of one read model from the log.
///
/// The new tables are filled in a file of their own, or on a server in a schema of their own, by the same code, while the
/// live ones go on. Where the log has events of before a restore that were given up by it, the new tables are filled twice:
/// at first only to find the keys that were rewound, then without what was given up. A live model that holds such keys is
/// expected to differ. Of two rebuilds of one read model at once the second is refused. Dropping the future of [`Rebuild::run`] cancels it at any point without a trace in the live model.
#[derive(Clone)]
#[must_use = "a rebuild does nothing until `run`"]
pub struct Rebuild {
    store: ReadStore,
    bus: Arc<dyn Subscriber>,
    registry: Registry,
    projection: Arc<dyn Projection>,
    verdict: Verdict,
    noted_max: usize,
    /// What the new tables' consumer may hold.
    limits: HoldLimits,
}

impl std::fmt::Debug for Rebuild {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rebuild").field("name", &self.projection.name()).finish_non_exhaustive()
    }
}

/// Tells how a rebuild has ended, also one that is dropped.
struct Ending<'a> {
    signals: &'a crate::signals::EventSignals,
    outcome: RebuildOutcome,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.signals.rebuilt(self.outcome);
    }
}

impl Rebuild {
    /// A rebuild of `projection` in `store`.
    pub fn new(
        store: &ReadStore,
        bus: Arc<dyn Subscriber>,
        registry: &Registry,
        projection: Arc<dyn Projection>,
        verdict: Verdict,
    ) -> Self {
        let (store, registry) = (store.clone(), registry.clone());
        let limits = HoldLimits { keys: REWOUND_MAX, events: REWOUND_EVENTS_MAX, records: DEAD_RECORDS_MAX };
        Self { store, bus, registry, projection, verdict, noted_max: NOTED_MAX, limits }
    }

    /// Lets the rebuilt model hold as much as a runner with these settings may, where that is more than the 200,000 keys,
    /// 10,000,000 events and 1,000,000 unreadable records that it may hold anyway. It is what helps against
    /// [`RebuildError::Stopped`].
    pub fn holding(mut self, settings: &ConsumerSettings) -> Self {
        self.limits = self.limits.max(settings.hold_limits());
        self
    }

    /// How many events of rewound keys are remembered at most while the log is looked at, some hundred bytes of memory
    /// each; 2,000,000 unless said. It is what helps against [`RebuildError::Rewound`].
    pub const fn remembering(mut self, most: usize) -> Self {
        self.noted_max = most;
        self
    }

    /// Builds, catches up, verifies and swaps. `progress` is told the state and the records read so far.
    ///
    /// # Errors
    /// [`RebuildError`]; the live model is as it was.
    pub async fn run(
        self,
        folder: &Path,
        mut progress: impl FnMut(RebuildState, u64) + Send,
    ) -> Result<RebuildReport, RebuildError> {
        let (name, topic) = (self.projection.name(), self.projection.topic());
        if !self.registry.has_any(topic, |event_type| self.projection.handles(event_type)) {
            return Err(RebuildError::HandlesNothing { name, topic });
        }
        self.store.refuse_handlers(self.projection.as_ref()).await?;
        let mut turn = Turn::take(&self.store, self.projection.name(), folder).await?;
        let signals = self.store.signals();
        let mut ending = Ending { signals, outcome: RebuildOutcome::Failed };
        let mut green = self.empty(folder).await?;
        let mut progress = |state, records| {
            signals.rebuild_progress(records);
            progress(state, records);
        };
        let outcome = self.fill_and_swap(&mut green, &mut turn, folder, &mut progress).await;
        ending.outcome = match &outcome {
            Ok(report) if report.state == "live" => RebuildOutcome::Live,
            Ok(_) => RebuildOutcome::Retired,
            Err(_) => RebuildOutcome::Failed,
        };
        drop(ending);
        green.remove().await;
        turn.end().await;
        outcome
    }

    async fn empty(&self, folder: &Path) -> Result<Green, RebuildError> {
        let green = Green::open(&self.store, self.projection.name(), folder).await?;
        green.store.install(self.projection.as_ref()).await?;
        Ok(green)
    }

    async fn fill_and_swap(
        &self,
        green: &mut Green,
        turn: &mut Turn,
        folder: &Path,
        progress: &mut (impl FnMut(RebuildState, u64) + Send),
    ) -> Result<RebuildReport, RebuildError> {
        let mut records = 0;
        progress(RebuildState::Building, records);
        self.fill(green, &mut records, progress).await?;
        let superseded = self.superseded(green).await?;
        if superseded.keys() > 0 {
            // Opening it anew empties the place of the old one.
            *green = self.empty(folder).await?;
            green.superseded = Arc::new(superseded);
            progress(RebuildState::Building, records);
            self.fill(green, &mut records, progress).await?;
        }
        let begun = std::time::Instant::now();
        // From here the live model stands still: its writer is ours until the swap commits.
        let mut tx = green.live.begin().await?;
        progress(RebuildState::Verifying, records);
        let outcome = match self.verify_and_copy(green, &mut tx, &mut records).await {
            // What was copied is only this one's work if nobody else has had a turn meanwhile.
            Ok(outcome) => turn.is_kept().await.map(|()| outcome),
            failed => failed,
        };
        let (state, live, rebuilt) = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                tx.rollback().await?;
                return Err(error);
            }
        };
        if state == RebuildState::Live {
            tx.commit().await?;
        } else {
            tx.rollback().await?;
        }
        progress(state, records);
        Ok(RebuildReport {
            name: self.projection.name(),
            state: pim_core::role::ClosedEnum::name(state),
            records,
            rewound: green.superseded.keys(),
            pause_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            equal: live == rebuilt,
            live,
            rebuilt,
        })
    }

    /// Follows the log until hardly anything is left.
    async fn fill(
        &self,
        green: &Green,
        records: &mut u64,
        progress: &mut (impl FnMut(RebuildState, u64) + Send),
    ) -> Result<(), RebuildError> {
        for _ in 0..ROUNDS_MAX {
            let upto = self.target().await?;
            self.follow(green, records, &upto).await?;
            progress(RebuildState::CatchingUp, *records);
            let moved = self.target().await?.into_iter().zip(upto).map(|(now, then)| now.saturating_sub(then));
            if moved.sum::<u64>() <= TAIL_MAX {
                return Ok(());
            }
        }
        Err(RebuildError::Behind)
    }

    /// What the log has of the keys that were found to be rewound.
    async fn superseded(&self, green: &Green) -> Result<Superseded, RebuildError> {
        let rows = green.store.query(self.asked_rewound()).await?;
        let keys = rows.iter().map(|row| row.uuid(0).map_err(DbError::from)).collect::<Result<Vec<_>, _>>()?;
        let mut superseded = Superseded::of(keys, self.noted_max);
        if superseded.keys() == 0 {
            return Ok(superseded);
        }
        let topic = self.projection.topic();
        for (partition, end) in (0..).zip(self.target().await?) {
            let mut at = 0;
            while at < end {
                let batch = self.bus.fetch(topic, partition, at, BATCH_MAX).await?;
                let Some(last) = batch.last() else { break };
                at = last.offset + 1;
                for event in batch.iter().filter_map(|record| record.event().ok()) {
                    superseded.note(&event).map_err(|TooMany| RebuildError::Rewound { most: self.noted_max })?;
                }
            }
        }
        Ok(superseded)
    }

    fn asked_rewound(&self) -> Statement {
        let asked = Statement::same("SELECT home_key FROM held_key WHERE consumer = ? AND reason = 'rewound'");
        asked.bind(self.projection.name())
    }

    /// Brings the new tables to the live position, compares, and copies them over unless they must not differ and do.
    async fn verify_and_copy(
        &self,
        green: &Green,
        tx: &mut Transaction,
        records: &mut u64,
    ) -> Result<(RebuildState, Vec<TableSummary>, Vec<TableSummary>), RebuildError> {
        self.halt(tx).await?;
        let upto = self.positions(&tx.query(self.asked_positions()).await?).await?;
        self.follow(green, records, &upto).await?;
        let same_version = self.is_stored(&tx.query(self.asked_version()).await?)?;
        let (engine, tables) = (green.live.engine(), self.projection.tables());
        let mut filled = green.store.db().begin().await?;
        let rebuilt = compare::summarise(&mut filled, engine, tables).await?;
        filled.rollback().await?;
        let live = if same_version { compare::summarise(tx, engine, tables).await? } else { Vec::new() };
        // What it tells of the keys that it holds as rewound was given up.
        let is_rewound = !tx.query(self.asked_rewound()).await?.is_empty();
        if same_version && self.verdict == Verdict::MustEqual && !is_rewound && live != rebuilt {
            return Ok((RebuildState::Retired, live, rebuilt));
        }
        self.copy(green, tx, same_version).await?;
        Ok((RebuildState::Live, live, rebuilt))
    }

    /// Makes the live model's workers wait until the transaction ends, also those that have not begun yet.
    async fn halt(&self, tx: &mut Transaction) -> Result<(), RebuildError> {
        let topic = self.projection.topic();
        for partition in 0..self.bus.partitions(topic).await? {
            let place = Place { consumer: self.projection.name(), topic: topic.to_owned(), partition };
            tx.hop(&ledger::enter(&place, self.store.clock().now())).await?;
            tx.query(ledger::lock(&place)).await?;
        }
        Ok(())
    }

    /// Where the live model stands in each partition.
    fn asked_positions(&self) -> Statement {
        let asked = Statement::same(
            "SELECT part, next_offset FROM projection_checkpoint WHERE consumer = ? AND topic = ? ORDER BY part",
        );
        asked.bind(self.projection.name()).bind(self.projection.topic())
    }

    fn asked_version(&self) -> Statement {
        Statement::same("SELECT version FROM projection_version WHERE name = ?").bind(self.projection.name())
    }

    /// Whether the live model is of this version.
    fn is_stored(&self, rows: &[Row]) -> Result<bool, DbError> {
        Ok(rows.first().map_or(Ok(0), |row| row.count(0))? == u64::from(self.projection.version()))
    }

    /// How far to follow. What is compared with the live model never goes past it, however far that is behind the log; a
    /// model of another version is compared with nothing, and goes to the end.
    async fn target(&self) -> Result<Vec<u64>, RebuildError> {
        if self.is_stored(&self.store.query(self.asked_version()).await?)? {
            return self.positions(&self.store.query(self.asked_positions()).await?).await;
        }
        let mut ends = Vec::new();
        for partition in 0..self.bus.partitions(self.projection.topic()).await? {
            ends.push(self.bus.end_offset(self.projection.topic(), partition).await?);
        }
        Ok(ends)
    }

    async fn positions(&self, rows: &[Row]) -> Result<Vec<u64>, RebuildError> {
        let partitions = self.bus.partitions(self.projection.topic()).await?;
        let mut all = vec![0; usize::from(partitions)];
        for row in rows {
            let partition = usize::try_from(row.count(0).map_err(DbError::from)?).unwrap_or(usize::MAX);
            if let Some(position) = all.get_mut(partition) {
                *position = row.count(1).map_err(DbError::from)?;
            }
        }
        Ok(all)
    }

    /// Follows the log, up to the given positions.
    async fn follow(&self, green: &Green, records: &mut u64, upto: &[u64]) -> Result<(), RebuildError> {
        let settings = ConsumerSettings {
            batch_max: BATCH_MAX,
            // What was parked in months is parked again within a minute; the bounds of what is held remain.
            parked_per_minute_max: u32::MAX,
            held_keys_max: self.limits.keys,
            held_events_max: self.limits.events,
            dead_records_max: self.limits.records,
            apply_ms_max: APPLY_MS_MAX,
            ..ConsumerSettings::default()
        };
        let mut engine = engine(&green.store, &self.registry, Arc::clone(&self.projection), &settings);
        engine.superseded = Arc::clone(&green.superseded);
        let engine = &engine;
        // Reading and decoding one partition goes on while the writer is busy with another.
        let following = (0..).zip(upto).map(|(partition, upto)| self.follow_partition(engine, partition, *upto));
        *records += futures_util::future::try_join_all(following).await?.into_iter().sum::<u64>();
        Ok(())
    }

    /// Follows one partition; answers how many records were read.
    async fn follow_partition(
        &self,
        engine: &Engine<ProjectionSink>,
        partition: u16,
        end: u64,
    ) -> Result<u64, RebuildError> {
        let topic = self.projection.topic();
        let place = Place { consumer: self.projection.name(), topic: topic.to_owned(), partition };
        let (mut at, mut read) = (engine.position(&place).await?, 0);
        while at < end {
            let max = usize::try_from(end - at).unwrap_or(usize::MAX).min(engine.settings.batch_max);
            let mut batch = self.bus.fetch(topic, partition, at, max).await?;
            batch.retain(|record| record.offset < end);
            if batch.is_empty() {
                break;
            }
            at = match engine.absorb(&place, at, &batch).await? {
                Step::Next(next) => next,
                Step::Lost | Step::Ended => engine.position(&place).await?,
                // Nobody else makes tables there.
                Step::Stopped | Step::Outdated => return Err(RebuildError::Stopped),
            };
            read += batch.len() as u64;
            // Each turn applies some of what is held for a gap that is filled, or ends the hold.
            while engine.drain(&place, || true).await? {}
        }
        Ok(read)
    }
}
