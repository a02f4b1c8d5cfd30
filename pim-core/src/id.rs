//! Typed ids that carry their bucket, so that any id routes without a look-up.
//!
//! Every id minted here is a UUIDv8 (RFC 9562): 48 bits, version, **12 bits of bucket**, variant, 62 bits.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid, Variant};

use crate::clock::Timestamp;
use crate::problem::{self, IntoProblem, Problem};
use crate::shard::Bucket;

/// What an id names. Implement it on an empty type, or let [`id_kinds!`](crate::id_kinds) do it.
pub trait IdKind: Send + Sync + 'static {
    /// Singular noun in lower case, used in error texts.
    const NAME: &'static str;
}

/// A UUIDv8 with the bucket of its home key inside, typed by what it names.
///
/// ```
/// use pim_core::clock::Timestamp;
/// use pim_core::id::Id;
///
/// pim_core::id_kinds! {
///     /// A customer.
///     Customer = "customer",
///     /// An order of a customer.
///     Order = "order",
/// }
/// let customer = Id::<Customer>::derive(b"scope of the registration", 0);
/// let order = Id::<Order>::child_of(customer.bucket(), Timestamp::from_micros(0));
/// assert_eq!(order.bucket(), customer.bucket());
/// assert_eq!(customer.to_string().parse::<Id<Customer>>()?, customer);
/// # Ok::<(), pim_core::id::ParseIdError>(())
/// ```
pub struct Id<K>(Uuid, PhantomData<fn() -> K>);

/// A text or UUID that is no id minted by this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseIdError {
    /// The text is not the hyphenated lower-case form of a UUID.
    #[error("{kind} id is not a hyphenated lower-case uuid")]
    Text {
        /// What the id should have named.
        kind: &'static str,
    },
    /// The UUID is not of version 8, so it carries no bucket.
    #[error("{kind} id is not a version 8 uuid")]
    Version {
        /// What the id should have named.
        kind: &'static str,
    },
}

impl IntoProblem for ParseIdError {
    fn into_problem(self) -> Problem {
        Problem::of(problem::INVALID_ID).detail(self.to_string())
    }
}

impl<K: IdKind> Id<K> {
    /// An id for a new home key, wholly derived from `scope` and `ordinal` by SHA-256:
    /// a retry of the same registration finds the same shard and the same record.
    #[must_use]
    pub fn derive(scope: &[u8], ordinal: u32) -> Self {
        let digest = digest(K::NAME, scope, ordinal);
        let bucket = u16::from_be_bytes([digest[16], digest[17]]) & Bucket::MASK;
        Self::build(prefix(&digest[..6]), bucket, tail(&digest[8..16]))
    }

    /// An id for a new home key, from randomness alone.
    #[must_use]
    pub fn random() -> Self {
        Self::derive(Uuid::new_v4().as_bytes(), 0)
    }

    /// An id for a row that lives with a home key in `bucket`: milliseconds first, for index locality, then randomness.
    #[must_use]
    pub fn child_of(bucket: Bucket, at: Timestamp) -> Self {
        Self::build(millis(at), bucket.get(), tail(&Uuid::new_v4().as_bytes()[8..]))
    }

    /// An id for a row in `bucket` that a retried command must find again: `at` in milliseconds, for index locality, and the rest
    /// derived from `scope` and `ordinal`. A retry that comes with another `at` makes another id, so it has to be an instant that
    /// stays, such as that of the event that is answered, and not the present.
    #[must_use]
    pub fn child_derived(bucket: Bucket, at: Timestamp, scope: &[u8], ordinal: u32) -> Self {
        let digest = digest(K::NAME, scope, ordinal);
        Self::build(millis(at), bucket.get(), tail(&digest[8..16]))
    }

    fn build(first: [u8; 6], bucket: u16, last: [u8; 8]) -> Self {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&first);
        bytes[6..8].copy_from_slice(&bucket.to_be_bytes());
        bytes[8..].copy_from_slice(&last);
        Self(Builder::from_custom_bytes(bytes).into_uuid(), PhantomData)
    }

    /// Accepts a UUID that was minted here.
    ///
    /// # Errors
    /// [`ParseIdError::Version`] when it is not of version 8 (RFC 9562).
    pub fn from_uuid(uuid: Uuid) -> Result<Self, ParseIdError> {
        if uuid.get_version_num() == 8 && uuid.get_variant() == Variant::RFC4122 {
            Ok(Self(uuid, PhantomData))
        } else {
            Err(ParseIdError::Version { kind: K::NAME })
        }
    }
}

impl<K> Id<K> {
    /// The bucket inside.
    #[must_use]
    pub const fn bucket(self) -> Bucket {
        Bucket::of_minted(&self.0)
    }

    /// The bare UUID.
    #[must_use]
    pub const fn uuid(self) -> Uuid {
        self.0
    }
}

fn digest(kind: &str, scope: &[u8], ordinal: u32) -> [u8; 32] {
    Sha256::new()
        .chain_update(kind.as_bytes())
        .chain_update([0])
        .chain_update(scope)
        .chain_update(ordinal.to_be_bytes())
        .finalize()
        .into()
}

fn prefix(bytes: &[u8]) -> [u8; 6] {
    let mut out = [0; 6];
    out.copy_from_slice(bytes);
    out
}

fn tail(bytes: &[u8]) -> [u8; 8] {
    let mut out = [0; 8];
    out.copy_from_slice(bytes);
    out
}

fn millis(at: Timestamp) -> [u8; 6] {
    let bytes = (at.as_micros() / 1000).to_be_bytes();
    prefix(&bytes[2..])
}

impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}
impl<K> Hash for Id<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
impl<K> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.as_hyphenated(), f)
    }
}
impl<K> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<K: IdKind> FromStr for Id<K> {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uuid = Uuid::try_parse(text).map_err(|_| ParseIdError::Text { kind: K::NAME })?;
        let mut canonical = Uuid::encode_buffer();
        // One text form: braces, URNs and upper case name the same UUID but would split caches and logs.
        if uuid.as_hyphenated().encode_lower(&mut canonical) != text {
            return Err(ParseIdError::Text { kind: K::NAME });
        }
        Self::from_uuid(uuid)
    }
}

impl<K> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, K: IdKind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Declares kinds of ids: `id_kinds! { /// doc  Order = "order", }` makes an empty type `Order` for `Id<Order>`.
#[macro_export]
macro_rules! id_kinds {
    ($($(#[$meta:meta])* $kind:ident = $name:literal),+ $(,)?) => {$(
        $(#[$meta])*
        #[derive(Debug)]
        pub enum $kind {}
        impl $crate::id::IdKind for $kind {
            const NAME: &'static str = $name;
        }
    )+};
}
