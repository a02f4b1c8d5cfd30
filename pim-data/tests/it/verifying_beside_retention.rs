//! What has its time while the trail is verified is not missed: tombstones are known as late as what they stand for is looked at.

use std::fs;
use std::time::Duration;

use pim_core::id::Id;
use pim_core::shard::ShardId;
use pim_data::backend::{Statement, Transaction};
use pim_data::retention::RetentionPolicy;

use super::world::{Depot, DepotRow, ShopResource, World, cx, tell, write};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

async fn opened(world: &World) -> Id<Depot> {
    let depot = DepotRow { id: Id::random(), version: 0, code: "north".to_owned() };
    let mut unit = world.cluster.begin_control(&cx(), depot.id);
    unit.save(&write(ShopResource::Depot), &depot).expect("saves");
    tell(&mut unit, "opened");
    unit.commit().await.expect("commits");
    depot.id
}

async fn renamed(world: &World, id: Id<Depot>, code: &str) {
    let mut unit = world.cluster.begin_control(&cx(), id);
    let permit = write(ShopResource::Depot);
    let mut depot = unit.load::<DepotRow>(&permit, id).await.expect("loads").expect("is there");
    code.clone_into(&mut depot.code);
    unit.save(&permit, &depot).expect("saves");
    tell(&mut unit, "renamed");
    unit.commit().await.expect("commits");
}

/// Keeps whoever walks along the shard's records waiting there; they have their snapshot by then.
async fn held_up(world: &World) -> Transaction {
    let lock = Statement::same("LOCK TABLE audit IN ACCESS EXCLUSIVE MODE");
    world.powerful(ShardId(0)).await.begin_with(&[lock]).await.expect("holds").0
}

async fn is_waited_for(world: &World) {
    let asks = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'audit'::regclass";
    let shard = world.powerful(ShardId(0)).await;
    for _ in 0..1_000 {
        let rows = shard.query(Statement::same(asks)).await.expect("reads");
        if rows[0].count(0).expect("a number") > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nobody waits");
}

/// Guards: tombstones are read again behind each snapshot, and a signed head that had its time since is not cut off. The run is
/// one of another process, of which the first look at the file has seen nothing.
#[tokio::test]
async fn a_run_in_between_leaves_no_gap() {
    let (world, clock) = World::with_clock(1).await;
    let depot = opened(&world).await;
    clock.advance(Duration::from_secs(1));
    renamed(&world, depot, "south").await;
    world.cluster.checkpoint_audit().await.expect("signs");
    let lines = world.folder.path().join("audit-checkpoints.jsonl");
    let before = fs::read(&lines).expect("reads");
    clock.advance(100 * DAY);
    renamed(&world, depot, "east").await;
    let run = world.cluster.run_retention(&cx(), &write(ShopResource::Depot), &RetentionPolicy::default()).await;
    assert_eq!(run.expect("runs").rows(), 2);
    let after = fs::read(&lines).expect("reads");

    fs::write(&lines, before).expect("writes");
    let held = held_up(&world).await;
    let verifying = tokio::spawn({
        let cluster = world.cluster.clone();
        async move { cluster.verify_audit().await }
    });
    is_waited_for(&world).await;
    fs::write(&lines, after).expect("writes");
    held.rollback().await.expect("lets go");
    let report = verifying.await.expect("no panic").expect("reads");
    assert!(report.verified, "{report:?}");
}
