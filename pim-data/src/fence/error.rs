//! Why a map was not published.

use pim_core::shard::{Handover, MapError, MapVersion, ShardId};

use crate::backend::DbError;
use crate::cluster::{DirectoryError, OpenError};

/// A map that was not published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// It may not follow the map in force.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A bucket that changes hands has rows, and rows are not moved by publishing.
    #[error("bucket {} has rows on shard {} and cannot change hands by publishing: move it", .0.bucket, .0.from)]
    NotEmpty(Handover),
    /// A way back leads to a map before the one in force.
    #[error("map {version} is not before map {current}, which is in force")]
    NotEarlier {
        /// The map that was asked for.
        version: MapVersion,
        /// The one in force.
        current: MapVersion,
    },
    /// A way back leads to a map that is not there any more.
    #[error("map {version} has not been kept, so there is no way back to it: edit the map in force instead")]
    NotKept {
        /// The map that was asked for.
        version: MapVersion,
    },
    /// A shard or a server that it names cannot be used.
    #[error("what the map names cannot be used")]
    Open(#[from] Box<OpenError>),
    /// This program knows no owner's connection string of a shard.
    #[error("this program may not change who owns buckets of shard {0}: give it the secret of the owner")]
    NotOwner(ShardId),
    /// A map leaves out where a retired shard is whose audit trail is still to be verified.
    #[error("shard {0} has an audit trail, which would be missed: keep its endpoints in the map")]
    StillNeeded(ShardId),
    /// A shard is not open here.
    #[error("shard {0} is not open in this program: it is tried again, and why it failed is in the log")]
    UnknownShard(ShardId),
    /// The data directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A shard could not be fenced. Others may be: then this program goes on at every look for maps until the map is in force.
    #[error("shard {shard} could not be fenced")]
    Shard {
        /// Which.
        shard: ShardId,
        /// Why.
        #[source]
        source: DbError,
    },
}

impl PublishError {
    /// Whether some shard may be fenced by the map all the same. One that is not empty has let the others take back what they gave.
    pub(super) const fn leaves_it_begun(&self) -> bool {
        !matches!(self, Self::NotEmpty(_))
    }

    /// Whether it can go on once a standby is there.
    pub(crate) const fn awaits_a_standby(&self) -> bool {
        matches!(self, Self::Shard { source: DbError::NoStandby { .. }, .. })
    }
}
