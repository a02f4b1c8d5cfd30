//! What takes longer than a statement may is tried with less, and in the end parks its key; whoever waits for a lock waits.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pim_core::clock::Clock;
use pim_core::shard::HomeKey;
use pim_data::backend::{ServerSettings, SqlPair, Statement};
use pim_events::{
    ApplyError, ConsumerSettings, DOMAIN_TOPIC, Event, Projection, ProjectionRunner, ReadStore, ReadTable, ReadTx,
    Subscriber as _,
};
use uuid::Uuid;

use super::rig::{Folder, Happened, POISON, Rig, Running, eventually, patient};

/// A journal that takes ten milliseconds for each event, in one statement a batch.
struct Slow;

#[async_trait]
impl Projection for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }
    fn schema(&self) -> SqlPair {
        SqlPair::same("CREATE TABLE slow (home uuid, n bigint)")
    }
    fn tables(&self) -> &'static [ReadTable] {
        &[ReadTable { name: "slow", columns: &["home", "n"] }]
    }
    fn handles(&self, _event_type: &str) -> bool {
        true
    }
    async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError> {
        let mut millis = 10 * batch.len();
        for event in batch {
            let step = event.decode::<Happened>()?.step;
            millis += if step == POISON { 60_000 } else { 0 };
            tx.query(Statement::same("INSERT INTO slow (home, n) VALUES (?, ?)").bind(event.home).bind(event.n)).await?;
        }
        let long = format!("SELECT 1 FROM pg_sleep({millis} / 1000.0)");
        tx.query(Statement::of(SqlPair::generated(long))).await?;
        Ok(())
    }
}

/// Runs it with statements of at most this time, and one more try.
async fn slow(folder: &Folder, rig: &Rig, transaction_max: Duration) -> Running {
    let settings = ServerSettings { transaction_max, ..ServerSettings::default() };
    let secrets = Arc::new(crate::server::secrets(folder.path()));
    let store = ReadStore::connect("read-owner", secrets, settings, Clock::system()).await.unwrap();
    let settings = ConsumerSettings { tries_max: 1, pause_max_ms: 20, ..ConsumerSettings::default() };
    let all: Vec<Arc<dyn Projection>> = vec![Arc::new(Slow)];
    Running::projections(
        ProjectionRunner::open(&store, rig.subscriber(), &rig.registry, all, &settings).await.unwrap(),
    )
}

async fn on_the_bus(rig: &Rig, home: HomeKey, events: u64) {
    let partition = pim_events::partition_of(home.uuid(), rig.bus.partitions(DOMAIN_TOPIC).await.unwrap());
    let are_there = || async { rig.bus.end_offset(DOMAIN_TOPIC, partition).await.unwrap() == events };
    eventually("all are on the bus", are_there).await;
}

async fn applied(rig: &Rig) -> u64 {
    rig.store.query(Statement::same("SELECT count(*) FROM slow")).await.unwrap()[0].count(0).unwrap()
}

/// Guard: `ApplyError::class`. A statement that is cancelled for its length is tried with half of the events, and one event
/// alone only so often.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_the_one_that_stays_too_long_parks_its_key() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    let _relay = Running::relay(rig.relay());
    let steps: Vec<u64> = (1..=60).chain([POISON]).collect();
    rig.write(home, Uuid::new_v4(), &steps).await;
    on_the_bus(&rig, home, 61).await;
    let runner = slow(&folder, &rig, Duration::from_millis(400)).await;
    eventually("the last is held", || async { rig.store.held_keys(Some("slow"), 10).await.unwrap().len() == 1 }).await;
    assert_eq!(applied(&rig).await, 60);
    let held = rig.store.held_keys(Some("slow"), 10).await.unwrap();
    assert_eq!((held[0].reason.as_str(), held[0].code.as_str(), held[0].n_first), ("poison", "store", 61));
    runner.end().await;
}

/// Guard: `ledger::hasten_locks`. Somebody else's lock says nothing of the event, however long it is held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn but_a_lock_is_waited_for() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    let _relay = Running::relay(rig.relay());
    rig.write(home, Uuid::new_v4(), &[1]).await;
    on_the_bus(&rig, home, 1).await;
    rig.store.install(&Slow).await.unwrap();
    let mut operator = rig.store.db().begin().await.unwrap();
    operator.script("LOCK TABLE slow IN EXCLUSIVE MODE").await.unwrap();
    let runner = slow(&folder, &rig, Duration::from_millis(400)).await;
    // Many times as long as one more try takes.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(rig.store.held_keys(None, 10).await.unwrap().is_empty());
    operator.rollback().await.unwrap();
    eventually("it is applied", || async { applied(&rig).await == 1 }).await;
    runner.end().await;
}
