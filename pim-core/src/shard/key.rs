//! Keys and the buckets that they fall into.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::id::Id;

/// The unit of routing, ownership, fence and move: `0..=4095`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Bucket(u16);

/// A number that is no bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bucket {0} is outside 0..=4095")]
pub struct BucketRangeError(pub u16);

impl Bucket {
    /// How many buckets there are.
    pub const COUNT: usize = 4096;
    pub(crate) const MASK: u16 = 0x0fff;

    /// A bucket by number.
    ///
    /// # Errors
    /// [`BucketRangeError`] above 4095.
    pub const fn new(number: u16) -> Result<Self, BucketRangeError> {
        if number <= Self::MASK { Ok(Self(number)) } else { Err(BucketRangeError(number)) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The lane of this bucket inside its shard.
    #[must_use]
    pub const fn lane(self) -> Lane {
        Lane((self.0 & 63) as u8)
    }

    #[inline]
    pub(crate) const fn of_minted(uuid: &Uuid) -> Self {
        let bytes = uuid.as_bytes();
        Self(u16::from_be_bytes([bytes[6], bytes[7]]) & Self::MASK)
    }

    /// From a 64-bit hash, as PostgreSQL's SQL would: `(hash >> 52) & 4095`.
    #[inline]
    pub(crate) const fn of_hash(hash: u64) -> Self {
        Self((hash >> 52) as u16)
    }
}

impl TryFrom<u16> for Bucket {
    type Error = BucketRangeError;

    fn try_from(number: u16) -> Result<Self, Self::Error> {
        Self::new(number)
    }
}

impl From<Bucket> for u16 {
    fn from(bucket: Bucket) -> Self {
        bucket.0
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The unit of parallelism inside one shard: bucket & 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lane(u8);

impl Lane {
    /// How many lanes a shard has.
    pub const COUNT: usize = 64;

    /// Every lane, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..64).map(Self)
    }

    /// The number, `0..=63`.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// The key that decides where a row, its events and its audit records live (in the lab: the patient).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HomeKey {
    uuid: Uuid,
    bucket: Bucket,
}

impl HomeKey {
    /// The home key named by any key that routes.
    pub fn of(key: &impl ShardKey) -> Self {
        Self { uuid: key.key_uuid(), bucket: key.bucket() }
    }

    /// The bare UUID.
    #[must_use]
    pub const fn uuid(self) -> Uuid {
        self.uuid
    }

    /// The bucket that the key falls into.
    #[must_use]
    pub const fn bucket(self) -> Bucket {
        self.bucket
    }
}

impl fmt::Debug for HomeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.uuid.as_hyphenated(), f)
    }
}

impl fmt::Display for HomeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.uuid.as_hyphenated(), f)
    }
}

/// A key that can be routed: its bucket, and the UUID that it is stored as.
pub trait ShardKey {
    /// The bucket that the key falls into; the same for every version of every map.
    fn bucket(&self) -> Bucket;

    /// The UUID that rows of this key are stored under.
    fn key_uuid(&self) -> Uuid;
}

impl<K> ShardKey for Id<K> {
    #[inline]
    fn bucket(&self) -> Bucket {
        Id::bucket(*self)
    }

    fn key_uuid(&self) -> Uuid {
        self.uuid()
    }
}

impl ShardKey for HomeKey {
    fn bucket(&self) -> Bucket {
        self.bucket
    }

    fn key_uuid(&self) -> Uuid {
        self.uuid
    }
}

impl<K> From<Id<K>> for HomeKey {
    fn from(id: Id<K>) -> Self {
        Self::of(&id)
    }
}
