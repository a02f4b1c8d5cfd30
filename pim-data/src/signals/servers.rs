//! What this crate tells of the servers of its shards.

use std::time::Duration;

use pim_core::signal::{
    CounterFamily, Descriptor, GaugeFamily, HistogramFamily, Kind, LATENCY_SECONDS, LabelDescriptor, Purpose,
    SignalError, SignalRegistry,
};

use super::DataSignals;
use crate::cluster::EndpointFinding;

pim_core::closed_enum! {
    /// Who answered a read that a replica may answer.
    pub enum Nearby {
        /// A replica.
        Replica = "replica",
        /// A replica that had to catch up first.
        CaughtUp = "caught_up",
        /// The primary: every replica that was asked was behind the token.
        Stale = "stale",
        /// The primary: the replicas that were asked failed.
        Failed = "failed",
        /// The primary: no replica is fit to be asked.
        Absent = "absent",
    }
}

pim_core::closed_enum! {
    /// How a call's wait for a primary ended.
    pub enum Parked {
        /// With a primary.
        Resumed = "resumed",
        /// With its deadline.
        Expired = "expired",
        /// At once: too many wait already.
        Refused = "refused",
    }
}

/// Reads that a replica may answer.
pub const NEARBY_READS: Descriptor = Descriptor {
    name: "pim_data_nearby_reads",
    kind: Kind::Counter,
    unit: "",
    help: "Reads that a replica may answer, by who answered: a replica, or the primary and why",
    labels: &[LabelDescriptor { name: "answer", values: &["replica", "caught_up", "stale", "failed", "absent"] }],
    purpose: Purpose::Use,
    buckets: &[],
    owner: "pim-data",
    runbook: "",
};

/// How far replicas are behind.
pub const REPLICA_LAG_SECONDS: Descriptor = Descriptor {
    name: "pim_data_replica_lag_seconds",
    kind: Kind::Histogram,
    unit: "seconds",
    help: "How old the rows of replicas are at most, as each probe finds it",
    labels: &[],
    purpose: Purpose::Use,
    buckets: LATENCY_SECONDS,
    owner: "pim-data",
    runbook: "",
};

/// Servers with something wrong.
pub const ENDPOINTS_UNSOUND: Descriptor = Descriptor {
    name: "pim_data_endpoints_unsound",
    kind: Kind::Gauge,
    unit: "",
    help: "Servers of shards with something wrong, by what; no_standby: commits wait for a standby that is not there; degraded: they are acknowledged without one",
    labels: &[LabelDescriptor {
        name: "finding",
        values: &[
            "unreachable",
            "refused",
            "not_durable",
            "other_shard",
            "unknown_lag",
            "former_primary",
            "read_only",
            "no_standby",
            "degraded",
        ],
    }],
    purpose: Purpose::Use,
    buckets: &[],
    owner: "pim-data",
    runbook: "",
};

/// Changes of a shard's primary.
pub const FAILOVERS: Descriptor = Descriptor {
    name: "pim_data_failovers",
    kind: Kind::Counter,
    unit: "",
    help: "Changes of a shard's primary that this program has noticed and followed",
    labels: &[],
    purpose: Purpose::Red,
    buckets: &[],
    owner: "pim-data",
    runbook: "",
};

/// Calls that waited for a primary.
pub const PRIMARY_WAITS: Descriptor = Descriptor {
    name: "pim_data_primary_waits",
    kind: Kind::Counter,
    unit: "",
    help: "Calls that waited for a primary that takes them, by how that ended",
    labels: &[LabelDescriptor { name: "outcome", values: &["resumed", "expired", "refused"] }],
    purpose: Purpose::Red,
    buckets: &[],
    owner: "pim-data",
    runbook: "",
};

/// How full calls are.
pub const CALL_UNITS: Descriptor = Descriptor {
    name: "pim_data_call_units",
    kind: Kind::Histogram,
    unit: "",
    help: "Units of one row that a call took to a server, by itself or together; what was refused together is taken again",
    labels: &[],
    purpose: Purpose::Use,
    buckets: &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    owner: "pim-data",
    runbook: "",
};

/// How long units wait to be sent.
pub const TURN_SECONDS: Descriptor = Descriptor {
    name: "pim_data_turn_seconds",
    kind: Kind::Histogram,
    unit: "seconds",
    help: "How long a unit of one row waited until a call took it to a server, each time: for a place, for others, for a connection",
    labels: &[],
    purpose: Purpose::Use,
    buckets: LATENCY_SECONDS,
    owner: "pim-data",
    runbook: "",
};

pub(super) const DESCRIPTORS: [&Descriptor; 7] =
    [&NEARBY_READS, &REPLICA_LAG_SECONDS, &ENDPOINTS_UNSOUND, &FAILOVERS, &PRIMARY_WAITS, &CALL_UNITS, &TURN_SECONDS];

#[derive(Clone, Debug)]
pub(super) struct Bound {
    nearby_reads: CounterFamily<Nearby>,
    replica_lag_seconds: HistogramFamily<()>,
    endpoints_unsound: GaugeFamily<EndpointFinding>,
    failovers: CounterFamily<()>,
    primary_waits: CounterFamily<Parked>,
    call_units: HistogramFamily<()>,
    turn_seconds: HistogramFamily<()>,
}

impl Bound {
    pub(super) fn bind(registry: &mut SignalRegistry) -> Result<Self, SignalError> {
        Ok(Self {
            nearby_reads: registry.counter(&NEARBY_READS)?,
            replica_lag_seconds: registry.histogram(&REPLICA_LAG_SECONDS)?,
            endpoints_unsound: registry.gauge(&ENDPOINTS_UNSOUND)?,
            failovers: registry.counter(&FAILOVERS)?,
            primary_waits: registry.counter(&PRIMARY_WAITS)?,
            call_units: registry.histogram(&CALL_UNITS)?,
            turn_seconds: registry.histogram(&TURN_SECONDS)?,
        })
    }
}

impl DataSignals {
    fn servers(&self) -> Option<&Bound> {
        self.0.as_ref().map(|bound| &bound.servers)
    }

    pub(crate) fn nearby(&self, answer: Nearby) {
        if let Some(bound) = self.servers() {
            bound.nearby_reads.get(answer).inc();
        }
    }

    pub(crate) fn lag(&self, lag: Duration) {
        if let Some(bound) = self.servers() {
            bound.replica_lag_seconds.get(()).observe_duration(lag);
        }
    }

    /// What is found of one server from now on, and what was before.
    pub(crate) fn endpoint(&self, before: Option<EndpointFinding>, after: Option<EndpointFinding>) {
        let Some(bound) = self.servers().filter(|_| before != after) else { return };
        if let Some(before) = before {
            bound.endpoints_unsound.get(before).dec();
        }
        if let Some(after) = after {
            bound.endpoints_unsound.get(after).inc();
        }
    }

    pub(crate) fn failed_over(&self) {
        if let Some(bound) = self.servers() {
            bound.failovers.get(()).inc();
        }
    }

    pub(crate) fn parked(&self, outcome: Parked) {
        if let Some(bound) = self.servers() {
            bound.primary_waits.get(outcome).inc();
        }
    }

    /// A call takes units that waited so long.
    pub(crate) fn called(&self, waits: impl ExactSizeIterator<Item = Duration>) {
        let Some(bound) = self.servers() else { return };
        // At most eight.
        bound.call_units.get(()).observe(f64::from(u8::try_from(waits.len()).unwrap_or(u8::MAX)));
        for wait in waits {
            bound.turn_seconds.get(()).observe_duration(wait);
        }
    }
}
