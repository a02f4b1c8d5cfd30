//! The outbox: facts written in the unit of work, and the leased relay that brings them to the bus.

mod append;
mod lease;
mod prune;
mod relay;
mod row;
mod source;
mod status;

pub use append::{AppendError, AppendExt, EVENT_BYTES_MAX, EVENTS_PER_UNIT_MAX, EventsExt};
pub use relay::{Relay, RelaySettings};
pub use source::Source;
pub use status::{OutboxError, OutboxStatus};

use std::sync::LazyLock;

use pim_data::migration::Migration;

/// The tables that events need in every shard and in the control database.
pub(crate) fn migrations() -> &'static [Migration] {
    static ALL: LazyLock<[Migration; 1]> = LazyLock::new(|| {
        [Migration::new(1000, "outbox and command inbox", include_str!("../migrations/sqlite/1000_outbox.sql"))]
    });
    &*ALL
}
