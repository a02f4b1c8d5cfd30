//! An event that cannot be applied parks its key, nothing else; un-parking applies the sequence in order.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use pim_core::clock::Timestamp;
use pim_core::shard::HomeKey;
use pim_data::backend::{SqlPair, Statement};
use pim_events::{
    ApplyError, ConsumerSettings, DOMAIN_TOPIC, DeadPlace, Event, HeldPlace, NewRecord, Projection, ProjectionRunner,
    Publisher as _, ReadTable, ReadTx, ReplaySelection, Subscriber as _, UnparkError, partition_of,
};
use uuid::Uuid;

use super::order_survives_chaos::numbered;
use super::rig::{BOMB, Folder, Journal, POISON, Rig, Running, eventually, patient};

/// Guard: the head does not move when a key is parked (`KeyState::park`), and later events join (`KeyState::take`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_go_on_and_unpark_applies_in_order() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let journal = Journal::default();
    let (sick, well) = (patient(), patient());
    let thing = Uuid::new_v4();
    rig.write(sick, thing, &[1, 2]).await;
    rig.write(sick, thing, &[POISON]).await;
    for step in 1..=20 {
        rig.write(well, thing, &[step]).await;
        rig.write(sick, thing, &[3 + step]).await;
    }
    let relay = Running::relay(rig.relay());
    let runner = Running::projections(rig.projections(&journal).await);
    eventually("the well key is applied", || async { rig.order_of(well).await.len() == 20 }).await;
    eventually("the sick key is parked whole", || async { held(&rig, sick).await == 21 }).await;
    assert_eq!(rig.order_of(sick).await, [1, 2]);
    assert_eq!(rig.store.head("journal", sick.uuid()).await.unwrap().n, 2);

    let keys = rig.store.held_keys(Some("journal"), 10).await.unwrap();
    assert_eq!((keys.len(), keys[0].reason.as_str(), keys[0].code.as_str()), (1, "poison", "poison"));
    assert_eq!((keys[0].n_first, keys[0].n_last), (3, 23));
    let letters = rig.store.dead_letters("journal", sick.uuid(), 0, 5).await.unwrap();
    assert_eq!(letters.iter().map(|letter| letter.n).collect::<Vec<_>>(), [3, 4, 5, 6, 7]);
    assert_eq!(letters[0].payload_sha256.len(), 64);

    // Not mended yet: it is parked again, one try more.
    rig.store.unpark("journal", sick.uuid()).await.unwrap();
    eventually("parked again", || async {
        let keys = rig.store.held_keys(None, 10).await.unwrap();
        keys[0].reason == "poison" && keys[0].tries == 1
    })
    .await;
    assert_eq!(rig.order_of(sick).await, [1, 2]);

    journal.mended.store(true, Ordering::SeqCst);
    let selection = ReplaySelection { event_type: Some("thing.happened".into()), ..ReplaySelection::default() };
    let plan = rig.store.plan_replay(&selection).await.unwrap();
    assert_eq!((plan.keys.len(), plan.by_type["thing.happened"]), (1, 21));
    assert_eq!(rig.store.held_keys(None, 10).await.unwrap()[0].reason, "poison", "a dry run changes nothing");
    assert_eq!(rig.store.replay(&selection).await.unwrap(), plan);
    rig.write(sick, thing, &[99]).await;
    eventually("all of it is applied", || async { rig.order_of(sick).await.len() == 24 }).await;
    assert_eq!(rig.order_of(sick).await, (1..=24).collect::<Vec<_>>());
    eventually("nothing is held", || async { rig.store.held_keys(None, 10).await.unwrap().is_empty() }).await;
    relay.end().await;
    runner.end().await;
}

