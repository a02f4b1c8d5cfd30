//! Buckets take writes again although their mover has gone, or got stuck: nobody has to take the move up first.

use std::fs::OpenOptions;
use std::time::Duration;

use pim_core::shard::ShardId;
use pim_data::backend::{SqlPair, Statement};
use pim_data::cluster::{Cluster, ClusterSettings};
use pim_data::relocation::{MoveError, MoveStep};

use super::moving::{at_step, eventually, filled, go_on_to, home_of, mover, refuse_owners};
use super::world::{Account, World, cx, schema, settings};

/// Looks for maps often.
fn watchful(mut settings: ClusterSettings) -> ClusterSettings {
    settings.maps_every = Duration::from_millis(50);
    settings
}

async fn takes_writes(world: &World, account: &Account) {
    let write = async || world.change(account.id, |account| account.points = 7).await.is_ok();
    eventually("it takes writes", write).await;
}

/// How many buckets of a shard are fenced.
async fn fenced(world: &World, shard: ShardId) -> u64 {
    let draining = Statement::of(SqlPair::same("SELECT COUNT(*) FROM pim_bucket_owned WHERE state = 'draining'"));
    world.powerful(shard).await.query(draining).await.expect("reads")[0].count(0).expect("a count")
}

/// Guard: a caller who goes leaves no bucket that refuses its writers for good.
#[tokio::test]
async fn when_the_mover_has_gone() {
    let world = World::with(2, watchful).await;
    for step in [MoveStep::Fenced, MoveStep::Activating] {
        let account = filled(&world).await;
        let (from, to) = home_of(&world, &account);
        let (mover, _) = mover(&world.cluster);
        let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
        drop(at_step(&mover, &planned, step).await);
        takes_writes(&world, &account).await;
        assert_eq!(world.cluster.router().route(&account.id).shard, from);
        assert_eq!(mover.find(planned.id).await.expect("reads").step, step, "the move itself waits for a mover");
        // Whoever lifts the fence has the mover's place until that is done.
        eventually("it goes on", async || mover.run(&cx(), planned.id).await.is_ok()).await;
        assert_eq!(world.cluster.router().route(&account.id).shard, to);
    }
}

/// Guard: nor does one whose source did not answer when it was to lift its own fence.
#[tokio::test]
async fn when_the_mover_could_not_lift_it() {
    let world = World::with(2, watchful).await;
    let account = filled(&world).await;
    let (from, to) = home_of(&world, &account);
    let (mover, tap) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    let mut run = at_step(&mover, &planned, MoveStep::Fenced).await;
    refuse_owners(&world, from, true).await;
    tap.parked.store(true, std::sync::atomic::Ordering::SeqCst);
    let stuck = run.step(&cx()).await;
    assert!(matches!(stuck, Err(MoveError::Shard { .. })), "{stuck:?}");
    drop(run);
    assert_eq!(fenced(&world, from).await, 1);
    refuse_owners(&world, from, false).await;
    takes_writes(&world, &account).await;
}

/// Guard: a bucket that one shard has given and the other has not taken is taken as soon as that can be, also while its mover waits.
#[tokio::test]
async fn when_the_taker_did_not_take() {
    let world = World::with(2, watchful).await;
    let account = filled(&world).await;
    let (_, to) = home_of(&world, &account);
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    let mut run = at_step(&mover, &planned, MoveStep::Activating).await;
    refuse_owners(&world, to, true).await;
    let stuck = run.step(&cx()).await;
    assert!(matches!(stuck, Err(MoveError::Publish(_))), "{stuck:?}");
    assert_eq!((run.record().step, world.cluster.map().version().0), (MoveStep::Activating, 1));
    refuse_owners(&world, to, false).await;
    takes_writes(&world, &account).await;
    assert_eq!(world.cluster.router().route(&account.id).shard, to);
    go_on_to(&mut run, MoveStep::Done).await;
}

/// Guard: that the mover's place is taken does not mean that a mover is at work: backups and retention runs take it as well.
#[tokio::test]
async fn when_somebody_else_had_its_place_at_the_next_opening() {
    let world = World::new(2).await;
    let account = filled(&world).await;
    let (from, to) = home_of(&world, &account);
    let (first, _) = mover(&world.cluster);
    let planned = first.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    drop(at_step(&first, &planned, MoveStep::Fenced).await);
    drop(first);
    let World { cluster, policy, folder } = world;
    drop(cluster);
    let place = OpenOptions::new().write(true).open(folder.path().join("maps").join("MOVE")).expect("is there");
    place.try_lock().expect("is free");
    let cluster = Cluster::open(watchful(settings(&folder, 2)), schema()).await.expect("opens");
    let world = World { cluster, policy, folder };
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(fenced(&world, from).await, 1, "whoever has the place might be a mover");
    drop(place);
    takes_writes(&world, &account).await;
}
