//! A map that names another shard brings it to whoever runs, and there is a way back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pim_core::id::Id;
use pim_core::shard::{Bucket, MapVersion, ShardId, ShardMap, ShardState};
use pim_data::cluster::{Access, Cluster, OpenError};
use pim_data::consistency::Consistency;
use pim_data::fan_out::{FanOut, Next};
use pim_data::fence::PublishError;
use pim_data::relocation::MoveStep;
use pim_data::repository::Page;
use tokio::task::JoinSet;

use super::moving::{at_step, eventually, home_of, mover};
use super::world::{Account, Customer, Folder, ShopResource, World, cx, policy, read, schema, settings};
use crate::maps::{edited, endpoint, with_third};

const NEW: ShardId = ShardId(2);

/// Where a shard that is to be added will be.
fn provide(folder: &Folder) {
    #[cfg(feature = "postgres")]
    if super::ENGINE == pim_data::backend::Engine::Postgres {
        crate::server::add(folder.path(), "shard-2");
    }
    assert!(folder.path().exists());
}

/// Some buckets of shard 0 that nobody has rows in.
fn empty(map: &ShardMap, taken: &[Bucket]) -> Vec<Bucket> {
    let free = map.buckets_of(ShardId(0)).map(|(bucket, _)| bucket).filter(|bucket| !taken.contains(bucket));
    free.take(200).collect()
}

fn customer_in(buckets: &[Bucket]) -> Id<Customer> {
    std::iter::repeat_with(Id::random).find(|id| buckets.contains(&id.bucket())).expect("one is drawn")
}

/// Two processes over one directory.
async fn two() -> (Arc<World>, Cluster) {
    let folder = Folder::new();
    provide(&folder);
    let open = || {
        let mut settings = settings(&folder, 2).with_access(Access::Shared);
        settings.maps_every = Duration::from_millis(100);
        Cluster::open(settings, schema())
    };
    let (cluster, other) = (open().await.expect("opens"), open().await.expect("opens"));
    (Arc::new(World { cluster, policy: policy(), folder }), other)
}

/// Writes to accounts until told to stop; each write has to succeed at once.
struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    tasks: JoinSet<(Id<Customer>, i64)>,
}

impl Writers {
    fn of(world: &Arc<World>, accounts: &[Account]) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for id in accounts.iter().map(|account| account.id) {
            let (world, stop, written) = (Arc::clone(world), Arc::clone(&stop), Arc::clone(&written));
            tasks.spawn(async move {
                let mut points = 0;
                while !stop.load(Ordering::SeqCst) {
                    world.change(id, |account| account.points += 1).await.expect("no write fails");
                    points += 1;
                    written.fetch_add(1, Ordering::SeqCst);
                }
                (id, points)
            });
        }
        Self { stop, written, tasks }
    }

    /// Comes back when more has been written.
    async fn go_on(&self) {
        let before = self.written.load(Ordering::SeqCst);
        eventually("writers go on", async || self.written.load(Ordering::SeqCst) > before + 10).await;
    }

    /// Stops them; every write is there, once.
    async fn end(mut self, world: &World) {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.tasks.join_next().await {
            let (id, points) = ended.expect("no write failed");
            world.change(id, |account| assert_eq!(account.points, points)).await.expect("commits");
        }
    }
}

/// Guard: what a map names is open before anybody is sent there, and everybody follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_is_added_and_taken_back_while_everybody_writes() {
    let (world, other) = two().await;
    let mut accounts = Vec::new();
    for _ in 0..4 {
        accounts.push(world.register().await);
    }
    let taken: Vec<_> = accounts.iter().map(|account| account.id.bucket()).collect();
    let writers = Writers::of(&world, &accounts);
    writers.go_on().await;
    other.publish_map(&with_third(&other.map())).await.expect("publishes");
    let first = other.map();
    let buckets = empty(&first, &taken);
    let given = first.reassign(buckets.iter().copied(), NEW).expect("a successor");
    assert_eq!(other.publish_map(&given).await.expect("publishes").len(), buckets.len());
    // This one was told nothing: it finds out, and writes where the map says.
    let account = world.register_as(Account::new(customer_in(&buckets))).await;
    assert_eq!(world.cluster.router().route(&account.id).shard, NEW);
    world.change(account.id, |account| account.points += 1).await.expect("commits");
    writers.go_on().await;
    // What has been filled does not go by a map alone.
    let refused = other.roll_back_map(MapVersion(1)).await;
    assert!(matches!(&refused, Err(PublishError::NotEmpty(it)) if it.bucket == account.id.bucket()), "{refused:?}");
    assert_eq!(other.map().version(), MapVersion(3), "the running map stays");
    world.change(account.id, |account| account.points += 1).await.expect("commits");
    // All but that one go back.
    let given_back: Vec<_> = buckets.iter().copied().filter(|bucket| *bucket != account.id.bucket()).collect();
    other
        .publish_map(&other.map().reassign(given_back.clone(), ShardId(0)).expect("a successor"))
        .await
        .expect("publishes");
    writers.go_on().await;
    let back = world.register_as(Account::new(customer_in(&given_back))).await;
    assert_eq!(world.cluster.router().route(&back.id).shard, ShardId(0));
    writers.end(&world).await;
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
}

