//! What this crate tells of itself. Counters and histograms where things happen; gauges by a [`Watch`] that looks at the stores.

mod catalog;
mod watch;

pub use catalog::*;
pub use watch::{Watch, WatchSettings};

use std::sync::Arc;
use std::time::Duration;

use pim_core::shard::ShardId;
use pim_core::signal::{CounterFamily, GaugeFamily, HistogramFamily, SignalError, SignalRegistry};

use crate::consumer::HoldReason;
use crate::event::Origin;

pim_core::closed_enum! {
    /// An outbox. Shards from 15 on share one series, which shows the worst of them.
    pub enum SourceLabel {
        /// The control database.
        Control = "control",
        /// Shard 0.
        Shard0 = "shard_0",
        /// Shard 1.
        Shard1 = "shard_1",
        /// Shard 2.
        Shard2 = "shard_2",
        /// Shard 3.
        Shard3 = "shard_3",
        /// Shard 4.
        Shard4 = "shard_4",
        /// Shard 5.
        Shard5 = "shard_5",
        /// Shard 6.
        Shard6 = "shard_6",
        /// Shard 7.
        Shard7 = "shard_7",
        /// Shard 8.
        Shard8 = "shard_8",
        /// Shard 9.
        Shard9 = "shard_9",
        /// Shard 10.
        Shard10 = "shard_10",
        /// Shard 11.
        Shard11 = "shard_11",
        /// Shard 12.
        Shard12 = "shard_12",
        /// Shard 13.
        Shard13 = "shard_13",
        /// Shard 14.
        Shard14 = "shard_14",
        /// Any other shard.
        ShardOther = "shard_other",
    }
}

pim_core::closed_enum! {
    /// What happened to a lease.
    pub enum LeaseChange {
        /// A relay took it.
        Taken = "taken",
        /// A relay found that another one has it by now.
        Lost = "lost",
    }
}

pim_core::closed_enum! {
    /// Who consumes. Which one it is, status and log lines say.
    pub enum ConsumerKind {
        /// A read model.
        Projection = "projection",
        /// A command that events drive.
        Command = "command",
    }
}

pim_core::closed_enum! {
    /// What a consumer did with a record.
    pub enum RecordFate {
        /// It was applied, from the bus or from a held sequence.
        Applied = "applied",
        /// Its type does not matter to the consumer; the head moved.
        Ignored = "ignored",
        /// It had been applied before.
        Duplicate = "duplicate",
        /// One before it is missing: held.
        Gap = "gap",
        /// Its numbering contradicts what was applied: held.
        Rewound = "rewound",
        /// It could not be applied: its key was parked.
        Parked = "parked",
        /// It stands behind one that is parked or being applied again: held.
        Behind = "behind",
        /// It is no event: put aside.
        Unreadable = "unreadable",
    }
}

pim_core::closed_enum! {
    /// How a rebuild ended.
    pub enum RebuildOutcome {
        /// The rebuilt tables took the place of the live ones.
        Live = "live",
        /// They differed, and the live ones stayed.
        Retired = "retired",
        /// It did not come to its end.
        Failed = "failed",
    }
}

pim_core::closed_enum! {
    /// What a sweep removed rows from.
    pub enum Swept {
        /// An outbox.
        Outbox = "outbox",
        /// The live log; the archive has them.
        Log = "log",
    }
}

impl From<Origin> for SourceLabel {
    fn from(origin: Origin) -> Self {
        use pim_core::role::ClosedEnum as _;
        match origin {
            Origin::Control => Self::Control,
            Origin::Shard(ShardId(number)) => {
                let shards = &Self::ALL[1..];
                shards.get(usize::from(number)).copied().unwrap_or(Self::ShardOther)
            }
        }
    }
}

/// The bound handles; goes to relays, read stores, retention and watches. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct EventSignals(Option<Arc<Bound>>);

