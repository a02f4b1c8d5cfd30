//! Which shard a key lives on: key → bucket → shard, lock-free, by an immutable map that can be swapped.

mod file;
mod finding;
mod foreign;
mod key;
mod map;
mod router;
mod succession;

pub use finding::{Finding, FindingCode, MapError, Severity};
pub use foreign::{ForeignUuid, hash_extended};
pub use key::{Bucket, BucketRangeError, HomeKey, Lane, ShardKey};
pub use map::{Endpoint, EndpointRole, MapDigest, SHARDS_MAX, Shard, ShardMap, ShardState};
pub use router::{HANDOVERS_MAX, ShardRouter};
pub use succession::Handover;

use std::fmt;

/// A shard's stable number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The number that no map gives to a shard: it is for what stands beside the shards, such as a control database.
    pub const RESERVED: Self = Self(u16::MAX);
}

/// Ownership epoch of a bucket; rises each time the bucket changes hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The highest that a map may have.
    pub const MAX: Self = Self(u32::MAX - 1);

    /// The next one. After [`Epoch::MAX`] comes what no map may have, so that a map that cannot rise is refused.
    pub(crate) const fn risen(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Version of a shard map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct MapVersion(pub u64);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for MapVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Where a key lives, and by which map we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// The key's bucket.
    pub bucket: Bucket,
    /// The shard that owns the bucket.
    pub shard: ShardId,
    /// The ownership epoch that a write must quote to the fence.
    pub epoch: Epoch,
    /// The version of the map that said so.
    pub map_version: MapVersion,
}
