//! The audit trail: 64 hash chains a shard, written with the rows they tell of.

mod chain;
mod checkpoint;
mod query;
mod verify;

pub(crate) use chain::{LaneHead, Record, hex, unhex};
pub use checkpoint::{CheckpointError, CheckpointKey};
pub(crate) use checkpoint::{Heads, Purge};
pub use query::{AuditEntry, AuditFilter};
pub use verify::{AuditFinding, AuditFindingKind, VerifyReport};

/// Every statement of the trail.
pub(crate) fn pairs() -> Vec<crate::backend::SqlPair> {
    [chain::END, chain::APPEND, chain::NO_BULK, chain::HOLD, verify::RECORDS, verify::HEADS]
        .into_iter()
        .chain(query::pairs())
        .collect()
}
