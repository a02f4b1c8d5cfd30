//! A relay that dies, stalls or comes back can only repeat; it neither skips nor reorders, and two never share a cursor.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pim_core::clock::Clock;
use pim_data::backend::SqlPair;
use pim_events::{
    Ack, BusError, BusSettings, DOMAIN_TOPIC, EmbeddedBus, NewRecord, Publisher, Refusal, Relay, RelaySettings, Source,
    Subscriber as _,
};
use uuid::Uuid;

use super::rig::{Folder, Journal, Rig, Running, eventually, patient, powerful, powerful_of, relay_settings};

/// Stores, and never says so.
struct Silent {
    bus: EmbeddedBus,
    published: AtomicUsize,
}

#[async_trait]
impl Publisher for Silent {
    async fn publish(&self, batch: Vec<NewRecord>) -> Result<Vec<Ack>, BusError> {
        let stored = self.bus.publish(batch).await?.len();
        self.published.fetch_add(stored, Ordering::SeqCst);
        std::future::pending().await
    }
}

/// Guard: the cursor moves after the bus has acknowledged, never before (`Task::turn`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_between_publish_and_cursor() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1, 2, 3]).await;
    let silent = Arc::new(Silent { bus: rig.bus.clone(), published: AtomicUsize::new(0) });
    let publisher: Arc<dyn Publisher> = silent.clone();
    let crashing = Running::relay(Relay::new(Source::all(&rig.cluster), &publisher, &relay_settings()).unwrap());
    eventually("published", || async { silent.published.load(Ordering::SeqCst) == 3 }).await;
    crashing.crash().await;
    rig.write(home, Uuid::new_v4(), &[4]).await;
    let _relay = Running::relay(rig.relay());
    let _runner = Running::projections(rig.projections(&Journal::default()).await);
    eventually("four", || async { rig.order_of(home).await.len() >= 4 }).await;
    eventually("all repeats read", || async { on_the_bus(&rig).await == 7 }).await;
    assert_eq!(rig.order_of(home).await, [1, 2, 3, 4]);
}

/// Fails until it is told otherwise.
struct Down {
    bus: EmbeddedBus,
    up: AtomicBool,
    refused: AtomicUsize,
}

#[async_trait]
impl Publisher for Down {
    async fn publish(&self, batch: Vec<NewRecord>) -> Result<Vec<Ack>, BusError> {
        if self.up.load(Ordering::SeqCst) {
            return self.bus.publish(batch).await;
        }
        self.refused.fetch_add(1, Ordering::SeqCst);
        Err(BusError::Closed)
    }
}

/// Guard: a failed publish leaves the cursor where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_bus_is_down_nothing_is_skipped() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    let down = Arc::new(Down { bus: rig.bus.clone(), up: AtomicBool::new(false), refused: AtomicUsize::new(0) });
    let publisher: Arc<dyn Publisher> = down.clone();
    let _relay = Running::relay(Relay::new(Source::all(&rig.cluster), &publisher, &relay_settings()).unwrap());
    let _runner = Running::projections(rig.projections(&Journal::default()).await);
    for step in 1..=10 {
        rig.write(home, Uuid::new_v4(), &[step]).await;
    }
    eventually("it tried", || async { down.refused.load(Ordering::SeqCst) > 2 }).await;
    down.up.store(true, Ordering::SeqCst);
    eventually("ten", || async { rig.order_of(home).await.len() == 10 }).await;
    assert_eq!(rig.order_of(home).await, (1..=10).collect::<Vec<_>>());
}

/// Guard: leases. Several relays over one data directory publish each event once, as long as nobody dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_share_outboxes_by_lease() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let other = Rig::open(folder.path()).await;
    // A lease that does not run out however slow the machine is: nobody dies here.
    let settings = RelaySettings { lease_ms: 60_000, ..relay_settings() };
    let relay = |rig: &Rig| Running::relay(Relay::new(Source::all(&rig.cluster), &rig.publisher(), &settings).unwrap());
    let relays = [relay(&rig), relay(&other), relay(&rig)];
    for step in 1..=50 {
        rig.write(patient(), Uuid::new_v4(), &[step]).await;
    }
    eventually("fifty", || async { on_the_bus(&rig).await >= 50 }).await;
    for relay in relays {
        relay.end().await;
    }
    assert_eq!(on_the_bus(&rig).await, 50);
}

/// Guard: a lease that runs out is taken over (`lease::acquire`), so that a dead relay stops nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_relays_lease_runs_out() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let dying = Running::relay(rig.relay());
    eventually("leased", || async { leased(&rig).await }).await;
    dying.crash().await;
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1]).await;
    let _relay = Running::relay(rig.relay());
    eventually("published by the other", || async { on_the_bus(&rig).await == 1 }).await;
}

/// Refuses the first event of each key, and takes every other one.
struct Picky {
    bus: EmbeddedBus,
}

#[async_trait]
impl Publisher for Picky {
    async fn publish(&self, batch: Vec<NewRecord>) -> Result<Vec<Ack>, BusError> {
        let mut acks = Vec::new();
        for record in batch {
            if record.headers.get("pim-n") == Some("1") {
                acks.push(Ack::Refused(Refusal::TooLarge));
            } else {
                acks.extend(self.bus.publish(vec![record]).await?);
            }
        }
        Ok(acks)
    }
}

