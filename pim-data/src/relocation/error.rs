//! Why a move did not get further.

use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::shard::{Bucket, MapError, ShardId};
use uuid::Uuid;

use super::MoveStep;
use crate::backend::{ColumnError, DbError};
use crate::cluster::DirectoryError;
use crate::fence::PublishError;

/// A move that did not get further. The buckets are owned by one shard, as the map in force says, and take writes there: where a
/// shard did not answer, as soon as it does and somebody has looked for maps.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MoveError {
    /// No bucket was named, or too many.
    #[error("a move names 1 to {most} buckets")]
    Buckets {
        /// The bound.
        most: usize,
    },
    /// The map names no such shard, or it takes no buckets.
    #[error("shard {0} takes no buckets")]
    Target(ShardId),
    /// The buckets do not belong to one other shard.
    #[error("bucket {bucket} belongs to shard {owner}, not to the one that the move begins at")]
    Elsewhere {
        /// Which bucket.
        bucket: Bucket,
        /// Who owns it.
        owner: ShardId,
    },
    /// Another move has one of the buckets.
    #[error("bucket {bucket} is part of move {other}, which is not over")]
    Taken {
        /// Which bucket.
        bucket: Bucket,
        /// By which move.
        other: Uuid,
    },
    /// There is no such move.
    #[error("there is no move {0}")]
    Unknown(Uuid),
    /// Its step does not allow that.
    #[error("move {id} is {}", step.text())]
    Step {
        /// Which move.
        id: Uuid,
        /// Where it is.
        step: MoveStep,
    },
    /// This program knows no owner's connection string of a shard.
    #[error("this program may not change who owns the buckets of shard {0}: give it the secret of the owner")]
    NotOwner(ShardId),
    /// A map has named other servers of a shard meanwhile, or it is not open here: whoever goes on begins with those.
    #[error("shard {0} is found elsewhere by now, or not open in this program: resume the move")]
    Exchanged(ShardId),
    /// Somebody else carries out a move at this moment.
    #[error("another mover is at work")]
    Busy,
    /// A shard acknowledges commits that may be lost with its primary: rows and records must not part now.
    #[error("shard {0} is degraded: end that before buckets move")]
    Degraded(ShardId),
    /// An event of a key of the buckets was refused by the bus.
    #[error("a key of the buckets is parked at the relay: un-park it first")]
    Parked,
    /// The source's events were not published in time; the source takes writes again.
    #[error("the source's outbox did not drain in time")]
    NotDrained,
    /// An end did not answer in time while writers waited.
    #[error("the fence was there for too long: an end of the move does not answer")]
    Late,
    /// Somebody lifted the fence again and again, such as by publishing maps.
    #[error("the fence did not last until the map was published")]
    Unsettled,
    /// Rows at the target are not those at the source.
    #[error("bucket {bucket} is not the same at both ends")]
    Differs {
        /// Which bucket.
        bucket: Bucket,
    },
    /// The map that was to follow may not.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The map was not published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The data directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A database failed.
    #[error("shard {shard} failed in a move")]
    Shard {
        /// Which shard.
        shard: ShardId,
        /// Why.
        #[source]
        source: DbError,
    },
    /// The control database failed.
    #[error("the list of moves does not answer")]
    Journal(#[from] DbError),
}

impl From<ColumnError> for MoveError {
    fn from(error: ColumnError) -> Self {
        Self::Journal(error.into())
    }
}

impl MoveError {
    /// Whether carrying the move on a little later may well succeed.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Busy | Self::NotDrained | Self::Late | Self::Unsettled => true,
            Self::Degraded(_) | Self::Exchanged(_) | Self::Directory(_) => true,
            Self::Shard { source, .. } | Self::Journal(source) => source.is_retryable(),
            _ => false,
        }
    }
}

impl IntoProblem for MoveError {
    fn into_problem(self) -> Problem {
        match self {
            Self::Unknown(_) => Problem::of(problem::NOT_FOUND),
            Self::Buckets { most } => Problem::of(problem::INVALID_BODY).with("buckets_max", most),
            Self::Target(_) => Problem::of(problem::INVALID_BODY).detail("the target shard takes no buckets"),
            Self::Map(_) => Problem::of(problem::INVALID_BODY).detail("the map that would follow is not valid"),
            Self::Elsewhere { .. } => {
                Problem::of(problem::CONFLICT).detail("the buckets do not belong to one other shard")
            }
            Self::Taken { .. } => Problem::of(problem::CONFLICT).detail("a bucket is part of a move that is not over"),
            Self::Step { .. } => Problem::of(problem::CONFLICT).detail("the move is in a step that does not allow it"),
            Self::Degraded(shard) => Problem::of(problem::CONFLICT)
                .detail("a shard is degraded: end that before buckets move")
                .with("shard", shard.0),
            Self::Parked => Problem::of(problem::CONFLICT).detail("a key of the buckets is parked at the relay"),
            Self::Busy | Self::NotDrained | Self::Late | Self::Unsettled | Self::Exchanged(_) | Self::Directory(_) => {
                Problem::of(problem::UNAVAILABLE).retry_after_secs(1)
            }
            Self::NotOwner(_) => Problem::of(problem::UNAVAILABLE).detail("this program may not move buckets"),
            Self::Shard { .. } | Self::Journal(_) => Problem::of(problem::UNAVAILABLE).retry_after_secs(1),
            Self::Differs { .. } => Problem::of(problem::INTERNAL).because("move.differs"),
            Self::Publish(_) => Problem::of(problem::INTERNAL).because("move.publish"),
        }
    }
}