/// Guard: a record that is no event is put aside (`ledger::bury`) instead of stopping its partition.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_no_event_is_put_aside() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    let record = NewRecord {
        topic: "domain.v1".into(),
        key: home.uuid(),
        headers: pim_events::Headers::default(),
        payload: "{\"name\":\"secret\"}".into(),
    };
    rig.bus.publish(vec![record]).await.unwrap();
    rig.write(home, Uuid::new_v4(), &[1]).await;
    let _relay = Running::relay(rig.relay());
    let _runner = Running::projections(rig.projections(&Journal::default()).await);
    eventually("the event behind it", || async { rig.order_of(home).await == [1] }).await;
    let dead = rig.store.dead_records(10).await.unwrap();
    assert_eq!((dead.len(), dead[0].code.as_str(), dead[0].offset), (1, "envelope", 0));
    assert!(!serde_json::to_string(&dead).unwrap().contains("secret"));
}

/// Guards: `ledger::bury` keeps what any database takes, and `Event::from_wire` refuses a type that has one. A NUL in a record
/// would keep its partition for ever, since a server stores it nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_database_takes_is_put_aside_too() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let (home, partitions) = (patient(), rig.bus.partitions(DOMAIN_TOPIC).await.unwrap());
    let is_near = |key: &HomeKey| partition_of(key.uuid(), partitions) == partition_of(home.uuid(), partitions);
    let other = std::iter::repeat_with(patient).find(is_near).unwrap();
    let empty = pim_events::Headers::default();
    let raw = NewRecord { topic: DOMAIN_TOPIC.into(), key: home.uuid(), headers: empty, payload: "\0".into() };
    // The fifth of a key that has no first: it would be held.
    let mut typed = numbered(other, 5);
    typed.headers.set("ce_type", "thing.\0");
    typed.headers.set("ce_dataschema", "urn:pim:event:thing.\0:1");
    rig.bus.publish(vec![raw, typed]).await.unwrap();
    rig.write(home, Uuid::new_v4(), &[1]).await;
    let _relay = Running::relay(rig.relay());
    let _runner = Running::projections(rig.projections(&Journal::default()).await);
    eventually("the event behind them", || async { rig.order_of(home).await == [1] }).await;
    let dead = rig.store.dead_records(10).await.unwrap();
    assert_eq!(dead.iter().map(|record| record.code.as_str()).collect::<Vec<_>>(), ["envelope", "envelope"]);
    let of_nul = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d";
    assert_eq!(dead[0].payload_sha256, of_nul, "the digest is that of what the bus has");
}

/// Guard: more parked keys a minute than the limit stop the consumer (`ledger::stop_above`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_parked_keys_stop_the_consumer() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let journal = Journal::default();
    let settings = ConsumerSettings { parked_per_minute_max: 3, pause_max_ms: 20, ..ConsumerSettings::default() };
    for _ in 0..10 {
        rig.write(patient(), Uuid::new_v4(), &[POISON]).await;
    }
    let projections: Vec<Arc<dyn Projection>> = vec![Arc::new(journal.clone())];
    let opened = ProjectionRunner::open(&rig.store, rig.subscriber(), &rig.registry, projections, &settings).await;
    let _relay = Running::relay(rig.relay());
    let _runner = Running::projections(opened.unwrap());
    eventually("it stops", || async {
        let status = rig.store.status(&rig.bus).await.unwrap();
        status.iter().any(|consumer| consumer.stopped.as_deref() == Some("parked_keys"))
    })
    .await;
    let held = rig.store.held_keys(None, 100).await.unwrap().len();
    assert_eq!(held, 4, "it goes no further than the key that broke the limit");
    journal.mended.store(true, Ordering::SeqCst);
    assert!(rig.store.resume("journal").await.unwrap());
    eventually("the others are applied", || async { rig.journal().await.len() == 6 }).await;
}

/// Guard: `consumer::guarded`. A handler that panics parks the key; the worker lives on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_poison_too() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let journal = Journal::default();
    let (sick, well) = (patient(), patient());
    let _relay = Running::relay(rig.relay());
    let _runner = Running::projections(rig.projections(&journal).await);
    rig.write(sick, Uuid::new_v4(), &[BOMB]).await;
    eventually("parked", || async { held(&rig, sick).await == 1 }).await;
    assert_eq!(rig.store.held_keys(None, 10).await.unwrap()[0].code, "panic");
    rig.write(well, Uuid::new_v4(), &[1]).await;
    eventually("others go on", || async { rig.order_of(well).await == [1] }).await;
    journal.mended.store(true, Ordering::SeqCst);
    rig.store.unpark("journal", sick.uuid()).await.unwrap();
    eventually("applied after all", || async { rig.order_of(sick).await == [1] }).await;
}

