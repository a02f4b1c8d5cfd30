//! Shards, log and read models are copied one after the other while everything runs; restored, they agree again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pim_core::shard::HomeKey;
use pim_data::backend::{Db, DbSettings};
use pim_data::backup::{Companion, RestorePoint, restore};
use pim_data::cluster::ClusterSettings;
use pim_data::schema::Schema;
use pim_events::{EventsExt as _, Source};
use uuid::Uuid;

use crate::rig::{Folder, Journal, Rig, Running, eventually, patient, registry};

/// The number of a key on its shard.
async fn number(rig: &Rig, home: HomeKey) -> u64 {
    let shard = rig.cluster.router().route(&home).shard;
    let asked = pim_data::backend::Statement::same("SELECT n FROM key_head WHERE key = ?").bind(home.uuid());
    let rows = rig.cluster.database(shard).unwrap().query(asked).await.unwrap();
    rows.first().map_or(0, |row| row.count(0).unwrap())
}

/// Guard: a restored outbox begins with what it has (`Source::rebase`), so that the older copy of the log misses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_system_applies_every_event_of_its_shards_once_and_in_order() {
    let folder = Folder::new();
    let rig = Arc::new(Rig::open(folder.path()).await);
    let relay = Running::relay(rig.relay());
    let runner = Running::projections(rig.projections(&Journal::default()).await);
    let homes: Vec<HomeKey> = (0..4).map(|_| patient()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let writing = {
        let (rig, stop, homes) = (Arc::clone(&rig), Arc::clone(&stop), homes.clone());
        tokio::spawn(async move {
            let mut step = 0;
            while !stop.load(Ordering::SeqCst) {
                step += 1000;
                for home in &homes {
                    rig.write(*home, Uuid::new_v4(), &[step]).await;
                }
            }
        })
    };
    eventually("something is applied", || async { rig.journal().await.len() > 50 }).await;
    let place = folder.path().join("backups").join("one");
    let companions = [
        Companion::Database("read.db", rig.store.db()),
        Companion::Database("bus.db", rig.bus.db()),
        Companion::Folder("bus.archive"),
    ];
    let earlier = folder.path().join("backups").join("earlier");
    rig.cluster.back_up(&earlier, &companions).await.unwrap();
    // Behind the copies of read models and log, before those of the shards, events go out: they must not be missed.
    let applied = rig.journal().await.len();
    eventually("more is applied", || async { rig.journal().await.len() > applied + 50 }).await;
    let open = async |name: &str| Db::open(&earlier.join(name), DbSettings::default()).await.unwrap();
    let (reads, log) = (open("read.db").await, open("bus.db").await);
    let companions = [Companion::Database("read.db", &reads), Companion::Database("bus.db", &log)];
    rig.cluster.back_up(&place, &companions).await.unwrap();
    stop.store(true, Ordering::SeqCst);
    writing.await.unwrap();
    relay.end().await;
    runner.end().await;

    let elsewhere = Folder::new();
    let into = elsewhere.path().join("restored");
    let schema = Schema::builder().events(&registry()).build().unwrap();
    let restoration = restore(&place, &RestorePoint::default(), ClusterSettings::at(&into), schema).await.unwrap();
    let (cluster, report) = restoration.finish().unwrap();
    assert!(report.audit.verified);
    for source in Source::all(&cluster) {
        source.rebase().await.unwrap();
    }
    drop(cluster);
    let restored = Rig::open(&into).await;
    let relay = Running::relay(restored.relay());
    let runner = Running::projections(restored.projections(&Journal::default()).await);
    for home in &homes {
        restored.write(*home, Uuid::new_v4(), &[1]).await;
        let n = number(&restored, *home).await;
        eventually("everything is applied", || async { restored.order_of(*home).await.len() as u64 >= n }).await;
        assert_eq!(restored.order_of(*home).await, (1..=n).collect::<Vec<_>>());
    }
    assert!(restored.store.held_keys(None, 9).await.unwrap().is_empty());
    relay.end().await;
    runner.end().await;
}
