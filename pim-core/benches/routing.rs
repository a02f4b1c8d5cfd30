//! The parts of a routing decision: the hash, the table, the router.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use pim_core::id::Id;
use pim_core::shard::{ForeignUuid, ShardKey, ShardMap, ShardRouter, hash_extended};
use uuid::Uuid;

pim_core::id_kinds! { /** A customer. */ Customer = "customer" }

fn parts(bench: &mut Criterion) {
    let (id, foreign) = (Id::<Customer>::random(), ForeignUuid(Uuid::new_v4()));
    let text = id.to_string();
    let Ok(map) = ShardMap::even(4) else { return };
    let router = ShardRouter::new(map.clone());
    bench.bench_function("bucket of a minted id", |b| b.iter(|| ShardKey::bucket(black_box(&id))));
    bench.bench_function("hash of a foreign key", |b| b.iter(|| hash_extended(black_box(foreign.0.as_bytes()))));
    bench.bench_function("map, minted id", |b| b.iter(|| map.route(black_box(&id))));
    bench.bench_function("router, minted id", |b| b.iter(|| router.route(black_box(&id))));
    bench.bench_function("router, foreign key", |b| b.iter(|| router.route(black_box(&foreign))));
    bench.bench_function("parse of an id", |b| b.iter(|| black_box(text.as_str()).parse::<Id<Customer>>()));
    bench.bench_function("parse of a map of four", |b| {
        let text = map.to_toml();
        b.iter(|| ShardMap::parse(black_box(&text)));
    });
}

criterion_group!(benches, parts);
criterion_main!(benches);
