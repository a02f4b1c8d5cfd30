//! The audit trail: 64 hash chains a shard, written with the rows they tell of.
//!
//! [`Cluster::verify_audit`](crate::cluster::Cluster::verify_audit) has three kinds of witnesses. The chain itself finds what was
//! changed, removed, reordered or put in. Signed checkpoints, kept outside of the databases, find what was cut off or
//! rewritten before the newest of them. And history, rows and the numbers of home keys find what was cut off behind it: each committed change
//! has one record and one period of history, each row is what its history ends with, and each home key's number is that of its
//! newest record.
//!
//! Where everything was restored as it was at an earlier instant, a signed line of the same file says so, and names the
//! checkpoints behind that instant as given up. Where one shard has lost something with its primary, a signed line says by whose
//! word that is given up ([`loss`](crate::loss)). Nothing else may sign less than was signed before it.
//!
//! Not found is whoever takes back, behind the last checkpoint, *all* that one database has of the newest changes of a key:
//! records, history, row and number together. Consumers that have seen its events hold such a key as rewound, once it has
//! been written as often again. How much may be lost that way is bounded by how often checkpoints are signed, and by where their
//! file is kept: a copy elsewhere also finds whoever removes its last lines. Nor is found, behind the last checkpoint, a record
//! that a superuser appends by the rules of the chain and that names neither a row nor a number of its key: nothing else tells of
//! such. Changes of before what [`retention`](crate::retention) has removed are compared no more.

mod agreement;
mod chain;
mod checkpoint;
mod query;
mod verify;

pub(crate) use chain::{Halves, LaneHead, Record, hex, unhex};
pub use checkpoint::{CheckpointError, CheckpointKey, LaterCheckpoints};
pub(crate) use checkpoint::{Heads, Later, Loss, Purge, Reason, Signed};
pub use query::{AuditEntry, AuditFilter, AuditPlace};
pub(crate) use verify::heads;
pub use verify::{AuditFinding, AuditFindingKind, AuditLoss, AuditRestore, AuditedRow, VerifyReport};

use crate::backend::SqlPair;
use crate::entity::Table;

/// Every statement of the trail.
pub(crate) fn pairs(tables: &[&'static Table]) -> Vec<SqlPair> {
    let own = [chain::END, chain::APPEND, chain::NO_BULK, chain::HOLD, verify::RECORDS, verify::HEADS];
    own.into_iter().chain(query::pairs()).chain(agreement::pairs(tables)).collect()
}
