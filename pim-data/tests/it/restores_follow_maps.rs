//! Servers are restored to an instant behind the copy of the files: buckets have moved since, and maps of that are not in it.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pim_core::shard::ShardId;
use pim_data::audit::CheckpointError;
use pim_data::backend::{Db, ServerSettings};
use pim_data::backup::{BackupError, Restoration, RestorePoint, RestoreReport, restore};
use pim_data::cluster::{Cluster, ClusterSettings};
use pim_data::relocation::MoveStep;

use super::moving::{at_step, filled, home_of, mover};
use super::world::{Account, Folder, World, cx, policy, schema};

/// The files of a world, copied before a bucket of one of its accounts has gone as far as `step`; nobody serves any more.
async fn moved_up_to(step: MoveStep) -> (Folder, Account, ShardId) {
    moved_after(|_, _| {}, step).await
}

/// The same, with something done before the files were copied.
async fn moved_after(before: impl FnOnce(&World, &Account), step: MoveStep) -> (Folder, Account, ShardId) {
    let world = World::new(2).await;
    let account = filled(&world).await;
    before(&world, &account);
    world.cluster.checkpoint_audit().await.expect("signs");
    world.cluster.back_up_files(&world.folder.path().join("backup"), &[]).await.expect("copies");
    let (_, to) = home_of(&world, &account);
    let (mover, _) = mover(&world.cluster);
    let planned = mover.plan(&cx(), [account.id.bucket()], to).await.expect("plans");
    drop(at_step(&mover, &planned, step).await);
    (world.folder, account, to)
}

/// The files of a world in which nothing has moved since.
async fn standing() -> (Folder, Account) {
    let world = World::new(2).await;
    let account = filled(&world).await;
    world.cluster.checkpoint_audit().await.expect("signs");
    world.cluster.back_up_files(&world.folder.path().join("backup"), &[]).await.expect("copies");
    (world.folder, account)
}

/// Into a folder of its own, from servers that stay where they are: their instant is later than that of the files.
async fn restored(old: &Folder, origin: Option<&Path>) -> Result<(Cluster, RestoreReport, Folder), BackupError> {
    let (restoration, into) = begun(old, origin).await?;
    let (cluster, report) = restoration.finish()?;
    Ok((cluster, report, into))
}

/// As far as everything is checked; the directory is still shut.
async fn begun(old: &Folder, origin: Option<&Path>) -> Result<(Restoration, Folder), BackupError> {
    let (from, into) = (old.path().join("backup"), Folder::new());
    let settings = ClusterSettings::at(into.path()).with_servers(crate::server::provide(old.path(), 2));
    let point = RestorePoint { origin: origin.map(Path::to_owned), ..RestorePoint::default() };
    Ok((restore(&from, &point, settings, schema()).await?, into))
}

/// Hand-typed SQL at the servers of a folder.
async fn by_hand(old: &Folder, database: &str, sql: &str) {
    let settings = ServerSettings { transaction_max: Duration::from_secs(30), ..ServerSettings::default() };
    let secrets = Arc::new(crate::server::secrets(old.path()));
    let mut writer = Db::connect(database, secrets, settings).await.expect("connects").begin().await.expect("begins");
    writer.script(sql).await.expect("runs");
    writer.commit().await.expect("commits");
}

async fn takes_writes(cluster: Cluster, folder: Folder, account: &Account) -> World {
    let world = World { cluster, policy: policy(), folder };
    world.change(account.id, |account| account.points = 7).await.expect("takes writes");
    let report = world.cluster.verify_audit().await.expect("reads");
    assert!(report.verified, "{report:?}");
    world
}

/// Guard: `maps::catch_up`. A map that the shards follow is one that everybody must be able to read.
#[tokio::test]
async fn a_map_that_is_nowhere_to_be_had_is_named() {
    let (old, account, to) = moved_up_to(MoveStep::Done).await;
    let empty = Folder::new();
    let refusal = restored(&old, Some(empty.path())).await.err().expect("is refused");
    assert!(matches!(refusal, BackupError::Map { version: 2 }), "{refusal}");
    assert!(refusal.to_string().contains("maps/2.toml"), "{refusal}");
    // A map of another system has the version, and not the parent.
    let maps = empty.path().join("maps");
    fs::create_dir(&maps).expect("makes");
    let foreign = fs::read_to_string(old.path().join("maps").join("1.toml")).expect("is there");
    fs::write(maps.join("2.toml"), foreign).expect("writes");
    let refusal = restored(&old, Some(empty.path())).await.err().expect("is refused");
    assert!(matches!(refusal, BackupError::Map { version: 2 }), "{refusal}");
    // Nothing was changed meanwhile: where it is to be had, it is restored.
    let (cluster, report, folder) = restored(&old, None).await.expect("restores");
    assert_eq!((report.map_version, cluster.router().route(&account.id).shard), (3, to));
    takes_writes(cluster, folder, &account).await;
}

