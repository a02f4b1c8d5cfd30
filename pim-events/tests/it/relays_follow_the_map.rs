//! A relay over a cluster serves the shards that a map adds, by the servers that a map names.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pim_core::shard::{ShardId, ShardMap};
use pim_data::relocation::{MoveStep, Mover};
use pim_events::{OutboxOutlet, Relay};
use uuid::Uuid;

use super::rig::{Folder, Journal, Rig, Running, carried_out, context, eventually, patient, relay_settings};
use crate::maps::{edited, endpoint, with_third};

fn provide(folder: &Folder) {
    #[cfg(feature = "postgres")]
    if super::ENGINE == pim_data::backend::Engine::Postgres {
        crate::server::add(folder.path(), "shard-2");
    }
    assert!(folder.path().exists());
}

/// The next map, in which every shard is found by another secret.
fn found_anew(map: &ShardMap) -> ShardMap {
    edited(map, |map| {
        for (number, shard) in map["shards"].as_array_mut().unwrap().iter_mut().enumerate() {
            let (id, dsn_ref) = (format!("shard-{number}-primary"), format!("green.shard-{number}"));
            shard["endpoints"] = vec![endpoint(&id, "primary", &dsn_ref)].into();
        }
    })
}

/// Whether nobody is connected to a shard by the secret that it had before.
async fn is_drained(rig: &Rig, shard: ShardId) -> bool {
    #[cfg(feature = "postgres")]
    if super::ENGINE == pim_data::backend::Engine::Postgres {
        use pim_data::backend::{SqlPair, Statement};

        let look = SqlPair::postgres(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                    AND usename LIKE 'pim_test%' AND application_name <> 'green'",
        );
        let rows = super::rig::powerful_of(rig, shard).await.query(Statement::of(look)).await.unwrap();
        return rows[0].count(0).unwrap() == 0;
    }
    rig.cluster.database(shard).is_some()
}

/// Guard: `Relay::serve` looks what outboxes there are whenever a map has changed that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_keep_their_order_on_a_shard_that_was_not_there_before() {
    let folder = Folder::new();
    provide(&folder);
    let rig = Arc::new(Rig::open(folder.path()).await);
    let relay = Running::relay(Relay::new(&rig.cluster, &rig.publisher(), &relay_settings()).unwrap());
    let runner = Running::projections(rig.projections(&Journal::default()).await);
    let home = patient();
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writing = {
        let (rig, stop, written) = (Arc::clone(&rig), Arc::clone(&stop), Arc::clone(&written));
        tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let next = written.load(Ordering::SeqCst) + 1;
                // In thousands: some small numbers mean something to the journal.
                rig.write(home, Uuid::new_v4(), &[1000 * next]).await;
                written.store(next, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    };
    let catches_up = async |what: &str| {
        let so_far = written.load(Ordering::SeqCst) + 5;
        eventually(what, || async { rig.journal().await.len() as u64 >= so_far }).await;
    };
    catches_up("events are applied").await;
    rig.cluster.publish_map(&with_third(&rig.cluster.map())).await.unwrap();
    let mover = Mover::new(&rig.cluster, Arc::new(OutboxOutlet));
    let planned = mover.plan(&context(), [home.bucket()], ShardId(2)).await.unwrap();
    assert_eq!(carried_out(&mover, planned.id).await.step, MoveStep::Done);
    catches_up("events of the new shard are applied").await;
    rig.cluster.publish_map(&found_anew(&rig.cluster.map())).await.unwrap();
    for shard in [0, 1, 2].map(ShardId) {
        eventually("nobody reads it the old way", || is_drained(&rig, shard)).await;
    }
    catches_up("events are applied by other connections").await;
    stop.store(true, Ordering::SeqCst);
    writing.await.unwrap();
    let written = written.load(Ordering::SeqCst);
    eventually("everything is applied", || async { rig.journal().await.len() as u64 >= written }).await;
    relay.end().await;
    runner.end().await;
    let steps: Vec<u64> = rig.journal().await.into_iter().map(|(_, _, step)| step).collect();
    assert_eq!(steps, (1..=written).map(|step| 1000 * step).collect::<Vec<_>>(), "each once, in the order of writing");
}
