//! Servers are restored to an instant behind the copy of the files: buckets have moved since, and maps of that are not in it.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pim_core::shard::ShardId;
use pim_data::backend::{Db, ServerSettings};
use pim_data::backup::{BackupError, RestorePoint, RestoreReport, restore};
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

/// Into a folder of its own, from servers that stay where they are: their instant is later than that of the files.
async fn restored(
    old: &Folder,
    origin: Option<&Path>,
) -> Result<(Cluster, RestoreReport, Folder), BackupError> {
    let (from, into) = (old.path().join("backup"), Folder::new());
    let settings = ClusterSettings::at(into.path()).with_servers(crate::server::provide(old.path(), 2));
    let point = RestorePoint { origin: origin.map(Path::to_owned), ..RestorePoint::default() };
    let (cluster, report) = restore(&from, &point, settings, schema()).await?.finish()?;
    Ok((cluster, report, into))
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
    let settings = ServerSettings { transaction_max: Duration::from_secs(30), ..ServerSettings::default() };
    let secrets = Arc::new(crate::server::secrets(old.path()));
    let control = Db::connect("control-super", secrets, settings).await.expect("connects");
    let mut writer = control.begin().await.expect("begins");
    writer.script("UPDATE pim_move SET step = 'fenced'; SELECT 1 / count(*) FROM pim_move").await.expect("changes a move");
    writer.commit().await.expect("commits");
    let (cluster, report, folder) = restored(&old, None).await.expect("restores");
    assert_eq!((report.map_version, cluster.router().route(&account.id).shard), (3, to));
    takes_writes(cluster, folder, &account).await;
}