#[derive(Debug)]
struct Bound {
    oldest_unsent: GaugeFamily<SourceLabel>,
    backlog: GaugeFamily<SourceLabel>,
    held: GaugeFamily<SourceLabel>,
    publish_seconds: HistogramFamily<()>,
    lease_changes: CounterFamily<LeaseChange>,
    records: CounterFamily<(ConsumerKind, RecordFate)>,
    apply_seconds: HistogramFamily<ConsumerKind>,
    lag_records: GaugeFamily<ConsumerKind>,
    lag_seconds: GaugeFamily<ConsumerKind>,
    parked_keys: GaugeFamily<HoldReason>,
    parked_oldest: GaugeFamily<HoldReason>,
    dead_letters: GaugeFamily<()>,
    dead_records: GaugeFamily<()>,
    dead_oldest: GaugeFamily<()>,
    stopped: GaugeFamily<()>,
    rebuild_records: GaugeFamily<()>,
    rebuilds: CounterFamily<RebuildOutcome>,
    swept_rows: CounterFamily<Swept>,
    sweep_failures: CounterFamily<Swept>,
}

impl EventSignals {
    /// Binds every signal of this crate.
    ///
    /// # Errors
    /// [`SignalError`] when they are bound twice.
    pub fn bind(registry: &mut SignalRegistry) -> Result<Self, SignalError> {
        Ok(Self(Some(Arc::new(Bound {
            oldest_unsent: registry.gauge(&OUTBOX_OLDEST_UNSENT_SECONDS)?,
            backlog: registry.gauge(&OUTBOX_BACKLOG)?,
            held: registry.gauge(&OUTBOX_HELD)?,
            publish_seconds: registry.histogram(&PUBLISH_SECONDS)?,
            lease_changes: registry.counter(&LEASE_CHANGES)?,
            records: registry.counter(&RECORDS)?,
            apply_seconds: registry.histogram(&APPLY_SECONDS)?,
            lag_records: registry.gauge(&LAG_RECORDS)?,
            lag_seconds: registry.gauge(&LAG_SECONDS)?,
            parked_keys: registry.gauge(&PARKED_KEYS)?,
            parked_oldest: registry.gauge(&PARKED_OLDEST_SECONDS)?,
            dead_letters: registry.gauge(&DEAD_LETTERS)?,
            dead_records: registry.gauge(&DEAD_RECORDS)?,
            dead_oldest: registry.gauge(&DEAD_OLDEST_SECONDS)?,
            stopped: registry.gauge(&CONSUMERS_STOPPED)?,
            rebuild_records: registry.gauge(&REBUILD_RECORDS)?,
            rebuilds: registry.counter(&REBUILDS)?,
            swept_rows: registry.counter(&SWEPT_ROWS)?,
            sweep_failures: registry.counter(&SWEEP_FAILURES)?,
        }))))
    }

    /// Tells nobody; for tests and tools.
    #[must_use]
    pub const fn unbound() -> Self {
        Self(None)
    }

    pub(crate) fn published(&self, since_commit: Duration) {
        if let Some(bound) = &self.0 {
            bound.publish_seconds.get(()).observe_duration(since_commit);
        }
    }

    pub(crate) fn lease(&self, change: LeaseChange) {
        if let Some(bound) = &self.0 {
            bound.lease_changes.get(change).inc();
        }
    }

    pub(crate) fn records(&self, kind: ConsumerKind, fate: RecordFate, count: u64) {
        if let Some(bound) = &self.0 {
            bound.records.get((kind, fate)).inc_by(count);
        }
    }

    pub(crate) fn applied(&self, kind: ConsumerKind, since_commit: Duration) {
        if let Some(bound) = &self.0 {
            bound.apply_seconds.get(kind).observe_duration(since_commit);
        }
    }

    pub(crate) fn rebuild_progress(&self, records: u64) {
        if let Some(bound) = &self.0 {
            bound.rebuild_records.get(()).set(whole(records));
        }
    }

    pub(crate) fn rebuilt(&self, outcome: RebuildOutcome) {
        if let Some(bound) = &self.0 {
            bound.rebuilds.get(outcome).inc();
            bound.rebuild_records.get(()).set(0);
        }
    }

    pub(crate) fn swept(&self, what: Swept, rows: u64, failures: u64) {
        let Some(bound) = &self.0 else { return };
        bound.swept_rows.get(what).inc_by(rows);
        bound.sweep_failures.get(what).inc_by(failures);
    }
}

/// A count as gauges take it.
fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
