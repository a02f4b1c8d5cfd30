//! A shard refuses a writer that holds an older map, and the writer recovers.

use pim_core::id::Id;
use pim_core::shard::{Bucket, ShardId};
use pim_data::backend::Statement;
use pim_data::cluster::{Access, Cluster};
use pim_data::fence::PublishError;
use pim_data::unit::UnitError;

use super::world::{Account, Folder, ShopResource, World, cx, policy, schema, settings, tell, write};

/// Two processes on one data directory, as far as the databases can tell.
async fn two() -> (World, Cluster) {
    let folder = Folder::new();
    let open = || Cluster::open(settings(&folder, 2).with_access(Access::Shared), schema());
    let (one, other) = (open().await.expect("opens"), open().await.expect("opens"));
    (World { cluster: one, policy: policy(), folder }, other)
}

#[tokio::test]
async fn a_stale_router_is_refused_and_recovers_by_refreshing() {
    let (world, publisher) = two().await;
    let account = world.register().await;
    publisher.publish_map(&publisher.map().fenced().expect("a successor")).await.expect("publishes");
    assert_eq!(world.cluster.map().version().0, 1, "this router knows nothing yet");

    let committed = world.change(account.id, |account| account.points = 1).await.expect("commits under the new map");
    assert_eq!(committed.fenced, 1, "refused once, by the fence");
    assert_eq!(world.cluster.map().version().0, 2);
    let committed = world.change(account.id, |account| account.points = 2).await.expect("commits");
    assert_eq!(committed.fenced, 0);
}