/// Guard: behind an event that the bus refused its key is held (`Held::hold`); other keys go on; a retry sends in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_bus_refuses_holds_its_key_at_the_relay() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let (home, other) = (patient(), patient());
    rig.write(home, Uuid::new_v4(), &[1]).await;
    let publisher: Arc<dyn Publisher> = Arc::new(Picky { bus: rig.bus.clone() });
    let relay = Running::relay(Relay::new(Source::all(&rig.cluster), &publisher, &relay_settings()).unwrap());
    eventually("held", || async { held(&rig).await == 1 }).await;
    rig.write(home, Uuid::new_v4(), &[2]).await;
    rig.write(other, Uuid::new_v4(), &[1, 2]).await;
    eventually("all looked at", || async { backlog(&rig).await == 0 }).await;
    relay.end().await;
    assert_eq!((held(&rig).await, on_the_bus(&rig).await), (3, 1), "the other key's second stands behind nothing here");
    // Also a relay that starts anew knows which keys are held.
    let relay = Running::relay(rig.relay());
    rig.write(home, Uuid::new_v4(), &[3]).await;
    eventually("the successor too", || async { held(&rig).await == 4 }).await;
    relay.end().await;

    let _relay = Running::relay(rig.relay());
    let _runner = Running::projections(rig.projections(&Journal::default()).await);
    for source in Source::all(&rig.cluster) {
        source.retry_held(home.uuid()).await.unwrap();
        source.retry_held(other.uuid()).await.unwrap();
    }
    eventually("sent in order", || async { rig.order_of(home).await == [1, 2, 3] }).await;
    eventually("the other as well", || async { rig.order_of(other).await == [1, 2] }).await;
    eventually("nothing is held", || async { held(&rig).await == 0 }).await;
    rig.write(home, Uuid::new_v4(), &[4]).await;
    eventually("the key is free", || async { rig.order_of(home).await == [1, 2, 3, 4] }).await;
}

/// Guard: `Task::retry` marks the whole key. An event that the relay holds while an operator marks its key is marked by neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_while_its_key_is_marked_is_sent_as_well() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1]).await;
    let publisher: Arc<dyn Publisher> = Arc::new(Picky { bus: rig.bus.clone() });
    let relay = Running::relay(Relay::new(Source::all(&rig.cluster), &publisher, &relay_settings()).unwrap());
    eventually("the first is held", || async { held(&rig).await == 1 }).await;
    rig.write(home, Uuid::new_v4(), &[2, 3]).await;
    eventually("its successors too", || async { held(&rig).await == 3 && backlog(&rig).await == 0 }).await;
    relay.end().await;

    // The last one is held once more, as the relay does it, by a transaction that ends after the operator's.
    let db = powerful(&rig, home).await;
    let mut tx = db.begin().await.unwrap();
    tx.script("DELETE FROM outbox_held WHERE seq = (SELECT max(seq) FROM outbox_held)").await.unwrap();
    tx.commit().await.unwrap();
    let mut holding = db.begin().await.unwrap();
    holding
        .script(
            "INSERT INTO outbox_held (seq, home_key, code, at, retry)
             SELECT e.seq, e.home_key, 'behind', e.at, (SELECT max(retry) FROM outbox_held)
             FROM outbox_event e WHERE e.seq = (SELECT max(seq) FROM outbox_event)",
        )
        .await
        .unwrap();
    let marked = async {
        for source in Source::all(&rig.cluster) {
            source.retry_held(home.uuid()).await.unwrap();
        }
    };
    let held_last = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        holding.commit().await.unwrap();
    };
    tokio::join!(marked, held_last);
    let _relay = Running::relay(rig.relay());
    let _runner = Running::projections(rig.projections(&Journal::default()).await);
    eventually("nothing is held", || async { held(&rig).await == 0 }).await;
    eventually("sent in order", || async { rig.order_of(home).await == [1, 2, 3] }).await;
}

async fn in_every_outbox(rig: &Rig, script: SqlPair) {
    for source in rig.cluster.sources() {
        let db = powerful_of(rig, source).await;
        let mut tx = db.begin().await.unwrap();
        tx.script(&script.text(db.engine()).unwrap()).await.unwrap();
        tx.commit().await.unwrap();
    }
}