/// A tail shows what arrives from now on, and nothing from before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_shows_what_arrives() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let _relay = Running::relay(rig.relay());
    let _runner = Running::projections(rig.projections(&Journal::default()).await);
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1]).await;
    eventually("one", || async { rig.journal().await.len() == 1 }).await;
    let tail = pim_events::Tail::open(rig.subscriber(), DOMAIN_TOPIC).await.unwrap();
    let seen: Arc<std::sync::Mutex<Vec<u64>>> = Arc::default();
    let shown = Arc::clone(&seen);
    let show = move |event: Event| {
        assert!(event.published_at.is_some());
        shown.lock().unwrap().push(event.n);
        std::future::ready(())
    };
    let running = tokio::spawn(tail.run(std::future::pending(), show));
    rig.write(home, Uuid::new_v4(), &[2, 3]).await;
    eventually("two more", || async { seen.lock().unwrap().len() == 2 }).await;
    assert_eq!(*seen.lock().unwrap(), [2, 3]);
    running.abort();
}

/// Guard: only a parked key can be un-parked (`ReadStore::unpark`); a gap fills itself.
#[tokio::test]
async fn unpark_refuses_what_is_not_parked() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let unparked = rig.store.unpark("journal", Uuid::new_v4()).await;
    assert!(matches!(unparked, Err(UnparkError::NotHeld)));
}

async fn held(rig: &Rig, home: HomeKey) -> u64 {
    let keys = rig.store.held_keys(Some("journal"), 100).await.unwrap();
    keys.iter().find(|key| key.key == home.uuid()).map_or(0, |key| key.events)
}

async fn stopped_for(rig: &Rig, settings: ConsumerSettings, reason: &str) -> Running {
    let settings = ConsumerSettings { pause_max_ms: 20, parked_per_minute_max: 1000, ..settings };
    let projections: Vec<Arc<dyn Projection>> = vec![Arc::new(Journal::default())];
    let opened = ProjectionRunner::open(&rig.store, rig.subscriber(), &rig.registry, projections, &settings).await;
    let runner = Running::projections(opened.unwrap());
    eventually("it stops", || async {
        let status = rig.store.status(&rig.bus).await.unwrap();
        status.iter().any(|consumer| consumer.stopped.as_deref() == Some(reason))
    })
    .await;
    runner
}

async fn bury(rig: &Rig, records: usize) {
    for _ in 0..records {
        let record = NewRecord {
            topic: "domain.v1".into(),
            key: Uuid::nil(),
            headers: pim_events::Headers::default(),
            payload: "{}".into(),
        };
        rig.bus.publish(vec![record]).await.unwrap();
    }
}

/// Guard: `ledger::stop_when_full`. What a consumer may hold is bounded: in keys, in events, and in records that are none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_is_bounded() {
    let batch_max = 1;
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    for _ in 0..9 {
        rig.write(patient(), Uuid::new_v4(), &[POISON]).await;
    }
    let relay = Running::relay(rig.relay());
    let settings = ConsumerSettings { batch_max, held_keys_max: 3, ..ConsumerSettings::default() };
    let runner = stopped_for(&rig, settings, "held_keys").await;
    runner.end().await;
    // Each of the partitions may have had one record in hand.
    let held = rig.store.held_keys(None, 100).await.unwrap().len();
    assert!((3..=3 + 4).contains(&held), "{held}");
    relay.end().await;

    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let sick = patient();
    rig.write(sick, Uuid::new_v4(), &[POISON]).await;
    rig.write(sick, Uuid::new_v4(), &[2, 3, 4, 5, 6, 7, 8, 9]).await;
    let relay = Running::relay(rig.relay());
    let settings = ConsumerSettings { batch_max, held_events_max: 4, ..ConsumerSettings::default() };
    let runner = stopped_for(&rig, settings, "held_events").await;
    runner.end().await;
    assert_eq!(held_of(&rig, sick).await, 4);
    relay.end().await;

    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    bury(&rig, 6).await;
    let settings = ConsumerSettings { batch_max, dead_records_max: 2, ..ConsumerSettings::default() };
    let runner = stopped_for(&rig, settings, "dead_records").await;
    runner.end().await;
    assert_eq!(rig.store.dead_records(100).await.unwrap().len(), 2);
}

