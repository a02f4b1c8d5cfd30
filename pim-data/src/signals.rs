//! What this crate tells of itself.

mod servers;

pub use servers::{
    CALL_UNITS, ENDPOINTS_UNSOUND, FAILOVERS, NEARBY_READS, Nearby, PRIMARY_WAITS, Parked, REPLICA_LAG_SECONDS,
    TURN_SECONDS,
};

use std::time::Duration;

use pim_core::signal::{
    Catalog, CounterFamily, Descriptor, HistogramFamily, Kind, LATENCY_SECONDS, LabelDescriptor, Purpose, SignalError,
    SignalRegistry, Store,
};

use crate::cluster::CONTROL;
use crate::repository::ReadError;
use crate::unit::UnitError;

pim_core::closed_enum! {
    /// How a unit of work ended.
    pub enum UnitOutcome {
        /// It was committed.
        Committed = "committed",
        /// An equal submission had been answered before.
        Replayed = "replayed",
        /// Somebody else was faster.
        Conflict = "conflict",
        /// The fence refused it to the end.
        Fenced = "fenced",
        /// Its caller made a mistake or lacks a right.
        Refused = "refused",
        /// The deadline passed, or the database failed: nothing was written.
        Failed = "failed",
        /// The database did not say whether it committed, and nothing could tell.
        Unknown = "unknown",
    }
}

pim_core::closed_enum! {
    /// How a read ended.
    pub enum ReadOutcome {
        /// With an answer, which may be that nothing is there.
        Answered = "answered",
        /// The permit does not speak of it.
        Denied = "denied",
        /// The deadline passed, or the database failed.
        Failed = "failed",
    }
}

const STORE: LabelDescriptor = LabelDescriptor { name: "store", values: &["shard", "control"] };

/// Units of work by store and outcome.
pub const UNITS: Descriptor = Descriptor {
    name: "pim_data_units",
    kind: Kind::Counter,
    unit: "",
    help: "Units of work that ended, by store and outcome",
    labels: &[
        STORE,
        LabelDescriptor {
            name: "outcome",
            values: &["committed", "replayed", "conflict", "fenced", "refused", "failed", "unknown"],
        },
    ],
    purpose: Purpose::Red,
    buckets: &[],
    owner: "pim-data",
    runbook: "",
};

/// How long commits take.
pub const COMMIT_SECONDS: Descriptor = Descriptor {
    name: "pim_data_commit_seconds",
    kind: Kind::Histogram,
    unit: "seconds",
    help: "Time from commit to its answer, waiting for the writer included",
    labels: &[STORE],
    purpose: Purpose::Slo,
    buckets: LATENCY_SECONDS,
    owner: "pim-data",
    runbook: "",
};

/// Reads by store and outcome.
pub const READS: Descriptor = Descriptor {
    name: "pim_data_reads",
    kind: Kind::Counter,
    unit: "",
    help: "Reads that ended, by store and outcome",
    labels: &[STORE, LabelDescriptor { name: "outcome", values: &["answered", "denied", "failed"] }],
    purpose: Purpose::Red,
    buckets: &[],
    owner: "pim-data",
    runbook: "",
};

/// Refusals by the fence.
pub const FENCE_REFUSALS: Descriptor = Descriptor {
    name: "pim_data_fence_refusals",
    kind: Kind::Counter,
    unit: "",
    help: "Writes that a shard refused because their route was stale; most of them go on by the newer map",
    labels: &[],
    purpose: Purpose::Debug,
    buckets: &[],
    owner: "pim-data",
    runbook: "",
};

/// Everything that this crate emits.
pub const CATALOG: Catalog = Catalog {
    owner: "pim-data",
    descriptors: {
        let [nearby, lag, unsound, failovers, waits, units, turn] = servers::DESCRIPTORS;
        &[&UNITS, &COMMIT_SECONDS, &READS, &FENCE_REFUSALS, nearby, lag, unsound, failovers, waits, units, turn]
    },
};

/// The bound handles; goes into [`ClusterSettings`](crate::cluster::ClusterSettings).
#[derive(Clone, Debug, Default)]
pub struct DataSignals(Option<Bound>);

