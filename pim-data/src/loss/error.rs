//! Why a loss was not given up.

use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::shard::ShardId;

use crate::audit::CheckpointError;
use crate::backend::DbError;
use crate::fence::PublishError;

/// Why the loss still counts as one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LossError {
    /// This cluster has no such shard.
    #[error("there is no shard {0}")]
    UnknownShard(ShardId),
    /// The permit does not reach every row.
    #[error("the permit does not reach every row of the shard")]
    Scope,
    /// Something is wrong with the trail that no loss explains.
    #[error("the audit trail has {findings} findings that no loss of a shard explains: look at them first")]
    Unsound {
        /// How many.
        findings: usize,
    },
    /// Earlier checkpoints have signed less of the shard, and were not named: each is a loss, or somebody's doing.
    #[error("checkpoints {lines:?} had signed less of the shard: look at each, and name those that are given up")]
    Unnamed {
        /// Their places in the file, counted from one.
        lines: Vec<u64>,
    },
    /// The map that raises the epochs could not be published.
    #[error("the epochs of the shard's buckets could not be raised")]
    Publish(#[from] PublishError),
    /// The trail could not be read or signed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The shard's database failed.
    #[error("shard {shard} could not be told")]
    Shard {
        /// Which shard.
        shard: ShardId,
        /// Why.
        #[source]
        source: DbError,
    },
}

impl IntoProblem for LossError {
    fn into_problem(self) -> Problem {
        match self {
            Self::UnknownShard(_) => Problem::of(problem::NOT_FOUND).detail("there is no such shard"),
            Self::Scope => Problem::of(problem::FORBIDDEN),
            Self::Unsound { findings } => Problem::of(problem::CONFLICT)
                .detail("the audit trail has findings that no loss of a shard explains: verify it")
                .with("findings", findings),
            Self::Unnamed { lines } => Problem::of(problem::CONFLICT)
                .detail("earlier checkpoints had signed less of the shard: name those that are given up")
                .with("lines", lines),
            Self::Publish(_) | Self::Checkpoint(_) | Self::Shard { .. } => {
                Problem::of(problem::UNAVAILABLE).retry_after_secs(1)
            }
        }
    }
}
