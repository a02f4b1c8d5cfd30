//! Routing and policy decisions against plain peers, both sides in the same run.
//!
//! Prints one JSON object a line: `name ours peer ratio spread goal holds`, in nanoseconds a decision.

#![expect(clippy::expect_used, reason = "a benchmark that cannot go on must stop")]

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use pim_core::id::Id;
use pim_core::identity::Actor;
use pim_core::rbac::{Permit, Policy, Reach, Read, Scope};
use pim_core::role::ClosedEnum as _;
use pim_core::shard::{Bucket, ForeignUuid, Route, ShardId, ShardKey, ShardMap, ShardRouter};
use uuid::Uuid;

pim_core::id_kinds! { /** A customer. */ Customer = "customer" }
pim_core::roles! { enum R { A = "a", B = "b", C = "c", D = "d" } }
pim_core::actions! { enum Do { Look = "look": Read, List = "list": Read, Make = "make": Write, Drop = "drop": Write } }
pim_core::resources! { enum Thing { X = "x", Y = "y", Z = "z", W = "w" } }

const ROUNDS: usize = 25;
const ROUND: Duration = Duration::from_millis(20);
const KEYS: usize = 1024;
const SWAP_EVERY: Duration = Duration::from_millis(100);

struct Measure {
    name: &'static str,
    ours: f64,
    peer: f64,
    ratio: f64,
    spread: f64,
}

impl Measure {
    /// Turn about, so that whatever else the machine does strikes both sides.
    fn of(name: &'static str, mut ours: impl FnMut(usize) -> u64, mut peer: impl FnMut(usize) -> u64) -> Self {
        let (mut of_ours, mut of_peer) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            of_ours.push(nanos(&mut ours));
            of_peer.push(nanos(&mut peer));
        }
        let mut ratios: Vec<_> = of_ours.iter().zip(&of_peer).map(|(ours, peer)| ours / peer).collect();
        ratios.sort_by(f64::total_cmp);
        let spread = (ratios[ROUNDS * 3 / 4] - ratios[ROUNDS / 4]) / 2.0;
        let (ours, peer, ratio) = (median(of_ours), median(of_peer), ratios[ROUNDS / 2]);
        Self { name, ours, peer, ratio, spread }
    }

    fn print(&self, goal: &str, holds: bool) {
        let Self { name, ours, peer, ratio, spread } = self;
        let line = serde_json::json!({
            "name": name, "ours": round(*ours), "peer": round(*peer), "ratio": round(*ratio), "spread": round(*spread),
            "goal": goal, "holds": holds,
        });
        println!("{line}");
    }
}

fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// Nanoseconds a call, over about one round.
fn nanos(call: &mut impl FnMut(usize) -> u64) -> f64 {
    let (begun, mut calls, mut sum) = (Instant::now(), 0_u32, 0_u64);
    while begun.elapsed() < ROUND {
        for index in 0..KEYS {
            sum = sum.wrapping_add(call(index));
        }
        calls += u32::try_from(KEYS).expect("small");
    }
    black_box(sum);
    begun.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
}

/// What a plain program would write: a table behind an `ArcSwap`, loaded for each key.
struct Plain(ArcSwap<PlainMap>);

struct PlainMap {
    version: u64,
    owners: Vec<(u16, u32)>,
}

impl Plain {
    fn of(map: &ShardMap) -> PlainMap {
        let buckets = (0..4096).map(|number| map.owner(Bucket::new(number).expect("a bucket")));
        PlainMap { version: map.version().0, owners: buckets.map(|(shard, epoch)| (shard.0, epoch.0)).collect() }
    }

    fn route(&self, key: &impl ShardKey) -> u64 {
        let map = self.0.load();
        let (shard, epoch) = map.owners[usize::from(key.bucket().get())];
        u64::from(shard) + u64::from(epoch) + map.version
    }
}

fn sum(route: Route) -> u64 {
    u64::from(route.shard.0) + u64::from(route.epoch.0) + route.map_version.0
}