/// Guard: the cursor passes an event that was refused only together with the note that it is held (`Task::turn`), also when the
/// note could not be written at first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_note_that_is_not_written_lets_nothing_pass() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    let no_room = SqlPair::of(
        "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
         CREATE TRIGGER no_room BEFORE INSERT ON outbox_held FOR EACH ROW EXECUTE FUNCTION no_room()",
        "CREATE TRIGGER no_room BEFORE INSERT ON outbox_held BEGIN SELECT RAISE(ABORT, 'no'); END;",
    );
    in_every_outbox(&rig, no_room).await;
    let publisher: Arc<dyn Publisher> = Arc::new(Picky { bus: rig.bus.clone() });
    rig.write(home, Uuid::new_v4(), &[1]).await;
    // Each tenure ends with the failed note, and raises the epoch when the next one begins.
    let relay = Running::relay(Relay::new(Source::all(&rig.cluster), &publisher, &relay_settings()).unwrap());
    eventually("it failed more than once", || async { epochs(&rig).await.into_iter().max() > Some(3) }).await;
    assert_eq!(backlog(&rig).await, 1, "the cursor stays before what is not noted");
    in_every_outbox(&rig, SqlPair::of("DROP TRIGGER no_room ON outbox_held", "DROP TRIGGER no_room")).await;
    eventually("held", || async { held(&rig).await == 1 && backlog(&rig).await == 0 }).await;
    relay.end().await;
}

/// Guard: a relay with as many held keys as it may have still sends what an operator marks: it is the way out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_held_keys_have_a_way_out() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    let publisher: Arc<dyn Publisher> = Arc::new(Picky { bus: rig.bus.clone() });
    rig.write(home, Uuid::new_v4(), &[1]).await;
    let relay = Running::relay(Relay::new(Source::all(&rig.cluster), &publisher, &relay_settings()).unwrap());
    eventually("held", || async { held(&rig).await == 1 }).await;
    relay.end().await;
    // Keys of nobody, so that with the real one the relay has as many as it remembers.
    let others = SqlPair::of(
        "INSERT INTO outbox_held (seq, home_key, code, at)
         SELECT 1000000 + x, lpad(to_hex(x), 32, '0')::uuid, 'behind', 0 FROM generate_series(1, 9999) x",
        "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 9999)
                  INSERT INTO outbox_held (seq, home_key, code, at)
                  SELECT 1000000 + x, unhex(printf('%032x', x)), 'behind', 0 FROM c;",
    );
    in_every_outbox(&rig, others).await;
    rig.write(home, Uuid::new_v4(), &[2]).await;
    let relay = Running::relay(rig.relay());
    for source in Source::all(&rig.cluster) {
        source.retry_held(home.uuid()).await.unwrap();
    }
    eventually("sent after all", || async { on_the_bus(&rig).await == 2 && backlog(&rig).await == 0 }).await;
    relay.end().await;
}

async fn epochs(rig: &Rig) -> Vec<u64> {
    let mut all = Vec::new();
    for source in Source::all(&rig.cluster) {
        all.push(source.status(rig.cluster.clock().now()).await.unwrap().lease_epoch);
    }
    all
}

async fn backlog(rig: &Rig) -> u64 {
    let mut total = 0;
    for source in Source::all(&rig.cluster) {
        total += source.status(rig.cluster.clock().now()).await.unwrap().backlog;
    }
    total
}

/// Guards: a restored outbox begins with what it has (`Source::rebase`), whatever a snapshot says that was taken before; and a
/// consumer that stands behind the end of the log goes on from there (`ReadStore::rebase`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_log_is_filled_again_and_nothing_is_applied_twice() {
    let (folder, older) = (Folder::new(), Folder::new());
    let mut rig = Rig::open(folder.path()).await;
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1, 2, 3]).await;
    let relay = Running::relay(rig.relay());
    let runner = Running::projections(rig.projections(&Journal::default()).await);
    eventually("three", || async { rig.order_of(home).await.len() == 3 }).await;
    relay.end().await;
    runner.end().await;
    rig.bus = EmbeddedBus::open(&older.path().join("bus.db"), BusSettings::default(), Clock::system()).await.unwrap();
    for source in Source::all(&rig.cluster) {
        source.rebase().await.unwrap();
    }
    assert_eq!(rig.store.rebase(&rig.bus).await.unwrap(), 1, "the partition of the key");
    assert_eq!(rig.store.rebase(&rig.bus).await.unwrap(), 0, "nobody is ahead any more");
    rig.write(home, Uuid::new_v4(), &[4]).await;
    let _relay = Running::relay(rig.relay());
    let _runner = Running::projections(rig.projections(&Journal::default()).await);
    eventually("sent again", || async { on_the_bus(&rig).await == 4 }).await;
    eventually("four", || async { rig.order_of(home).await.len() >= 4 }).await;
    assert_eq!(rig.order_of(home).await, [1, 2, 3, 4]);
    assert!(rig.store.held_keys(None, 9).await.unwrap().is_empty());
}

pub(super) async fn on_the_bus(rig: &Rig) -> u64 {
    let mut total = 0;
    for partition in 0..rig.bus.partitions(DOMAIN_TOPIC).await.unwrap() {
        total += rig.bus.end_offset(DOMAIN_TOPIC, partition).await.unwrap();
    }
    total
}

pub(super) async fn held(rig: &Rig) -> u64 {
    let mut total = 0;
    for source in Source::all(&rig.cluster) {
        total += source.status(rig.cluster.clock().now()).await.unwrap().held;
    }
    total
}

async fn leased(rig: &Rig) -> bool {
    tokio::time::sleep(Duration::from_millis(1)).await;
    let mut all = true;
    for source in Source::all(&rig.cluster) {
        all &= source.status(rig.cluster.clock().now()).await.unwrap().leased;
    }
    all
}
