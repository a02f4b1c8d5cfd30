//! What chores tell of themselves.

use pim_core::signal::{
    CounterFamily, Descriptor, GaugeFamily, Kind, LabelDescriptor, Purpose, SignalError, SignalRegistry,
};

use super::chore::ChoreName;

pim_core::closed_enum! {
    /// How a run of a chore ended.
    pub enum ChoreOutcome {
        /// Done.
        Done = "done",
        /// It could not be done; another try follows when the lease is over.
        Failed = "failed",
        /// Done, but another worker had taken it over meanwhile.
        Lost = "lost",
    }
}

const CHORE: LabelDescriptor = LabelDescriptor { name: "chore", values: &["idempotency_sweep", "audit_checkpoint"] };

/// Runs of chores.
pub const CHORE_RUNS: Descriptor = Descriptor {
    name: "pim_chore_runs",
    kind: Kind::Counter,
    unit: "",
    help: "Runs of chores in this program, by chore and outcome",
    labels: &[CHORE, LabelDescriptor { name: "outcome", values: &["done", "failed", "lost"] }],
    purpose: Purpose::Red,
    buckets: &[],
    owner: "pim-lab",
    runbook: "",
};

/// How late chores are.
pub const CHORE_OVERDUE: Descriptor = Descriptor {
    name: "pim_chore_overdue_seconds",
    kind: Kind::Gauge,
    unit: "seconds",
    help: "For how long a chore has been due without having been done; zero when it is not",
    labels: &[CHORE],
    purpose: Purpose::Use,
    buckets: &[],
    owner: "pim-lab",
    runbook: "",
};

/// What sweeps remove.
pub const SWEPT_RECORDS: Descriptor = Descriptor {
    name: "pim_chore_swept_records",
    kind: Kind::Counter,
    unit: "",
    help: "Idempotency records that sweeps in this program have removed",
    labels: &[],
    purpose: Purpose::Debug,
    buckets: &[],
    owner: "pim-lab",
    runbook: "",
};

/// Handles for the above.
#[derive(Clone, Debug)]
pub struct ChoreSignals {
    pub(super) runs: CounterFamily<(ChoreName, ChoreOutcome)>,
    pub(super) overdue: GaugeFamily<ChoreName>,
    pub(super) swept: CounterFamily<()>,
}

impl ChoreSignals {
    /// Binds them.
    ///
    /// # Errors
    /// [`SignalError`] when a descriptor does not fit its labels; a test keeps that from happening.
    pub fn bind(registry: &mut SignalRegistry) -> Result<Self, SignalError> {
        Ok(Self {
            runs: registry.counter(&CHORE_RUNS)?,
            overdue: registry.gauge(&CHORE_OVERDUE)?,
            swept: registry.counter(&SWEPT_RECORDS)?,
        })
    }
}
