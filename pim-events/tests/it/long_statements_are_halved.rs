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

use super::bad_code_parks_its_key::neighbours;
use super::rig::{Folder, Happened, POISON, Rig, Running, eventually, patient};

/// A step over which the journal takes longer than one statement may, in three of them.
const LONG: u64 = 3000;

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
            for _ in 0..if step == LONG { 3 } else { 0 } {
                tx.query(Statement::same("SELECT 1 FROM pg_sleep(1.2)")).await?;
            }
            tx.query(Statement::same("INSERT INTO slow (home, n) VALUES (?, ?)").bind(event.home).bind(event.n))
                .await?;
        }
        let long = format!("SELECT 1 FROM pg_sleep({millis} / 1000.0)");
        tx.query(Statement::of(SqlPair::generated(long))).await?;
        Ok(())
    }
}

/// Runs it with statements of at most this time, and one more try.
async fn slow(folder: &Folder, rig: &Rig, transaction_max: Duration) -> Running {
    slow_for(folder, rig, transaction_max, ConsumerSettings::default().apply_ms_max).await
}

/// As [`slow`], with so long for a batch.
async fn slow_for(folder: &Folder, rig: &Rig, transaction_max: Duration, apply_ms_max: u64) -> Running {
    let settings = ServerSettings { transaction_max, ..ServerSettings::default() };
    let secrets = Arc::new(crate::server::secrets(folder.path()));
    let store = ReadStore::connect("read-owner", secrets, settings, Clock::system()).await.unwrap();
    let settings = ConsumerSettings { tries_max: 1, pause_max_ms: 20, apply_ms_max, ..ConsumerSettings::default() };
    let all: Vec<Arc<dyn Projection>> = vec![Arc::new(Slow)];
    Running::projections(ProjectionRunner::open(&store, rig.subscriber(), &rig.registry, all, &settings).await.unwrap())
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
    assert_eq!((held[0].reason.as_str(), held[0].code.as_str(), held[0].n_first), ("poison", "cancelled", 61));
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
    operator
        .script("SET LOCAL idle_in_transaction_session_timeout = 0; LOCK TABLE slow IN EXCLUSIVE MODE")
        .await
        .unwrap();
    let runner = slow(&folder, &rig, Duration::from_millis(400)).await;
    // Many times as long as one more try takes.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(rig.store.held_keys(None, 10).await.unwrap().is_empty());
    operator.rollback().await.unwrap();
    eventually("it is applied", || async { applied(&rig).await == 1 }).await;
    runner.end().await;
}

/// Where a batch may take less than half of a statement.
const SHORT: (Duration, u64) = (Duration::from_secs(3), 500);

/// Guard: `ledger::hurry`. The server ends the statement, and lets go of the checkpoint, before the batch is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_is_a_batch_that_may_take_less_than_a_statement() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let (sick, well) = neighbours(&rig).await;
    let _relay = Running::relay(rig.relay());
    rig.write(sick, Uuid::new_v4(), &[POISON]).await;
    on_the_bus(&rig, sick, 1).await;
    rig.write(well, Uuid::new_v4(), &[1, 2]).await;
    on_the_bus(&rig, well, 3).await;
    let runner = slow_for(&folder, &rig, SHORT.0, SHORT.1).await;
    eventually("the others are applied", || async { applied(&rig).await == 2 }).await;
    let held = rig.store.held_keys(None, 10).await.unwrap();
    assert_eq!((held.len(), held[0].key, held[0].reason.as_str()), (1, sick.uuid(), "poison"));
    runner.end().await;
}

/// Guard: `ledger::hurry`. The server says that a lock was waited for, before the batch is taken for one that is too long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn but_a_lock_is_waited_for_then_too() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    let _relay = Running::relay(rig.relay());
    rig.write(home, Uuid::new_v4(), &[1]).await;
    on_the_bus(&rig, home, 1).await;
    rig.store.install(&Slow).await.unwrap();
    let mut operator = rig.store.db().begin().await.unwrap();
    operator
        .script("SET LOCAL idle_in_transaction_session_timeout = 0; LOCK TABLE slow IN EXCLUSIVE MODE")
        .await
        .unwrap();
    let runner = slow_for(&folder, &rig, SHORT.0, SHORT.1).await;
    // Longer than it took until the key was parked.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(rig.store.held_keys(None, 10).await.unwrap().is_empty());
    operator.rollback().await.unwrap();
    eventually("it is applied", || async { applied(&rig).await == 1 }).await;
    runner.end().await;
}

/// Guard: `ledger::relax`. What the consumer writes of itself has the time of a statement, and parks nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_is_the_ledger_part_of_the_batch() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    let _relay = Running::relay(rig.relay());
    rig.write(home, Uuid::new_v4(), &[1]).await;
    on_the_bus(&rig, home, 1).await;
    let mut operator = rig.store.db().begin().await.unwrap();
    let late = "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql
                AS $$ BEGIN PERFORM pg_sleep(0.8); RETURN NEW; END $$;
                CREATE TRIGGER late BEFORE INSERT ON inbox_head FOR EACH ROW EXECUTE FUNCTION late()";
    operator.script(late).await.unwrap();
    operator.commit().await.unwrap();
    let runner = slow_for(&folder, &rig, SHORT.0, SHORT.1).await;
    eventually("it is applied", || async { applied(&rig).await == 1 }).await;
    assert!(rig.store.held_keys(None, 10).await.unwrap().is_empty());
    runner.end().await;
}

/// Guard: `Engine::until_free`. What was cut short between its statements is at the server for a while, and is waited for: it would
/// else keep its own event from ever being tried alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_what_goes_on_at_the_server_keeps_its_partition_no_longer() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    let _relay = Running::relay(rig.relay());
    rig.write(home, Uuid::new_v4(), &[LONG]).await;
    on_the_bus(&rig, home, 1).await;
    // The third statement has just begun then, and takes longer than a lock is waited for.
    let runner = slow_for(&folder, &rig, Duration::from_secs(2), 2500).await;
    eventually("it is held", || async { rig.store.held_keys(Some("slow"), 10).await.unwrap().len() == 1 }).await;
    let held = rig.store.held_keys(Some("slow"), 10).await.unwrap();
    assert_eq!((held[0].reason.as_str(), held[0].code.as_str()), ("poison", "patience"));
    runner.end().await;
}
