//! The outbox: facts written in the unit of work, and the leased relay that brings them to the bus.

mod append;
mod backlog;
mod cursor;
mod lease;
mod outlet;
mod prune;
mod relay;
mod row;
mod source;
mod status;
mod window;

pub use append::{AppendError, AppendExt, EVENT_BYTES_MAX, EVENTS_PER_UNIT_MAX, EventsExt};
pub use backlog::Backlog;
pub use outlet::OutboxOutlet;
pub use relay::{Relay, RelaySettings, RelaySettingsError};
pub use source::{Source, Sources};
pub use status::{OutboxError, OutboxStatus};

use std::sync::LazyLock;

use pim_data::migration::Migration;

/// The tables that events need in every shard and in the control database.
pub(crate) fn migrations() -> &'static [Migration] {
    static ALL: LazyLock<[Migration; 6]> = LazyLock::new(|| {
        let sqlite = include_str!("../migrations/sqlite/1000_outbox.sql");
        let postgres = include_str!("../migrations/postgres/1000_outbox.sql");
        let by_bucket = include_str!("../migrations/1010_inbox_by_bucket.sql");
        let pruned = include_str!("../migrations/sqlite/1020_outbox_pruned.sql");
        let pruned_postgres = include_str!("../migrations/postgres/1020_outbox_pruned.sql");
        let owned = include_str!("../migrations/sqlite/1030_owned_events.sql");
        let owned_postgres = include_str!("../migrations/postgres/1030_owned_events.sql");
        let era = include_str!("../migrations/sqlite/1031_outbox_era.sql");
        let era_postgres = include_str!("../migrations/postgres/1031_outbox_era.sql");
        let lease = include_str!("../migrations/sqlite/1040_outbox_lease.sql");
        let lease_postgres = include_str!("../migrations/postgres/1040_outbox_lease.sql");
        [
            Migration::new(1000, "outbox and command inbox", sqlite).with_postgres(postgres),
            Migration::new(1010, "command inbox by bucket", by_bucket).with_postgres(by_bucket),
            Migration::new(1020, "youngest event that has gone", pruned).with_postgres(pruned_postgres),
            Migration::new(1030, "events of a bucket", owned).with_postgres(owned_postgres),
            Migration::new(1031, "of which era snapshots are", era).with_postgres(era_postgres),
            Migration::new(1040, "how long a lease may be", lease).with_postgres(lease_postgres),
        ]
    });
    &*ALL
}