fn routing() {
    let map = ShardMap::even(4).expect("four shards");
    let plain = Plain(ArcSwap::from_pointee(Plain::of(&map)));
    let router = ShardRouter::new(map);
    let ids: Vec<_> = (0..KEYS).map(|_| Id::<Customer>::random()).collect();
    let foreign: Vec<_> = (0..KEYS).map(|_| ForeignUuid(Uuid::new_v4())).collect();
    let minted = || {
        let peer = |index: usize| plain.route(black_box(&ids[index]));
        Measure::of("route a minted id", |index| sum(router.route(black_box(&ids[index]))), peer)
    };
    let quiet = minted();
    quiet.print("<= 5 ns", quiet.ours <= 5.0);
    let hashed = Measure::of(
        "route a hashed foreign key",
        |index| sum(router.route(black_box(&foreign[index]))),
        |index| plain.route(black_box(&foreign[index])),
    );
    hashed.print("<= 12 ns", hashed.ours <= 12.0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let bucket = Bucket::new(7).expect("a bucket");
            for turn in (0..4_u16).cycle() {
                if done.load(Ordering::Acquire) {
                    return;
                }
                let next = router.map().reassign([bucket], ShardId(turn)).expect("a sound step");
                plain.0.store(Arc::new(Plain::of(&next)));
                router.swap(next).expect("the only one who swaps");
                pause();
            }
        });
        let measure = Measure { name: "route a minted id, ten map swaps a second", ..minted() };
        done.store(true, Ordering::Release);
        measure.print("flat: <= 1.25 x quiet, or 5 ns", measure.ours <= (quiet.ours * 1.25).max(5.0));
    });
}

#[expect(clippy::disallowed_methods, reason = "a thread of its own, and nothing to wait for but time")]
fn pause() {
    std::thread::sleep(SWAP_EVERY);
}

/// The same decision out of a hash map of what is granted.
struct PlainPolicy(HashMap<(&'static str, &'static str, &'static str), Reach>);

impl PlainPolicy {
    fn scope(&self, actor: &Actor, action: Do, thing: Thing) -> Option<Scope> {
        match self.0.get(&(actor.role().name(), action.name(), thing.name()))? {
            Reach::Own => actor.own_record().map(Scope::Own),
            Reach::SameFacility => {
                (!actor.facilities().is_empty()).then(|| Scope::Facilities(actor.facilities().into()))
            }
            _ => Some(Scope::All),
        }
    }
}

fn decisions() {
    let mut builder = Policy::builder(1);
    let mut plain = PlainPolicy(HashMap::new());
    for (index, thing) in Thing::ALL.iter().enumerate() {
        for (role, reach) in [(R::A, Reach::All), (R::B, Reach::SameFacility), (R::C, Reach::Own)] {
            let action = Do::ALL[index % 2];
            builder = builder.permit(role, action, *thing, reach);
            plain.0.insert((role.name(), action.name(), thing.name()), reach);
        }
    }
    let policy = builder.build().expect("a sound policy");
    let facilities: Vec<_> = (1..=8).map(Uuid::from_u128).collect();
    let actors: Vec<_> = R::ALL
        .iter()
        .map(|role| {
            let actor = Actor::new("u-1".parse().expect("a subject"), *role).with_own_record(Uuid::from_u128(9));
            actor.with_facilities(&facilities).expect("few facilities")
        })
        .collect();
    let case = |index: usize| (&actors[index % 4], Do::ALL[index / 4 % 2], Thing::ALL[index / 8 % 4]);
    let ours = |index: usize| {
        let (actor, action, thing) = black_box(case(index));
        let decision: Result<Permit<Read>, _> = policy.authorize(actor, action, thing);
        u64::from(black_box(&decision).is_ok())
    };
    let peer = |index: usize| {
        let (actor, action, thing) = black_box(case(index));
        u64::from(black_box(&plain.scope(actor, action, thing)).is_some())
    };
    let measure = Measure::of("rbac decision", ours, peer);
    measure.print("<= 100 ns", measure.ours <= 100.0);
}

fn main() {
    routing();
    decisions();
}
