//! Whoever reads finds what has moved, with an old map and at a replica from before.

use std::time::Duration;

use pim_data::cluster::{Access, Cluster};
use pim_data::consistency::Consistency;
use pim_data::fan_out::FanOut;
use pim_data::relocation::{MoveRecord, MoveStep, Mover};
use pim_data::repository::Page;

use super::moving::{at_step, filled, home_of, mover};
use super::world::{Account, Folder, ShopResource, World, cx, read, schema, settings, write};

/// A world whose router knows nothing yet of the account's move, and the mover of the other program that has carried it out.
async fn moved_elsewhere() -> (World, Account, Mover, MoveRecord) {
    let folder = Folder::new();
    let open = || Cluster::open(settings(&folder, 2).with_access(Access::Shared), schema());
    let (cluster, other) = (open().await.expect("opens"), open().await.expect("opens"));
    let world = World { cluster, policy: super::world::policy(), folder };
    let account = filled(&world).await;
    let (_, to) = home_of(&world, &account);
    let (there, _) = mover(&other);
    let planned = there.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    let moved = there.run(&cx(), planned.id).await.expect("moves");
    assert_eq!(world.cluster.map().version().0, 1, "this router knows nothing yet");
    (world, account, there, moved)
}

/// Guard: whoever finds nothing asks who owns the bucket before saying so.
#[tokio::test]
async fn readers_with_an_old_map_find_what_has_moved() {
    let (world, account, there, moved) = moved_elsewhere().await;
    let look = read(ShopResource::Account);
    let found = world.cluster.read::<Account>(&cx(), &look, account.id, &Consistency::Strong).await;
    assert!(found.expect("reads").is_some());
    assert_eq!(world.cluster.map().version().0, 2);

    let back = there.plan_reverse(&cx(), moved.id).await.expect("plans");
    let moved = there.run(&cx(), back.id).await.expect("moves");
    assert_eq!(world.history(account.id).await.len(), 4);
    let forth = there.plan_reverse(&cx(), moved.id).await.expect("plans");
    there.run(&cx(), forth.id).await.expect("moves");
    assert_eq!(world.cluster.map().version().0, 3, "one behind");
    let mut unit = world.cluster.begin(&cx(), account.id);
    assert!(unit.load::<Account>(&write(ShopResource::Account), account.id).await.expect("loads").is_some());
}

/// Guard: also whoever takes what is old, where the primary itself answers.
#[tokio::test]
async fn nor_is_what_has_moved_denied_to_whoever_takes_what_is_old() {
    let (world, account, _there, _moved) = moved_elsewhere().await;
    let look = read(ShopResource::Account);
    let found = world.cluster.read::<Account>(&cx(), &look, account.id, &Consistency::Eventual).await;
    assert!(found.expect("reads").is_some());
}

/// Guard: whoever finds less than the caller has seen asks who owns the bucket before answering. The rows stay a while where they
/// were, for whoever takes the move back.
#[tokio::test]
async fn a_token_is_not_answered_by_what_stayed_behind() {
    let folder = Folder::new();
    let open = || {
        let mut settings = settings(&folder, 2).with_access(Access::Shared);
        settings.maps_every = Duration::from_secs(3_600);
        Cluster::open(settings, schema())
    };
    let (cluster, other) = (open().await.expect("opens"), open().await.expect("opens"));
    let world = World { cluster, policy: super::world::policy(), folder };
    let account = filled(&world).await;
    let (_, to) = home_of(&world, &account);
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    let run = at_step(&mover, &planned, MoveStep::Activated).await;
    let token = world.change(account.id, |account| account.points = 77).await.expect("commits").token;
    assert_eq!(other.map().version().0, 1, "this router knows nothing yet");
    let look = read(ShopResource::Account);
    let seen = other.read::<Account>(&cx(), &look, account.id, &Consistency::ReadYourWrites(token)).await;
    assert_eq!(seen.expect("reads").map(|account| account.points), Some(77));
    drop(run);
}

/// Guard: a replica's snapshot in which the bucket was elsewhere says nothing of its rows.
#[tokio::test]
async fn a_replica_from_before_the_move_is_not_believed() {
    let lagging = |mut settings: pim_data::cluster::ClusterSettings| {
        settings.replica_delay = Duration::from_secs(5);
        settings
    };
    let world = World::with(2, lagging).await;
    let account = filled(&world).await;
    let (_, to) = home_of(&world, &account);
    let look = read(ShopResource::Account);
    let on_target = loop {
        let other = world.register().await;
        if world.cluster.router().route(&other.id).shard == to {
            break other;
        }
    };
    // Takes the snapshot.
    let seen = world.cluster.read::<Account>(&cx(), &look, on_target.id, &Consistency::Eventual).await;
    assert!(seen.expect("reads").is_some());
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    mover.run(&cx(), planned.id).await.expect("moves");
    let seen = world.cluster.read::<Account>(&cx(), &look, account.id, &Consistency::Eventual).await;
    assert!(seen.expect("reads").is_some());
    // Nor what it shows of the whole shard.
    let (fan_out, page) = (FanOut::because("count"), Page::FIRST);
    let all =
        world.cluster.list_across::<Account>(&cx(), &look, fan_out, page, &Consistency::Eventual).await.expect("reads");
    assert!(all.failed.is_empty() && all.rows.iter().any(|row| row.id == account.id), "{all:?}");
}