/// Guard: `maps::catch_up` looks where the backup was taken from first. A map that was kept and came to nothing has the version of
/// the one that came into force.
#[tokio::test]
async fn a_map_that_came_to_nothing_is_not_followed() {
    let stale = |world: &World, account: &Account| {
        let map = world.cluster.map();
        let others = map.buckets_of(home_of(world, account).0).map(|(bucket, _)| bucket);
        let other = others.into_iter().find(|bucket| *bucket != account.id.bucket()).expect("many");
        let next = map.reassign([other], home_of(world, account).1).expect("a successor");
        fs::write(world.folder.path().join("maps").join("2.toml"), next.to_toml()).expect("writes");
    };
    let (old, account, to) = moved_after(stale, MoveStep::Done).await;
    let (cluster, report, folder) = restored(&old, None).await.expect("restores");
    assert_eq!((report.map_version, cluster.router().route(&account.id).shard), (3, to));
    takes_writes(cluster, folder, &account).await;
}

/// Guard: `maps::is_followed`. A move whose map all shards follow is not taken back, though its rows are still at both ends.
#[tokio::test]
async fn a_move_that_was_at_it_goes_on_from_there() {
    for (step, version) in [(MoveStep::Activating, 2), (MoveStep::Activated, 3)] {
        let (old, account, to) = moved_up_to(step).await;
        let (cluster, report, folder) = restored(&old, None).await.expect("restores");
        assert_eq!(report.map_version, version, "{step:?}");
        let world = takes_writes(cluster, folder, &account).await;
        let (mover, _) = mover(&world.cluster);
        let open = mover.unfinished().await.expect("reads");
        mover.run(&cx(), open[0].id).await.expect("comes to its end");
        assert_eq!(world.cluster.router().route(&account.id).shard, to);
        takes_writes(world.cluster, world.folder, &account).await;
    }
}

/// Guard: `maps::is_followed`. Rows that say of a move that it was not so far are no reason to take back a map which all shards follow.
#[tokio::test]
async fn what_all_shards_follow_is_in_force_whatever_the_move_says() {
    let (old, account, to) = moved_up_to(MoveStep::Activated).await;
    by_hand(&old, "control-super", "UPDATE pim_move SET step = 'fenced'; SELECT 1 / count(*) FROM pim_move").await;
    let (cluster, report, folder) = restored(&old, None).await.expect("restores");
    assert_eq!((report.map_version, cluster.router().route(&account.id).shard), (3, to));
    takes_writes(cluster, folder, &account).await;
}

/// Guard: checkpoints are adopted before the epochs are raised. Whoever names another place by mistake has changed nothing.
#[tokio::test]
async fn another_systems_directory_is_refused_before_servers_are_changed() {
    let ((old, account), other) = (standing().await, Folder::new());
    let refusal = restored(&old, Some(other.path())).await.err().expect("is refused");
    assert!(matches!(refusal, BackupError::Audit(CheckpointError::Foreign { .. })), "{refusal}");
    let (cluster, report, folder) = restored(&old, None).await.expect("restores");
    assert_eq!(report.map_version, 2, "the first that raised the epochs");
    takes_writes(cluster, folder, &account).await;
}

/// Guard: `maps::raised`. The map of a restore that came to nothing went with its directory, and the servers follow it.
#[tokio::test]
async fn a_restore_that_failed_behind_its_map_can_be_repeated() {
    let (old, account) = standing().await;
    for version in [2, 3] {
        let (restoration, _) = begun(&old, None).await.expect("comes so far");
        assert_eq!(restoration.report.map_version, version);
        drop(restoration);
    }
    let (cluster, report, folder) = restored(&old, None).await.expect("restores");
    assert_eq!((report.map_version, cluster.router().route(&account.id).epoch.0), (4, 4));
    takes_writes(cluster, folder, &account).await;
}

/// Guard: `maps::raised` takes a bucket at either epoch. Who is killed while the epochs are raised leaves some of them as they were.
#[tokio::test]
async fn a_restore_that_was_killed_while_it_raised_epochs_can_be_repeated() {
    let (old, account) = standing().await;
    drop(begun(&old, None).await.expect("comes so far"));
    let back = "UPDATE pim_bucket_owned SET epoch = 1, map_version = 1";
    by_hand(&old, "shard-1-super", back).await;
    by_hand(&old, "shard-0-super", &format!("{back} WHERE bucket % 256 < 100")).await;
    let (cluster, report, folder) = restored(&old, None).await.expect("restores");
    assert_eq!((report.map_version, cluster.router().route(&account.id).epoch.0), (3, 3));
    takes_writes(cluster, folder, &account).await;
}

/// Guard: `maps::raised` looks at each bucket. A map that is lost and did more than to raise epochs is not made up.
#[tokio::test]
async fn what_raised_epochs_do_not_explain_is_not_made_up() {
    let (old, _) = standing().await;
    drop(begun(&old, None).await.expect("comes so far"));
    for lost in ["epoch = 3", "epoch = 2, state = 'moved', moved_to = 1"] {
        by_hand(&old, "shard-0-super", &format!("UPDATE pim_bucket_owned SET {lost} WHERE bucket = 7")).await;
        let refusal = restored(&old, None).await.err().expect("is refused");
        assert!(matches!(refusal, BackupError::Map { version: 2 }), "{lost}: {refusal}");
    }
}
