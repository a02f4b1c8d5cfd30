//! A backup taken under load restores to a system that verifies, refuses old routers and goes on.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pim_core::id::Id;
use pim_core::shard::ShardId;
use pim_data::backend::{Db, DbSettings, ReadGuard};
use pim_data::backup::{BackupError, BackupReport, Companion, Restoration, RestorePoint, restore};
use pim_data::cluster::{CONTROL, Cluster, ClusterSettings, DirectoryError, OpenError};
use pim_data::consistency::Consistency;
use pim_data::unit::Tries;
use tokio::task::JoinHandle;

use super::moving::eventually;
use super::world::{Account, Customer, Folder, ShopResource, World, cx, policy, read, schema};
use crate::maps::with_third;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_has_what_was_acknowledged_before_it_and_verifies() {
    let world = Arc::new(World::new(2).await);
    let mut accounts = Vec::new();
    for _ in 0..8 {
        accounts.push(world.register().await);
    }
    world.cluster.checkpoint_audit().await.expect("signs");
    let stop = Arc::new(AtomicBool::new(false));
    let writing = {
        let (world, stop, ids) =
            (Arc::clone(&world), Arc::clone(&stop), accounts.iter().map(|it| it.id).collect::<Vec<_>>());
        tokio::spawn(async move {
            let mut points = 0;
            while !stop.load(Ordering::SeqCst) {
                points += 1;
                for id in &ids {
                    let context = cx();
                    let mut tries = Tries::of(&world.cluster, &context);
                    while let Err(error) = world.change(*id, |account| account.points = points).await {
                        assert!(tries.again(&error).await, "a write failed: {error:?}");
                    }
                }
            }
        })
    };
    // The other writer has this account too: who loses runs again.
    let (context, mut changed) = (cx(), world.change(accounts[0].id, |_| {}).await);
    let mut tries = Tries::of(&world.cluster, &context);
    while let Err(error) = &changed {
        assert!(tries.again(error).await, "a write failed: {error:?}");
        changed = world.change(accounts[0].id, |_| {}).await;
    }
    let acknowledged = changed.expect("commits").n;
    let place = world.folder.path().join("backups").join("one");
    let report = world.cluster.back_up(&place, &[]).await.expect("backs up");
    stop.store(true, Ordering::SeqCst);
    writing.await.expect("no write failed");
    assert!(report.files >= 6 && report.bytes > 0, "{report:?}");

    let elsewhere = Folder::new();
    let into = elsewhere.path().join("restored");
    let restoration = restore(&place, &RestorePoint::default(), ClusterSettings::at(&into), schema()).await;
    let (cluster, report) = restoration.and_then(Restoration::finish).expect("restores");
    assert!(report.audit.verified, "{report:?}");
    assert_eq!((report.audit.checkpoints, report.map_version), (2, 2), "the backup signed one more");
    let restored = World { cluster, policy: policy(), folder: elsewhere };
    for account in &accounts {
        let look = read(ShopResource::Account);
        let row = restored.cluster.read::<Account>(&cx(), &look, account.id, &Consistency::Strong).await;
        let row = row.expect("reads").expect("was acknowledged before");
        let history = restored.history(account.id).await;
        assert_eq!(history.len() as u64, row.version, "row and history are of one instant");
        let route = restored.cluster.router().route(&account.id);
        assert_eq!(route.epoch.0, 2, "numbers that were given out since are given out again, under another epoch");
    }
    let n = restored.change(accounts[0].id, |account| account.points = -1).await.expect("takes writes").n;
    assert!(n > acknowledged);
    assert!(restored.cluster.verify_audit().await.expect("reads").verified);
}

/// Guard: a folder without a manifest, a file that changed, and a place that is taken are refused; nothing is half done.
#[tokio::test]
async fn what_is_no_whole_backup_is_refused() {
    let world = World::new(2).await;
    world.register().await;
    let place = world.folder.path().join("backups").join("one");
    world.cluster.back_up(&place, &[]).await.expect("backs up");
    assert!(matches!(world.cluster.back_up(&place, &[]).await, Err(BackupError::Taken { .. })));
    let elsewhere = Folder::new();
    let to = || ClusterSettings::at(elsewhere.path().join("restored"));
    assert!(matches!(
        restore(world.folder.path(), &RestorePoint::default(), to(), schema()).await,
        Err(BackupError::Absent { .. })
    ));
    std::fs::write(elsewhere.path().join("something"), "of somebody else").expect("writes");
    let taken = ClusterSettings::at(elsewhere.path());
    assert!(matches!(restore(&place, &RestorePoint::default(), taken, schema()).await, Err(BackupError::Taken { .. })));

    let file = place.join("shards").join("shard-1.db");
    let whole = std::fs::read(&file).expect("is there");
    let mut broken = whole.clone();
    broken[100] ^= 1;
    std::fs::write(&file, broken).expect("writes");
    assert!(matches!(
        restore(&place, &RestorePoint::default(), to(), schema()).await,
        Err(BackupError::Damaged { .. })
    ));
    assert!(!elsewhere.path().join("restored").exists(), "nothing was put anywhere");
    std::fs::write(&file, whole).expect("writes");
    let restored = restore(&place, &RestorePoint::default(), to(), schema()).await.expect("restores");
    drop(restored);
    assert!(!elsewhere.path().join("restored").exists(), "who does not finish leaves nothing");
}