#[derive(Clone, Debug)]
struct Bound {
    units: CounterFamily<(Store, UnitOutcome)>,
    commit_seconds: HistogramFamily<Store>,
    reads: CounterFamily<(Store, ReadOutcome)>,
    fence_refusals: CounterFamily<()>,
    servers: servers::Bound,
}

impl DataSignals {
    /// Binds every signal of this crate.
    ///
    /// # Errors
    /// [`SignalError`] when they are bound twice.
    pub fn bind(registry: &mut SignalRegistry) -> Result<Self, SignalError> {
        Ok(Self(Some(Bound {
            units: registry.counter(&UNITS)?,
            commit_seconds: registry.histogram(&COMMIT_SECONDS)?,
            reads: registry.counter(&READS)?,
            fence_refusals: registry.counter(&FENCE_REFUSALS)?,
            servers: servers::Bound::bind(registry)?,
        })))
    }

    /// Tells nobody; for tests and tools.
    #[must_use]
    pub const fn unbound() -> Self {
        Self(None)
    }

    pub(crate) fn unit<T>(&self, shard: pim_core::shard::ShardId, outcome: &Result<T, UnitError>, took: Duration) {
        let Some(bound) = &self.0 else { return };
        let store = store_of(shard);
        bound.units.get((store, outcome_of(outcome.as_ref().err()))).inc();
        bound.commit_seconds.get(store).observe_duration(took);
    }

    pub(crate) fn fenced(&self) {
        if let Some(bound) = &self.0 {
            bound.fence_refusals.get(()).inc();
        }
    }

    pub(crate) fn read<T>(&self, shard: pim_core::shard::ShardId, outcome: &Result<T, ReadError>) {
        let Some(bound) = &self.0 else { return };
        let outcome = match outcome {
            Ok(_) => ReadOutcome::Answered,
            Err(ReadError::Denied { .. }) => ReadOutcome::Denied,
            Err(_) => ReadOutcome::Failed,
        };
        bound.reads.get((store_of(shard), outcome)).inc();
    }
}

fn store_of(shard: pim_core::shard::ShardId) -> Store {
    if shard == CONTROL { Store::Control } else { Store::Shard }
}

const fn outcome_of(error: Option<&UnitError>) -> UnitOutcome {
    match error {
        None => UnitOutcome::Committed,
        Some(UnitError::Replay(_)) => UnitOutcome::Replayed,
        Some(UnitError::Conflict | UnitError::Stale { .. }) => UnitOutcome::Conflict,
        Some(UnitError::Fence { .. }) => UnitOutcome::Fenced,
        Some(UnitError::Unknown(_)) => UnitOutcome::Unknown,
        // A file whose commit failed may have it even so.
        Some(UnitError::Database(error)) if error.is_ambiguous() => UnitOutcome::Unknown,
        Some(
            UnitError::Deadline
            | UnitError::Database(_)
            | UnitError::Directory(_)
            | UnitError::Decode(_)
            | UnitError::UnknownShard(_),
        ) => UnitOutcome::Failed,
        // Named one by one: whatever comes to be must say which it is.
        Some(
            UnitError::IdempotencyMismatch
            | UnitError::AlreadyExists { .. }
            | UnitError::MissingReference
            | UnitError::Denied { .. }
            | UnitError::UnknownEntity { .. }
            | UnitError::NotLoaded { .. }
            | UnitError::WrongHome { .. }
            | UnitError::ReferenceElsewhere { .. }
            | UnitError::NoEvent
            | UnitError::TooLarge { .. }
            | UnitError::Part(_)
            | UnitError::Given { .. },
        ) => UnitOutcome::Refused,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{UnitOutcome, outcome_of};
    use crate::backend::DbError;
    use crate::unit::UnitError;

    #[test]
    fn what_may_have_been_written_is_no_failure() {
        let outcome = |error: DbError| outcome_of(Some(&UnitError::Database(error)));
        assert_eq!(outcome(DbError::Commit(Arc::new(DbError::Closed))), UnitOutcome::Unknown);
        assert_eq!(outcome(DbError::Abandoned), UnitOutcome::Unknown);
        assert_eq!(outcome(DbError::Busy), UnitOutcome::Failed);
    }
}
