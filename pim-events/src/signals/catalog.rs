//! The declarations, each with what it is for.

use pim_core::signal::{Catalog, Descriptor, Kind, LATENCY_SECONDS, LabelDescriptor, Purpose};

const SOURCE: LabelDescriptor = LabelDescriptor {
    name: "source",
    values: &[
        "control",
        "shard_0",
        "shard_1",
        "shard_2",
        "shard_3",
        "shard_4",
        "shard_5",
        "shard_6",
        "shard_7",
        "shard_8",
        "shard_9",
        "shard_10",
        "shard_11",
        "shard_12",
        "shard_13",
        "shard_14",
        "shard_other",
    ],
};
const KIND: LabelDescriptor = LabelDescriptor { name: "kind", values: &["projection", "command"] };
const FATE: LabelDescriptor = LabelDescriptor {
    name: "fate",
    values: &["applied", "ignored", "duplicate", "gap", "rewound", "parked", "behind", "unreadable"],
};
const REASON: LabelDescriptor = LabelDescriptor { name: "reason", values: &["poison", "gap", "rewound", "draining"] };
const CHANGE: LabelDescriptor = LabelDescriptor { name: "change", values: &["taken", "lost"] };
const OUTCOME: LabelDescriptor = LabelDescriptor { name: "outcome", values: &["live", "retired", "failed"] };
const SWEPT: LabelDescriptor = LabelDescriptor { name: "from", values: &["outbox", "log"] };

/// A signal of this crate.
const fn signal(
    name: &'static str,
    kind: Kind,
    unit: &'static str,
    help: &'static str,
    labels: &'static [LabelDescriptor],
    purpose: Purpose,
) -> Descriptor {
    let buckets = if matches!(kind, Kind::Histogram) { LATENCY_SECONDS } else { &[] };
    Descriptor { name, kind, unit, help, labels, purpose, buckets, owner: "pim-events", runbook: "" }
}

/// Age of the oldest event that is not on the bus, held ones and unleased outboxes included; zero when there is none.
pub const OUTBOX_OLDEST_UNSENT_SECONDS: Descriptor = signal(
    "pim_events_outbox_oldest_unsent_seconds",
    Kind::Gauge,
    "seconds",
    "Age of the oldest event that is not on the bus, held ones and unleased outboxes included; zero when there is none",
    &[SOURCE],
    Purpose::Use,
);

/// Events behind the cursor.
pub const OUTBOX_BACKLOG: Descriptor =
    signal("pim_events_outbox_backlog", Kind::Gauge, "", "Events behind the cursor", &[SOURCE], Purpose::Use);

/// Events that the bus refused or the relay cannot read, with their successors.
pub const OUTBOX_HELD: Descriptor = signal(
    "pim_events_outbox_held",
    Kind::Gauge,
    "",
    "Events that the bus refused or the relay cannot read, with their successors",
    &[SOURCE],
    Purpose::Use,
);

/// Time from an event's commit to the bus's acknowledgement.
pub const PUBLISH_SECONDS: Descriptor = signal(
    "pim_events_publish_seconds",
    Kind::Histogram,
    "seconds",
    "Time from an event's commit to the bus's acknowledgement",
    &[],
    Purpose::Slo,
);

/// Leases of outboxes that were taken, or found to be another relay's.
pub const LEASE_CHANGES: Descriptor = signal(
    "pim_events_lease_changes",
    Kind::Counter,
    "",
    "Leases of outboxes that were taken, or found to be another relay's",
    &[CHANGE],
    Purpose::Use,
);

/// Records that consumers took from the bus, by what became of them.
pub const RECORDS: Descriptor = signal(
    "pim_events_records",
    Kind::Counter,
    "",
    "Records that consumers took from the bus, by what became of them",
    &[KIND, FATE],
    Purpose::Red,
);

/// Time from an event's commit to its application, which is the freshness of a read model.
pub const APPLY_SECONDS: Descriptor = signal(
    "pim_events_apply_seconds",
    Kind::Histogram,
    "seconds",
    "Time from an event's commit to its application, which is the freshness of a read model",
    &[KIND],
    Purpose::Slo,
);