async fn held_of(rig: &Rig, home: HomeKey) -> u64 {
    let holds = rig.store.holds_of(home.uuid()).await.unwrap();
    holds.iter().filter(|held| held.consumer == "journal" && held.key == home.uuid()).map(|held| held.events).sum()
}

/// Pages hold each entry once, in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_is_listed_in_pages() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    for _ in 0..5 {
        rig.write(patient(), Uuid::new_v4(), &[POISON]).await;
    }
    bury(&rig, 5).await;
    let relay = Running::relay(rig.relay());
    let runner = Running::projections(rig.projections(&Journal::default()).await);
    eventually("all are put aside", || async {
        let held = rig.store.held_keys(None, 100).await.unwrap().len();
        (held, rig.store.dead_records(100).await.unwrap().len()) == (5, 5)
    })
    .await;
    runner.end().await;
    relay.end().await;
    let all = rig.store.held_keys(None, 100).await.unwrap();
    let (mut place, mut paged) = (HeldPlace::start(), Vec::new());
    while let page @ [_, ..] = &rig.store.held_keys_behind(&place, Some("journal"), 2).await.unwrap()[..] {
        paged.extend_from_slice(page);
        place = HeldPlace::from(&page[page.len() - 1]);
    }
    assert_eq!(paged, all);
    let all = rig.store.dead_records(100).await.unwrap();
    let (mut place, mut paged) = (DeadPlace::start(), Vec::new());
    while let page @ [_, ..] = &rig.store.dead_records_behind(&place, 2).await.unwrap()[..] {
        paged.extend_from_slice(page);
        place = DeadPlace::from(&page[page.len() - 1]);
    }
    assert_eq!(paged, all);
}

/// Guard: `ReadStore::dismiss_records` removes what was seen, up to an offset and of one consumer, and nothing behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_seen_to_makes_room() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    bury(&rig, 3).await;
    let settings = ConsumerSettings { batch_max: 1, dead_records_max: 2, ..ConsumerSettings::default() };
    let runner = stopped_for(&rig, settings.clone(), "dead_records").await;
    runner.end().await;
    let dead = rig.store.dead_records(10).await.unwrap();
    let (partition, upto) = (("domain.v1", dead[0].partition), dead[0].offset);
    assert_eq!(rig.store.dismiss_records("another", partition, upto).await.unwrap(), 0);
    assert_eq!(rig.store.dismiss_records("journal", partition, upto).await.unwrap(), 1);
    assert_eq!(rig.store.dead_records(10).await.unwrap(), dead[1..]);
    assert!(rig.store.resume("journal").await.unwrap());
    let runner = stopped_for(&rig, settings, "dead_records").await;
    runner.end().await;
    assert_eq!(rig.store.dead_records(10).await.unwrap().len(), 2, "there was room for one more");
}

/// Guard: `ReadStore::dismiss_records` goes by partition and offset. A worker whose clock is behind, or that commits late, puts
/// records aside with an earlier time than those which were listed already.
#[tokio::test]
async fn what_nobody_saw_is_not_dismissed() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    put_aside(&rig, [(0, 4, 100), (0, 7, 200)]).await;
    let listed = rig.store.dead_records(10).await.unwrap();
    put_aside(&rig, [(1, 3, 150), (0, 9, 150)]).await;
    let last = &listed[1];
    let partition = (last.topic.as_str(), last.partition);
    assert_eq!(rig.store.dismiss_records("journal", partition, last.offset).await.unwrap(), 2);
    let left = rig.store.dead_records(10).await.unwrap();
    let left: Vec<_> = left.iter().map(|record| (record.partition, record.offset)).collect();
    assert_eq!(left, [(0, 9), (1, 3)]);
}