#[tokio::test]
async fn a_route_that_no_published_map_confirms_stays_refused() {
    let (world, _) = two().await;
    let account = world.register().await;
    // A fence that is never published: a zombie of the old epoch must not write.
    world.raw(account.id, "UPDATE pim_bucket_owned SET epoch = epoch + 1, map_version = 9").await.expect("runs");
    let refused = world.change(account.id, |account| account.points = 1).await;
    let Err(error @ UnitError::Fence { newest, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(newest.0, 9);
    assert!(error.is_retryable());
    assert_eq!(world.count(account.id, "SELECT points FROM account_row").await, 0);
    assert_eq!(world.count(account.id, "SELECT COUNT(*) FROM fact").await, 1);
}

#[tokio::test]
async fn a_unit_that_began_before_the_fence_enters_by_the_new_map_and_still_compares_n() {
    let (world, publisher) = two().await;
    let account = world.register().await;
    let permit = write(ShopResource::Account);
    let mut unit = world.cluster.begin(&cx(), account.id);
    let seen = unit.load::<Account>(&permit, account.id).await.expect("loads").expect("is there");
    publisher.publish_map(&publisher.map().fenced().expect("a successor")).await.expect("publishes");
    world.change(account.id, |account| account.points = 1).await.expect("somebody else is faster");
    unit.save(&permit, &seen).expect("saves");
    tell(&mut unit, "changed");
    assert!(matches!(unit.commit().await, Err(UnitError::Conflict)));
}

#[tokio::test]
async fn a_bucket_with_rows_does_not_change_hands_and_the_running_map_stays() {
    let world = World::new(2).await;
    let account = world.register().await;
    let from = world.cluster.router().route(&account.id).shard;
    let to = ShardId(1 - from.0);
    let next = world.cluster.map().reassign([account.id.bucket()], to).expect("a successor");
    let refused = world.cluster.publish_map(&next).await;
    let Err(PublishError::NotEmpty(handover)) = refused else { panic!("{refused:?}") };
    assert_eq!((handover.bucket, handover.from, handover.to), (account.id.bucket(), from, to));
    assert_eq!(world.cluster.map().version().0, 1);
    world.change(account.id, |account| account.points = 1).await.expect("the old map still holds");
}

#[tokio::test]
async fn an_empty_bucket_changes_hands_and_its_former_owner_refuses_it() {
    let (world, publisher) = two().await;
    let account = Account::new(Id::random());
    let from = world.cluster.router().route(&account.id).shard;
    let next = world.cluster.map().reassign([account.id.bucket()], ShardId(1 - from.0)).expect("a successor");
    let handovers = publisher.publish_map(&next).await.expect("publishes");
    assert_eq!(handovers.len(), 1);

    let mut unit = world.cluster.begin(&cx(), account.id);
    unit.save(&write(ShopResource::Account), &account).expect("saves");
    tell(&mut unit, "registered");
    let committed = unit.commit().await.expect("commits on the new owner");
    assert_eq!(committed.fenced, 1, "the stale router asked the former owner, who refused");
    assert_ne!(world.cluster.router().route(&account.id).shard, from);
    assert_eq!(world.count(account.id, "SELECT COUNT(*) FROM account_row").await, 1);
}

#[tokio::test]
async fn one_full_bucket_keeps_all_of_a_step_where_it_was() {
    let world = World::new(3).await;
    // On the last shard, so that another one has given its buckets when this one refuses.
    let mut filled = Vec::new();
    let account = loop {
        let account = world.register().await;
        filled.push(account.id.bucket());
        if world.cluster.router().route(&account.id).shard == ShardId(2) {
            break account;
        }
    };
    let others = (0..4096).filter_map(|number| Bucket::new(number).ok()).filter(|bucket| {
        let of = world.cluster.map().owner(*bucket).0;
        of == ShardId(1) && bucket.get() % 8 == 0 && !filled.contains(bucket)
    });
    let moved: Vec<_> = others.chain([account.id.bucket()]).collect();
    let next = world.cluster.map().reassign(moved.iter().copied(), ShardId(0)).expect("a successor");
    assert!(matches!(world.cluster.publish_map(&next).await, Err(PublishError::NotEmpty(_))));
    let left = Statement::same("SELECT COUNT(*) FROM pim_bucket_owned WHERE state <> 'owned'");
    let rows = world.cluster.database(ShardId(1)).expect("a shard").query(left).await.expect("reads");
    assert_eq!(rows[0].count(0).expect("a count"), 0, "what was given before the refusal has been taken back");
    // Whatever was given before the refusal has been taken back: every shard still takes its own.
    for _ in 0..32 {
        world.register().await;
    }
    let later = world.cluster.map().fenced().expect("a successor");
    world.cluster.publish_map(&later).await.expect("the next publication is not hindered");
    world.register().await;
}

#[tokio::test]
async fn an_interrupted_publication_is_finished_by_the_next_opening() {
    let World { cluster, policy, folder } = World::new(2).await;
    let next = cluster.map().fenced().expect("a successor");
    // What a publisher has done when it dies between fence and publication: the map is kept, one shard is fenced.
    std::fs::write(folder.path().join("maps").join("2.toml"), next.to_toml()).expect("writes");
    let world = World { cluster, policy, folder };
    let mut tx = world.powerful(ShardId(0)).await.begin().await.expect("begins");
    tx.script("UPDATE pim_bucket_owned SET epoch = 2, map_version = 2").await.expect("runs");
    tx.commit().await.expect("commits");
    let World { cluster, policy, folder } = world;
    drop(cluster);
    let cluster = Cluster::open(settings(&folder, 2), schema()).await.expect("opens");
    assert_eq!(cluster.map().version().0, 2);
    let world = World { cluster, policy, folder };
    for _ in 0..8 {
        world.register().await;
    }
}

#[tokio::test]
async fn a_map_that_may_not_follow_is_refused() {
    let world = World::new(2).await;
    let next = world.cluster.map().fenced().expect("a successor").fenced().expect("and its successor");
    assert!(matches!(world.cluster.publish_map(&next).await, Err(PublishError::Map(_))));
    assert_eq!(world.cluster.map().version().0, 1);
}