/// Guard: a way back is a map of its own, with risen epochs, and a shard that only the later map knows is read until a map
/// says no more where it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_is_rolled_back_while_everybody_writes() {
    let (world, other) = two().await;
    let account = world.register().await;
    let writers = Writers::of(&world, std::slice::from_ref(&account));
    let buckets = empty(&other.map(), &[account.id.bucket()]);
    other.publish_map(&with_third(&other.map())).await.expect("publishes");
    other.publish_map(&other.map().reassign(buckets.clone(), NEW).expect("a successor")).await.expect("publishes");
    writers.go_on().await;
    let ahead = other.roll_back_map(MapVersion(3)).await;
    assert!(matches!(ahead, Err(PublishError::NotEarlier { .. })), "{ahead:?}");
    let (back, handovers) = other.roll_back_map(MapVersion(1)).await.expect("rolls back");
    assert_eq!((back.version(), handovers.len()), (MapVersion(4), buckets.len()));
    assert_eq!(back.owner(buckets[0]).0, ShardId(0));
    assert!(back.owner(buckets[0]).1 > other.map().owner(account.id.bucket()).1, "its epoch has risen twice");
    assert_eq!(back.shards()[2].state, ShardState::Retired);
    writers.go_on().await;
    let again = world.register_as(Account::new(customer_in(&buckets))).await;
    assert_eq!(world.cluster.router().route(&again.id).shard, ShardId(0));
    assert!(other.sources().any(|it| it == NEW) && world.cluster.sources().any(|it| it == NEW));
    let gone = edited(&other.map(), |map| {
        map["shards"][2]["endpoints"] = toml::Value::Array(Vec::new());
    });
    other.publish_map(&gone).await.expect("publishes");
    assert!(other.sources().all(|it| it != NEW));
    let (all, page) = (FanOut::because("census"), Page { after: None, limit: 100 });
    let permit = read(ShopResource::Account);
    let asked =
        other.list_across::<Account>(&cx(), &permit, all, page, &Consistency::Strong).await.expect("few shards");
    assert!(asked.failed.is_empty() && asked.next == Next::End, "nobody asks who is gone: {:?}", asked.failed);
    // Nothing is refused, so nobody has a reason to look but that it is time to.
    eventually("the other process follows", async || world.cluster.sources().all(|it| it != NEW)).await;
    writers.end(&world).await;
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
}

/// Guard: a map is refused before anything was changed for it.
#[tokio::test]
async fn a_map_whose_shard_cannot_be_used_changes_nothing() {
    let folder = Folder::new();
    let cluster = Cluster::open(settings(&folder, 2), schema()).await.expect("opens");
    let world = World { cluster, policy: policy(), folder };
    let account = world.register().await;
    // On the server there is no such database; the file is a folder.
    std::fs::create_dir(world.folder.path().join("shards").join("shard-2.db")).expect("makes");
    let refused = world.cluster.publish_map(&with_third(&world.cluster.map())).await;
    let Err(PublishError::Open(error)) = refused else { panic!("{refused:?}") };
    assert!(matches!(&*error, OpenError::Database { shard, .. } if shard == "shard 2"), "{error:?}");
    assert_eq!(world.cluster.map().version(), MapVersion(1));
    assert!(!world.folder.path().join("maps").join("2.toml").exists(), "a map that came to nothing is not kept");
    assert_eq!(world.cluster.sources().count(), 3);
    world.change(account.id, |account| account.points += 1).await.expect("commits");
}