/// Records with a partition, an offset and a time.
async fn put_aside(rig: &Rig, records: [(u64, u64, i64); 2]) {
    let row = |(partition, offset, at): (u64, u64, i64)| {
        let row = Statement::same(
            "INSERT INTO dead_record (consumer, topic, part, pos, home_key, code, digest, headers, payload, at)
             VALUES ('journal', 'domain.v1', ?, ?, ?, 'envelope', ?, '{}', '{}', ?)",
        );
        let row = row.bind(partition).bind(offset).bind(Uuid::nil()).bind(vec![0_u8]);
        row.bind(Timestamp::from_micros(at))
    };
    rig.store.db().begin().await.unwrap().commit_with(records.map(row).to_vec()).await.unwrap();
}

/// Takes its time for each event.
struct Slow(Journal);

#[async_trait]
impl Projection for Slow {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn schema(&self) -> SqlPair {
        self.0.schema()
    }

    fn tables(&self) -> &'static [ReadTable] {
        self.0.tables()
    }

    fn handles(&self, event_type: &str) -> bool {
        self.0.handles(event_type)
    }

    async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError> {
        self.0.apply(tx, batch).await?;
        tokio::time::sleep(Duration::from_millis(10) * u32::try_from(batch.len()).unwrap()).await;
        Ok(())
    }
}

/// Guard: `Engine::drain` goes one step and looks whether it may go on. A long sequence that is applied again keeps neither its
/// partition waiting nor whoever shuts down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_sequence_keeps_nobody_waiting() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let journal = Journal::default();
    let (sick, partitions) = (patient(), rig.bus.partitions(DOMAIN_TOPIC).await.unwrap());
    let is_near = |key: &HomeKey| partition_of(key.uuid(), partitions) == partition_of(sick.uuid(), partitions);
    let well = std::iter::repeat_with(patient).find(is_near).unwrap();
    rig.write(sick, Uuid::new_v4(), &[POISON]).await;
    let steps: Vec<u64> = (2..=200).collect();
    for _ in 0..3 {
        rig.write(sick, Uuid::new_v4(), &steps).await;
    }
    let _relay = Running::relay(rig.relay());
    let runner = Running::projections(rig.projections(&journal).await);
    eventually("all of it is held", || async { held(&rig, sick).await == 598 }).await;
    runner.end().await;
    journal.mended.store(true, Ordering::SeqCst);

    let slow: Vec<Arc<dyn Projection>> = vec![Arc::new(Slow(journal.clone()))];
    let settings = ConsumerSettings { pause_max_ms: 20, ..ConsumerSettings::default() };
    let runner = ProjectionRunner::open(&rig.store, rig.subscriber(), &rig.registry, slow, &settings).await.unwrap();
    let runner = Running::projections(runner);
    rig.store.unpark("journal", sick.uuid()).await.unwrap();
    eventually("it has begun", || async { !rig.order_of(sick).await.is_empty() }).await;
    rig.write(well, Uuid::new_v4(), &[1]).await;
    eventually("another key of the partition goes on", || async { rig.order_of(well).await == [1] }).await;
    let meanwhile = rig.order_of(sick).await.len();
    runner.end().await;
    let at_the_end = rig.order_of(sick).await.len();
    assert!(meanwhile < 598 && at_the_end < 598, "all of it came first: {meanwhile}, {at_the_end}");

    let _runner = Running::projections(rig.projections(&journal).await);
    eventually("the rest", || async { rig.order_of(sick).await.len() == 598 }).await;
    assert_eq!(rig.order_of(sick).await, (1..=598).collect::<Vec<_>>());
}
