//! A backup taken under load restores to a system that verifies, refuses old routers and goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pim_data::backup::{BackupError, Restoration, RestorePoint, restore};
use pim_data::cluster::{Cluster, ClusterSettings, DirectoryError, OpenError};
use pim_data::consistency::Consistency;
use pim_data::unit::Tries;

use super::world::{Account, Folder, ShopResource, World, cx, policy, read, schema};

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