/// Guard: shards that were opened for a map that came to nothing are closed again.
#[tokio::test]
async fn a_map_that_is_refused_at_the_fence_leaves_no_shard_behind() {
    let (world, _other) = two().await;
    let account = world.register().await;
    let full = with_third(&world.cluster.map()).reassign([account.id.bucket()], NEW).expect("a successor");
    // The same in one step from the map in force.
    let at_once = edited(&world.cluster.map(), |map| {
        let wanted: toml::Table = full.to_toml().parse().expect("a map is TOML");
        for part in ["shards", "ranges"] {
            map.insert(part.to_owned(), wanted[part].clone());
        }
    });
    let refused = world.cluster.publish_map(&at_once).await;
    assert!(matches!(refused, Err(PublishError::NotEmpty(_))), "{refused:?}");
    assert_eq!(world.cluster.sources().count(), 3);
    world.change(account.id, |account| account.points += 1).await.expect("commits");
}

/// Guard: what leaves goes when nobody is sent there any more, so that it may give its buckets away in the same step.
#[tokio::test]
async fn a_shard_gives_its_buckets_away_and_is_gone_in_one_step() {
    let world = World::new(4).await;
    let of_last: Vec<_> = world.cluster.map().buckets_of(ShardId(3)).map(|(bucket, _)| bucket).collect();
    let given = world.cluster.map().reassign(of_last.clone(), ShardId(0)).expect("a successor");
    let at_once = edited(&world.cluster.map(), |map| {
        let wanted: toml::Table = given.to_toml().parse().expect("a map is TOML");
        map.insert("ranges".to_owned(), wanted["ranges"].clone());
        map["shards"][3]["state"] = "retired".into();
        map["shards"][3]["endpoints"] = toml::Value::Array(Vec::new());
    });
    world.cluster.publish_map(&at_once).await.expect("publishes");
    assert_eq!(world.cluster.sources().count(), 4);
    let account = world.register_as(Account::new(customer_in(&of_last))).await;
    assert_eq!(world.cluster.router().route(&account.id).shard, ShardId(0));
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
}

/// Guard: a trail that is still to be verified is not left behind.
#[tokio::test]
async fn a_shard_with_a_trail_is_not_left_out() {
    let (world, other) = two().await;
    drop(other);
    world.cluster.publish_map(&with_third(&world.cluster.map())).await.expect("publishes");
    let buckets = empty(&world.cluster.map(), &[]);
    world
        .cluster
        .publish_map(&world.cluster.map().reassign(buckets.clone(), NEW).expect("a map"))
        .await
        .expect("publishes");
    let account = world.register_as(Account::new(customer_in(&buckets))).await;
    let (mover, _tap) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], ShardId(0)).await.expect("plans");
    mover.run(&cx(), planned.id).await.expect("moves");
    let (back, _) = world.cluster.roll_back_map(MapVersion(1)).await.expect("rolls back");
    assert_eq!(back.shards()[2].state, ShardState::Retired);
    let gone = edited(&back, |map| map["shards"][2]["endpoints"] = toml::Value::Array(Vec::new()));
    let refused = world.cluster.publish_map(&gone).await;
    assert!(matches!(refused, Err(PublishError::StillNeeded(NEW))), "{refused:?}");
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
}

/// Guard: publishing goes on with a publication that was broken off, also when it is that of the same map, with its shards.
#[tokio::test]
async fn publishing_again_goes_on_with_what_was_broken_off() {
    let (world, other) = two().await;
    let added = with_third(&world.cluster.map());
    world.cluster.publish_map(&added).await.expect("publishes");
    let (back, _) = world.cluster.roll_back_map(MapVersion(1)).await.expect("rolls back");
    let gone = edited(&back, |map| map["shards"][2]["endpoints"] = toml::Value::Array(Vec::new()));
    world.cluster.publish_map(&gone).await.expect("publishes");
    drop(other);
    // A publisher has fenced one of the shards for a map that brings another, and died.
    let again = edited(&gone, |map| {
        let parsed = |map: &ShardMap| map.to_toml().parse::<toml::Table>().expect("a map is TOML");
        map.insert("ranges".to_owned(), parsed(&gone.fenced().expect("a successor"))["ranges"].clone());
        map.insert("shards".to_owned(), parsed(&added)["shards"].clone());
    });
    std::fs::write(world.folder.path().join("maps").join("5.toml"), again.to_toml()).expect("writes");
    let mut tx = world.powerful(ShardId(0)).await.begin().await.expect("begins");
    tx.script("UPDATE pim_bucket_owned SET epoch = 2, map_version = 5 WHERE state = 'owned'").await.expect("runs");
    tx.commit().await.expect("commits");
    world.cluster.publish_map(&again).await.expect("goes on");
    assert_eq!((world.cluster.map().version(), world.cluster.sources().count()), (MapVersion(5), 4));
    for _ in 0..8 {
        world.register().await;
    }
}

