//! Golden values read from PostgreSQL 15.18: `select uuid_hash_extended(x, 0), (uuid_hash_extended(x, 0) >> 52) & 4095`.

use pim_core::shard::{ForeignUuid, ShardKey as _, hash_extended};
use uuid::Uuid;

const GOLDEN: &[(&str, i64, u16)] = &[
    ("00000000-0000-0000-0000-000000000000", -6_859_010_066_814_654_381, 2572),
    ("ffffffff-ffff-ffff-ffff-ffffffffffff", 293_445_543_803_463_785, 65),
    ("6ba7b810-9dad-11d1-80b4-00c04fd430c8", -7_660_212_938_568_749_411, 2395),
    ("00112233-4455-6677-8899-aabbccddeeff", 4_462_459_420_613_485_749, 990),
    ("018f2f3e-7c1a-7b3d-9a55-0123456789ab", 8_225_354_102_623_681_970, 1826),
    ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", 7_543_054_272_012_930_821, 1674),
];

#[test]
fn hash_and_bucket_are_those_of_the_server() {
    for (text, hash, bucket) in GOLDEN {
        let uuid: Uuid = text.parse().unwrap();
        assert_eq!(hash_extended(uuid.as_bytes()).cast_signed(), *hash, "{text}");
        assert_eq!(ForeignUuid(uuid).bucket().get(), *bucket, "{text}");
    }
}
