//! Keys that others minted: hashed as PostgreSQL hashes a UUID, so that SQL and Rust agree on the bucket.

use uuid::Uuid;

use super::key::{Bucket, ShardKey};

/// A UUID that carries no bucket. Its bucket is `(uuid_hash_extended(key, 0) >> 52) & 4095`, as in SQL.
///
/// Children of a hashed key store the home key beside their own id.
///
/// ```
/// use pim_core::shard::{ForeignUuid, ShardKey};
/// use uuid::Uuid;
///
/// let key = ForeignUuid(Uuid::nil());
/// assert_eq!(key.bucket(), ForeignUuid(Uuid::nil()).bucket());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ForeignUuid(pub Uuid);

impl ShardKey for ForeignUuid {
    #[inline]
    fn bucket(&self) -> Bucket {
        Bucket::of_hash(hash_extended(self.0.as_bytes()))
    }

    fn key_uuid(&self) -> Uuid {
        self.0
    }
}

/// PostgreSQL's extended hash of 16 bytes with seed 0: Bob Jenkins' lookup3 (2006), as `hash_bytes_extended` has it.
#[must_use]
#[inline]
pub const fn hash_extended(bytes: &[u8; 16]) -> u64 {
    let start = 0x9e37_79b9_u32.wrapping_add(16).wrapping_add(3_923_095);
    let (mut a, mut b, mut c) =
        (start.wrapping_add(word(bytes, 0)), start.wrapping_add(word(bytes, 4)), start.wrapping_add(word(bytes, 8)));
    (a, b, c) = mix(a, b, c);
    a = a.wrapping_add(word(bytes, 12));
    (b, c) = last(a, b, c);
    (b as u64) << 32 | c as u64
}

#[inline]
const fn word(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline]
const fn mix(mut a: u32, mut b: u32, mut c: u32) -> (u32, u32, u32) {
    a = a.wrapping_sub(c) ^ c.rotate_left(4);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(6);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(8);
    b = b.wrapping_add(a);
    a = a.wrapping_sub(c) ^ c.rotate_left(16);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(19);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(4);
    b = b.wrapping_add(a);
    (a, b, c)
}

#[inline]
const fn last(mut a: u32, mut b: u32, mut c: u32) -> (u32, u32) {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    c = (c ^ b).wrapping_sub(b.rotate_left(24));
    (b, c)
}