/// Guard: what was begun for a shard that cannot be opened any more keeps nobody from publishing, or from opening the directory.
#[tokio::test]
async fn a_publication_that_was_broken_off_is_taken_back_when_its_shard_is_lost() {
    let world = World::new(2).await;
    let map = world.cluster.map();
    let begun = edited(&map, |text| {
        let fenced: toml::Table = map.fenced().expect("a successor").to_toml().parse().expect("a map is TOML");
        text.insert("ranges".to_owned(), fenced["ranges"].clone());
        // On the server there is no such database; the file is a folder.
        let mut lost: toml::Table = fenced["shards"][0].clone().try_into().expect("a shard");
        lost.insert("id".to_owned(), 2.into());
        lost.insert("name".to_owned(), "shard-8".into());
        lost.insert("endpoints".to_owned(), vec![endpoint("shard-8-primary", "primary", "shard-8")].into());
        text["shards"].as_array_mut().expect("shards").push(lost.into());
    });
    std::fs::create_dir(world.folder.path().join("shards").join("shard-8.db")).expect("makes");
    std::fs::write(world.folder.path().join("maps").join("2.toml"), begun.to_toml()).expect("writes");
    let mut tx = world.powerful(ShardId(0)).await.begin().await.expect("begins");
    tx.script("UPDATE pim_bucket_owned SET epoch = 2, map_version = 2").await.expect("runs");
    tx.commit().await.expect("commits");
    let World { cluster, policy, folder } = world;
    drop(cluster);
    let cluster = Cluster::open(settings(&folder, 2), schema()).await.expect("opens");
    assert_eq!((cluster.map().version(), cluster.sources().count()), (MapVersion(1), 3));
    let world = World { cluster, policy, folder };
    world.cluster.publish_map(&world.cluster.map().fenced().expect("a successor")).await.expect("publishes");
    for _ in 0..8 {
        world.register().await;
    }
}

/// Guard: whoever lifts a fence has the place of the publisher already, and takes over what another process has published with it.
#[tokio::test]
async fn a_fence_is_lifted_although_another_process_has_brought_a_shard() {
    let (world, other) = two().await;
    let account = world.register().await;
    let (mover, _tap) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], home_of(&world, &account).1).await.expect("plans");
    let run = at_step(&mover, &planned, MoveStep::Fenced).await;
    drop(run);
    other.publish_map(&with_third(&other.map())).await.expect("publishes");
    let resumed = async { mover.take_up(planned.id).await.expect("is free").step(&cx()).await };
    let resumed = tokio::time::timeout(Duration::from_secs(20), resumed).await.expect("it waits for nobody");
    assert!(matches!(resumed, Ok(MoveStep::Planned)), "{resumed:?}");
    // A shard that takes its time to open is not waited for by whoever lifts a fence.
    let taken = eventually("the newest map is in use", async || world.cluster.map().version() == MapVersion(2));
    taken.await;
    world.change(account.id, |account| account.points += 1).await.expect("commits");
}

/// Guard: whoever opens the directory goes on with what was broken off, also when shards have come with it; and the number of
/// shards that a directory was made with is not that of its map.
#[tokio::test]
async fn a_publication_that_was_broken_off_brings_its_shards() {
    let (world, other) = two().await;
    let first = world.cluster.map();
    let buckets = empty(&first, &[]);
    let next = with_third(&first);
    other.publish_map(&next).await.expect("publishes");
    let given = next.reassign(buckets.clone(), NEW).expect("a successor");
    other.publish_map(&given).await.expect("publishes");
    drop(other);
    // As if the power had failed before the newest map had its name.
    std::fs::write(world.folder.path().join("shard-map.toml"), next.to_toml()).expect("writes");
    let World { cluster, policy, folder } = Arc::into_inner(world).expect("nobody else has it");
    drop(cluster);
    let cluster = Cluster::open(settings(&folder, 2).with_access(Access::Shared), schema()).await.expect("opens");
    assert_eq!(cluster.map().version(), MapVersion(3));
    let world = World { cluster, policy, folder };
    let account = world.register_as(Account::new(customer_in(&buckets))).await;
    assert_eq!(world.cluster.router().route(&account.id).shard, NEW);
}
