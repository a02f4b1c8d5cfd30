//! Why nothing, or not everything, was removed.

use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::shard::ShardId;

use crate::audit::{AuditFinding, CheckpointError};
use crate::backend::DbError;
use crate::cluster::{DirectoryError, name_of};

/// A retention run that was refused or broken off.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RetentionError {
    /// The policy keeps something for too short a time.
    #[error("{what} are kept for at least {least_days} days, not {asked_days}")]
    TooShort {
        /// What.
        what: &'static str,
        /// Days that were asked for.
        asked_days: u64,
        /// The fewest.
        least_days: u64,
    },
    /// The policy's batch is out of its bounds.
    #[error("a batch removes 1 to {most} rows")]
    Batch {
        /// The largest.
        most: u32,
    },
    /// The permit does not reach every row.
    #[error("retention needs a permit for every row")]
    Scope,
    /// This program knows no owner's connection string of a database.
    #[error("this program may not remove rows of {}: give it the secret of the owner", name_of(*.0))]
    NotOwner(ShardId),
    /// Buckets are being moved, a backup is taken, or another run is at it.
    #[error("buckets are being moved, a backup is taken, or another run is at it: try again when that is over")]
    Busy,
    /// The trail does not verify; a purge would take the traces away.
    #[error("the audit trail does not verify in lane {} at record {}: find out why first", finding.lane, finding.seq)]
    Broken {
        /// The first thing that was found.
        finding: AuditFinding,
    },
    /// A database failed.
    #[error("rows of {shard} cannot be removed")]
    Database {
        /// Which shard.
        shard: String,
        /// Why.
        #[source]
        source: DbError,
    },
    /// The trail cannot be read, or its tombstones not be signed.
    #[error(transparent)]
    Audit(#[from] CheckpointError),
    /// The data directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

impl RetentionError {
    pub(super) fn of(shard: ShardId) -> impl FnOnce(DbError) -> Self {
        move |source| Self::Database { shard: name_of(shard), source }
    }
}

impl IntoProblem for RetentionError {
    fn into_problem(self) -> Problem {
        match self {
            Self::TooShort { .. } | Self::Batch { .. } => Problem::of(problem::INVALID_BODY).detail(self.to_string()),
            Self::Scope => Problem::of(problem::FORBIDDEN),
            Self::NotOwner(_) => Problem::of(problem::UNAVAILABLE).detail("this program may not remove rows"),
            Self::Busy => Problem::of(problem::CONFLICT).detail(self.to_string()),
            Self::Broken { finding } => Problem::of(problem::CONFLICT)
                .detail("the audit trail does not verify; nothing was removed")
                .with("finding", serde_json::to_value(finding).unwrap_or_default()),
            _ => Problem::of(problem::UNAVAILABLE).retry_after_secs(1),
        }
    }
}