/// Records that the consumer that is furthest behind has still to read.
pub const LAG_RECORDS: Descriptor = signal(
    "pim_events_lag_records",
    Kind::Gauge,
    "",
    "Records that the consumer that is furthest behind has still to read",
    &[KIND],
    Purpose::Use,
);

/// Age of the oldest record that some consumer has still to read; zero when there is none.
pub const LAG_SECONDS: Descriptor = signal(
    "pim_events_lag_seconds",
    Kind::Gauge,
    "seconds",
    "Age of the oldest record that some consumer has still to read; zero when there is none",
    &[KIND],
    Purpose::Use,
);

/// Keys that consumers hold, by reason.
pub const PARKED_KEYS: Descriptor =
    signal("pim_events_parked_keys", Kind::Gauge, "", "Keys that consumers hold, by reason", &[REASON], Purpose::Use);

/// For how long the oldest key has been held, by reason.
pub const PARKED_OLDEST_SECONDS: Descriptor = signal(
    "pim_events_parked_oldest_seconds",
    Kind::Gauge,
    "seconds",
    "For how long the oldest key has been held, by reason",
    &[REASON],
    Purpose::Use,
);

/// Events in held sequences, counted up to 100000.
pub const DEAD_LETTERS: Descriptor = signal(
    "pim_events_dead_letters",
    Kind::Gauge,
    "",
    "Events in held sequences, counted up to 100000",
    &[],
    Purpose::Use,
);

/// Records put aside because they are no events, counted up to 100000.
pub const DEAD_RECORDS: Descriptor = signal(
    "pim_events_dead_records",
    Kind::Gauge,
    "",
    "Records put aside because they are no events, counted up to 100000",
    &[],
    Purpose::Use,
);

/// Age of the oldest held event or record put aside.
pub const DEAD_OLDEST_SECONDS: Descriptor = signal(
    "pim_events_dead_oldest_seconds",
    Kind::Gauge,
    "seconds",
    "Age of the oldest held event or record put aside",
    &[],
    Purpose::Use,
);

/// Consumers that stand still until an operator resumes them.
pub const CONSUMERS_STOPPED: Descriptor = signal(
    "pim_events_consumers_stopped",
    Kind::Gauge,
    "",
    "Consumers that stand still until an operator resumes them",
    &[],
    Purpose::Use,
);

/// Records that the running rebuild has read; zero when none runs.
pub const REBUILD_RECORDS: Descriptor = signal(
    "pim_events_rebuild_records",
    Kind::Gauge,
    "",
    "Records that the running rebuild has read; zero when none runs",
    &[],
    Purpose::Debug,
);

/// Rebuilds of read models, by how they ended.
pub const REBUILDS: Descriptor = signal(
    "pim_events_rebuilds",
    Kind::Counter,
    "",
    "Rebuilds of read models, by how they ended",
    &[OUTCOME],
    Purpose::Use,
);

/// Rows that retention removed.
pub const SWEPT_ROWS: Descriptor =
    signal("pim_events_swept_rows", Kind::Counter, "", "Rows that retention removed", &[SWEPT], Purpose::Use);

/// Sweeps of retention that did not come to their end.
pub const SWEEP_FAILURES: Descriptor = signal(
    "pim_events_sweep_failures",
    Kind::Counter,
    "",
    "Sweeps of retention that did not come to their end",
    &[SWEPT],
    Purpose::Use,
);

/// Everything that this crate emits.
pub const CATALOG: Catalog = Catalog {
    owner: "pim-events",
    descriptors: &[
        &OUTBOX_OLDEST_UNSENT_SECONDS,
        &OUTBOX_BACKLOG,
        &OUTBOX_HELD,
        &PUBLISH_SECONDS,
        &LEASE_CHANGES,
        &RECORDS,
        &APPLY_SECONDS,
        &LAG_RECORDS,
        &LAG_SECONDS,
        &PARKED_KEYS,
        &PARKED_OLDEST_SECONDS,
        &DEAD_LETTERS,
        &DEAD_RECORDS,
        &DEAD_OLDEST_SECONDS,
        &CONSUMERS_STOPPED,
        &REBUILD_RECORDS,
        &REBUILDS,
        &SWEPT_ROWS,
        &SWEEP_FAILURES,
    ],
};
