//! Why degrading was not turned on or off.

use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::shard::ShardId;

use crate::backend::DbError;

/// Why the setting is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DegradeError {
    /// This cluster has no such shard.
    #[error("there is no shard {0}")]
    UnknownShard(ShardId),
    /// The shard is a file, whose commits wait for nobody.
    #[error("shard {0} is a file and has no standby that it could do without")]
    NoServers(ShardId),
    /// This program knows no owner's connection string of the shard.
    #[error("this program may not degrade shard {0}: give it the secret of the owner")]
    NotOwner(ShardId),
    /// The permit does not reach every row.
    #[error("the permit does not reach every row of the shard")]
    Scope,
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

impl IntoProblem for DegradeError {
    fn into_problem(self) -> Problem {
        match self {
            Self::UnknownShard(_) => Problem::of(problem::NOT_FOUND).detail("there is no such shard"),
            Self::NoServers(_) => {
                Problem::of(problem::CONFLICT).detail("the shard is a file and has no standby that it could do without")
            }
            Self::NotOwner(_) => Problem::of(problem::UNAVAILABLE).detail("this program may not degrade a shard"),
            Self::Scope => Problem::of(problem::FORBIDDEN),
            Self::Shard { .. } => Problem::of(problem::UNAVAILABLE).retry_after_secs(1),
        }
    }
}