/// A backup that has copied the shards and waits for the control database, until what is returned with it is dropped.
async fn half_way(world: &World, place: &Path) -> (JoinHandle<Result<BackupReport, BackupError>>, ReadGuard) {
    let settings = DbSettings { readers_max: 1, ..DbSettings::default() };
    let companion = Db::open(&world.folder.path().join("read.db"), settings).await.expect("opens");
    // Where the trail stands is signed first, and asks the control database too.
    let first = companion.read().await.expect("holds it");
    let (cluster, into) = (world.cluster.clone(), place.to_path_buf());
    let backup =
        tokio::spawn(async move { cluster.back_up(&into, &[Companion::Database("read.db", &companion)]).await });
    eventually("the trail is signed", async || place.join("audit-checkpoints.jsonl").exists()).await;
    let second = world.cluster.database(CONTROL).expect("is open").read().await.expect("holds it");
    drop(first);
    eventually("the last shard is copied", async || place.join("shards").join("shard-1.db").exists()).await;
    (backup, second)
}

/// Guard: `copy_brought`. A map that is copied names shards which were not there when the copying began.
#[tokio::test]
async fn a_shard_that_a_map_brings_meanwhile_is_in_the_backup() {
    let world = World::with(2, |settings| ClusterSettings { readers_max: 1, ..settings }).await;
    let account = world.register().await;
    let place = world.folder.path().join("backups").join("one");
    let (backup, held) = half_way(&world, &place).await;
    world.cluster.publish_map(&with_third(&world.cluster.map())).await.expect("publishes");
    let map = world.cluster.map();
    let empty = map.buckets_of(ShardId(0)).map(|(bucket, _)| bucket).filter(|it| *it != account.id.bucket());
    let given: Vec<_> = empty.take(100).collect();
    let next = map.reassign(given.iter().copied(), ShardId(2)).expect("a successor");
    world.cluster.publish_map(&next).await.expect("publishes");
    let is_there = |id: &Id<Customer>| given.contains(&id.bucket());
    let id = std::iter::repeat_with(Id::random).find(is_there).expect("is drawn");
    let brought = world.register_as(Account::new(id)).await;
    drop(held);
    backup.await.expect("comes to its end").expect("backs up");

    let elsewhere = Folder::new();
    let into = ClusterSettings::at(elsewhere.path().join("restored"));
    let restored = restore(&place, &RestorePoint::default(), into, schema()).await.and_then(Restoration::finish);
    let (cluster, report) = restored.expect("restores");
    assert!(report.audit.verified && report.map_version == 4, "{report:?}");
    let restored = World { cluster, policy: policy(), folder: elsewhere };
    for account in [account, brought] {
        restored.change(account.id, |account| account.points = 1).await.expect("takes writes");
    }
}

/// Guard: `copy_maps` keeps the place of the publisher. A directory would remember a shard else that its map does not name.
#[tokio::test]
async fn maps_are_not_copied_while_somebody_publishes() {
    let world = World::new(2).await;
    let place = world.folder.path().join("backups").join("one");
    let publishing = File::create(world.folder.path().join("maps").join("LOCK")).expect("opens");
    publishing.lock().expect("locks");
    let refused = world.cluster.back_up(&place, &[]).await;
    assert!(matches!(&refused, Err(BackupError::Directory(DirectoryError::Publishing { .. }))), "{refused:?}");
    publishing.unlock().expect("lets go");
    world.cluster.back_up(&place, &[]).await.expect("backs up");
}

/// Guard: whoever is killed while they restore leaves a directory that nobody opens: its numbers may be given out twice.
#[tokio::test]
async fn a_restore_that_was_broken_off_opens_for_nobody() {
    let world = World::new(2).await;
    let account = world.register().await;
    let place = world.folder.path().join("backups").join("one");
    world.cluster.back_up(&place, &[]).await.expect("backs up");
    let elsewhere = Folder::new();
    let into = elsewhere.path().join("restored");
    let restored = restore(&place, &RestorePoint::default(), ClusterSettings::at(&into), schema()).await;
    let restored = restored.expect("restores");
    let refused = Cluster::open(ClusterSettings::at(&into), schema()).await;
    assert!(
        matches!(refused, Err(OpenError::Directory(DirectoryError::HalfRestored { .. }))),
        "what a kill at this instant leaves: {refused:?}"
    );
    let (cluster, _) = restored.finish().expect("lets everybody in");
    drop(cluster);
    let cluster = Cluster::open(ClusterSettings::at(&into), schema()).await.expect("opens");
    let opened = World { cluster, policy: policy(), folder: elsewhere };
    opened.change(account.id, |account| account.points = 1).await.expect("takes writes");
}

#[tokio::test]
async fn recovery_point_is_the_age_of_the_backup() {
    let (world, clock) = World::with_clock(2).await;
    world.register().await;
    let place = world.folder.path().join("backups").join("one");
    world.cluster.back_up(&place, &[]).await.expect("backs up");
    clock.advance(Duration::from_secs(90));
    let elsewhere = Folder::new();
    let mut settings = ClusterSettings::at(elsewhere.path().join("restored"));
    settings.clock = clock;
    let restored = restore(&place, &RestorePoint::default(), settings, schema()).await.expect("restores");
    assert_eq!(restored.report.recovery_point_ms, 90_000);
}
