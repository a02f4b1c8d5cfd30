//! Whoever routes sees one map as a whole, and never an older one than before; whoever swaps knows whether it was in time.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use pim_core::clock::Timestamp;
use pim_core::id::Id;
use pim_core::shard::{Bucket, ForeignUuid, HomeKey, Route, ShardId, ShardKey, ShardMap, ShardRouter};
use uuid::Uuid;

pim_core::id_kinds! {
    /// A thing with a bucket.
    Thing = "thing",
}

const BUCKETS: [u16; 3] = [7, 2000, 4095];

/// A chain of maps in which three buckets move at once, each time.
fn chain(length: u16) -> Vec<ShardMap> {
    let buckets = BUCKETS.map(|bucket| Bucket::new(bucket).unwrap());
    let mut maps = vec![ShardMap::even(4).unwrap()];
    for step in 0..length {
        let last = maps.last().unwrap();
        maps.push(last.reassign(buckets, ShardId(step % 4)).unwrap());
    }
    maps
}

#[test]
fn while_maps_are_swapped() {
    let maps = chain(200);
    let router = ShardRouter::new(maps[0].clone());
    let keys = BUCKETS.map(|bucket| Id::<Thing>::child_of(Bucket::new(bucket).unwrap(), Timestamp::from_micros(0)));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut newest = 0;
                while !done.load(Ordering::Acquire) {
                    for key in &keys {
                        let route = router.route(key);
                        let version = route.map_version.0;
                        assert!(version >= newest, "went back from {newest} to {version}");
                        newest = version;
                        let map = &maps[usize::try_from(version - 1).unwrap()];
                        assert_eq!((route.shard, route.epoch), map.owner(route.bucket), "a mix at {version}");
                    }
                }
            });
        }
        for next in &maps[1..] {
            router.swap(next.clone()).unwrap();
            assert_eq!(router.route(&keys[0]).map_version, next.version(), "who swapped sees it at once");
            std::thread::yield_now();
        }
        done.store(true, Ordering::Release);
    });
    assert_eq!(router.version().0, 201);
}

#[test]
fn of_two_swaps_at_once_one_is_told_that_it_lost() {
    for _ in 0..300 {
        let map = ShardMap::even(2).unwrap();
        let nexts = [0, 1]
            .map(|shard| map.reassign([Bucket::new(9).unwrap(), Bucket::new(4000).unwrap()], ShardId(shard)).unwrap());
        let router = ShardRouter::new(map);
        let barrier = Barrier::new(2);
        let won = std::thread::scope(|scope| {
            let threads = nexts.clone().map(|next| {
                let (router, barrier) = (&router, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    router.swap(next).is_ok()
                })
            });
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(won.iter().filter(|won| **won).count(), 1);
        let winner = &nexts[usize::from(won[1])];
        assert_eq!(router.map().digest(), winner.digest());
    }
}

#[test]
fn catching_up_skips_but_never_goes_back() {
    let maps = chain(3);
    let router = ShardRouter::new(maps[0].clone());
    let stale = router.clone();
    assert!(router.catch_up(maps[3].clone()));
    assert!(!router.catch_up(maps[3].clone()));
    assert!(!router.catch_up(maps[1].clone()));
    assert!(router.swap(maps[1].clone()).is_err());
    assert_eq!(stale.version().0, 4, "clones share the map");
}

#[test]
fn routers_of_one_thread_are_told_apart() {
    let (one, four) = (ShardRouter::new(ShardMap::even(1).unwrap()), ShardRouter::new(ShardMap::even(4).unwrap()));
    let key = Id::<Thing>::child_of(Bucket::new(4095).unwrap(), Timestamp::from_micros(0));
    for _ in 0..3 {
        assert_eq!((one.route(&key).shard, four.route(&key).shard), (ShardId(0), ShardId(3)));
    }
}

/// A key whose bucket is that of the shard of another key.
struct Beside<'r>(&'r ShardRouter, Uuid);

impl ShardKey for Beside<'_> {
    fn bucket(&self) -> Bucket {
        self.0.route(&ForeignUuid(self.1)).bucket
    }

    fn key_uuid(&self) -> Uuid {
        self.1
    }
}

#[test]
fn a_key_may_itself_ask_a_router() {
    let router = ShardRouter::new(ShardMap::even(4).unwrap());
    let route: Route = router.route(&Beside(&router, Uuid::max()));
    assert_eq!(route, router.route(&HomeKey::of(&ForeignUuid(Uuid::max()))));
}
