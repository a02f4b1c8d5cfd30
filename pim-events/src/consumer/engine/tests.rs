//! What the engine must do whoever else is at work.

mod drains;
mod ends;
mod overtaken;
mod patience;

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use pim_data::backend::{DbSettings, Statement};
use pim_data::unit::UnitError;
use uuid::Uuid;

use super::*;
use crate::bus::NewRecord;
use crate::event::Headers;

/// Counts what it is given; refuses it while it is `sick`, and fails once with what `fails` holds.
#[derive(Default)]
struct Count {
    given: AtomicUsize,
    sick: AtomicBool,
    fails: std::sync::Mutex<Option<ApplyError>>,
    version: Option<u32>,
}

#[async_trait]
impl Sink for Count {
    const PREPARES: bool = false;
    const KIND: ConsumerKind = ConsumerKind::Projection;

    fn version(&self) -> Option<u32> {
        self.version
    }

    fn handles(&self, _event_type: &str) -> bool {
        true
    }

    async fn prepare(&self, _: &[Event], _: &Ahead<'_>, _: GoesOn<'_>) -> Result<bool, ApplyError> {
        Ok(true)
    }

    async fn apply(&self, _tx: &mut Transaction, events: &[Event]) -> Result<(), ApplyError> {
        if let Some(error) = self.fails.lock().unwrap().take() {
            return Err(error);
        }
        if self.sick.load(Ordering::SeqCst) {
            return Err(ApplyError::Rejected { code: "sick" });
        }
        self.given.fetch_add(events.len(), Ordering::SeqCst);
        Ok(())
    }
}

/// A folder that goes with the value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("pim-engine-{}", Uuid::new_v4().simple()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

/// The one partition, with a checkpoint at its beginning.
async fn begun<S: Sink>(engine: &Engine<S>) -> Place {
    let place = Place { consumer: "c", topic: "t".into(), partition: 0 };
    engine.position(&place).await.unwrap();
    place
}

async fn engine(folder: &Path) -> Engine<Count> {
    engine_of(folder, Count::default()).await
}

async fn engine_of<S: Sink>(folder: &Path, sink: S) -> Engine<S> {
    engine_over(folder, |_| sink).await
}

/// With a sink that uses the database as others do.
async fn engine_over<S: Sink>(folder: &Path, sink: impl FnOnce(&Db) -> S) -> Engine<S> {
    let db = Db::open(&folder.join("ledger.db"), DbSettings::default()).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    tx.script(&ledger::LEDGER_SCHEMA.text(db.engine()).unwrap()).await.unwrap();
    tx.commit().await.unwrap();
    let settings = ConsumerSettings::default();
    Engine {
        sink: sink(&db),
        db,
        registry: Registry::builder().event::<Told>().build().unwrap(),
        settings,
        clock: Clock::system(),
        signals: EventSignals::unbound(),
        superseded: Arc::default(),
        told_outdated: AtomicBool::default(),
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Told {}

impl crate::event::DomainEvent for Told {
    const TYPE: &'static str = "thing.told";
    const AGGREGATE: &'static str = "thing";
    fn aggregate_id(&self) -> Uuid {
        Uuid::nil()
    }
    fn aggregate_version(&self) -> u64 {
        1
    }
}

/// The first event of a key of its own.
fn sound(partition: u16) -> Record {
    numbered(Uuid::new_v4(), 1, partition)
}

/// An event of a key, another one each time.
fn numbered(key: Uuid, n: u64, partition: u16) -> Record {
    let key = pim_core::shard::ForeignUuid(key);
    let event = Event {
        id: Uuid::now_v7(),
        origin: crate::event::Origin::Control,
        event_type: "thing.told".into(),
        schema_version: 1,
        time: Timestamp::from_micros(0),
        home: key.0,
        bucket: pim_core::shard::ShardKey::bucket(&key),
        n,
        owner_epoch: pim_core::shard::Epoch(1),
        aggregate: "thing".into(),
        aggregate_id: Uuid::nil(),
        aggregate_version: 1,
        correlation: pim_core::context::RequestId::mint(),
        causation: None,
        trace: pim_core::context::TraceContext::root(),
        actor: "u-1".into(),
        role: "clerk".into(),
        seq: 1,
        published_at: None,
        payload: serde_json::value::RawValue::from_string("{}".into()).unwrap(),
    };
    let (headers, at) = (event.headers(), Timestamp::from_micros(0));
    Record { topic: "t".into(), partition, offset: 0, key: key.0, headers, payload: "{}".into(), at }
}

async fn resume(engine: &Engine<Count>) {
    let (tx, _) = engine.db.begin_with(&ledger::resume("c", engine.clock.now())).await.unwrap();
    tx.commit().await.unwrap();
}

async fn is_stopped(engine: &Engine<Count>) -> bool {
    Standing::of(&engine.db.query(ledger::standing("c")).await.unwrap()).unwrap().stopped
}

async fn held(engine: &Engine<Count>) -> u64 {
    engine.db.query(Statement::same("SELECT count(*) FROM held_key")).await.unwrap()[0].count(0).unwrap()
}

/// Guard: `ApplyError::class`. A store that does not answer in time, or does not say whether it committed, speaks of
/// itself and not of the event: nothing is put aside, and the checkpoint stays until the event is applied.
#[tokio::test]
async fn a_store_that_does_not_answer_parks_nothing() {
    let silent = || DbError::Unanswered;
    let failures: Vec<ApplyError> = vec![
        DbError::Late.into(),
        silent().into(),
        DbError::Lost.into(),
        DbError::Abandoned.into(),
        DbError::Commit(Arc::new(silent())).into(),
        UnitError::Database(silent()).into(),
        UnitError::Unknown(silent()).into(),
        UnitError::Deadline.into(),
        UnitError::UnknownShard(pim_core::shard::ShardId(7)).into(),
    ];
    let folder = Folder::new();
    let engine = engine(&folder).await;
    let place = begun(&engine).await;
    let record = sound(0);
    for failure in failures {
        let name = format!("{failure:?}");
        *engine.sink.fails.lock().unwrap() = Some(failure);
        engine.absorb(&place, 0, std::slice::from_ref(&record)).await.expect_err(&name);
        assert_eq!((held(&engine).await, engine.position(&place).await.unwrap()), (0, 0), "{name}");
    }
    assert_eq!(engine.absorb(&place, 0, std::slice::from_ref(&record)).await.unwrap(), Step::Next(1));
    assert_eq!((held(&engine).await, engine.sink.given.load(Ordering::SeqCst)), (0, 1));
}

/// Guard: `ledger::hold` compares what it would keep under a number with what is kept there. A key that is parked does not come
/// by its head, and would apply what was given up when it is un-parked.
#[tokio::test]
async fn a_held_key_that_was_set_back_is_named() {
    let folder = Folder::new();
    let engine = engine(&folder).await;
    let place = begun(&engine).await;
    engine.sink.sick.store(true, Ordering::SeqCst);
    let key = Uuid::new_v4();
    let lost = numbered(key, 2, 0);
    let at = |record: &Record, offset| Record { offset, ..record.clone() };
    let told = [numbered(key, 1, 0), at(&lost, 1), at(&lost, 2)];
    assert_eq!(engine.absorb(&place, 0, &told).await.unwrap(), Step::Next(3));
    let reason = async || {
        let rows = engine.db.query(Statement::same("SELECT reason FROM held_key")).await.unwrap();
        rows[0].text(0).unwrap().to_owned()
    };
    assert_eq!(reason().await, "poison", "a repeat is no other event");
    // What comes behind it in the same batch, under a number that nobody had, says nothing else.
    let again = [at(&numbered(key, 2, 0), 3), at(&numbered(key, 3, 0), 4)];
    assert_eq!(engine.absorb(&place, 3, &again).await.unwrap(), Step::Next(5));
    assert_eq!(reason().await, "rewound");
    assert_eq!(engine.absorb(&place, 5, &[at(&numbered(key, 4, 0), 5)]).await.unwrap(), Step::Next(6));
    assert_eq!(reason().await, "rewound");
}

/// Guard: `ledger::gap_filled` asks for the reason. A batch that fills a gap may also bring what shows that the key was set back.
#[tokio::test]
async fn a_gap_that_is_filled_lets_nothing_go_that_was_set_back() {
    let folder = Folder::new();
    let engine = engine(&folder).await;
    let place = begun(&engine).await;
    let key = Uuid::new_v4();
    let at = |record: &Record, offset| Record { offset, ..record.clone() };
    let told = [numbered(key, 1, 0), at(&numbered(key, 3, 0), 1)];
    assert_eq!(engine.absorb(&place, 0, &told).await.unwrap(), Step::Next(2));
    let told = [at(&numbered(key, 3, 0), 2), at(&numbered(key, 2, 0), 3)];
    assert_eq!(engine.absorb(&place, 2, &told).await.unwrap(), Step::Next(4));
    let rows = engine.db.query(Statement::same("SELECT reason FROM held_key")).await.unwrap();
    assert_eq!(rows[0].text(0).unwrap(), "rewound");
}

/// Guard: `is_outdated` also where no read model is written. Commands under its name would take its events, and it theirs.
#[tokio::test]
async fn commands_stand_still_beside_a_read_model_of_their_name() {
    let folder = Folder::new();
    let engine = engine(&folder).await;
    let place = begun(&engine).await;
    let model = "INSERT INTO projection_version (name, version, state, at) VALUES ('c', 1, 'live', 0)";
    engine.db.begin().await.unwrap().commit_with(vec![Statement::same(model)]).await.unwrap();
    let told = [numbered(Uuid::new_v4(), 1, 0)];
    assert_eq!(engine.absorb(&place, 0, &told).await.unwrap(), Step::Outdated);
    assert_eq!(engine.sink.given.load(Ordering::SeqCst), 0);
}

/// The other half of it: what the store says of the event itself puts it aside.
#[test]
fn what_speaks_of_the_event_parks_it() {
    let refused = || DbError::Refused { rule: "CHECK".into(), unique: false };
    for error in [refused().into(), UnitError::Database(refused()).into(), ApplyError::from(UnitError::NoEvent)] {
        assert_eq!(error.class(), FailureClass::Permanent, "{error:?}");
    }
    assert_eq!(ApplyError::from(UnitError::Conflict).class(), FailureClass::Capped);
    let cancelled = || DbError::Cancelled { place: "read".into() };
    assert_eq!(ApplyError::from(cancelled()).class(), FailureClass::Capped);
    assert_eq!(ApplyError::from(UnitError::Database(cancelled())).class(), FailureClass::Transient);
}

/// Guard: `park` compares what it saw. What failed before an operator resumed the consumer is tried anew, not parked.
#[tokio::test]
async fn what_failed_before_a_resume_is_tried_anew() {
    let folder = Folder::new();
    let mut engine = engine(&folder).await;
    engine.settings.parked_per_minute_max = 0;
    let [one, other] = [0, 1].map(|partition| Place { consumer: "c", topic: "t".into(), partition });
    engine.position(&one).await.unwrap();
    engine.position(&other).await.unwrap();
    engine.sink.sick.store(true, Ordering::SeqCst);

    // A worker sees its event fail, and before it parks the key another worker's has stopped the consumer.
    let (late, mut seen) = (sound(1), None);
    let item = Item::read(&late, &engine);
    let failed = engine.attempt(&other, (0, std::slice::from_ref(&item)), &mut seen, &|| true).await.unwrap_err();
    assert_eq!(engine.absorb(&one, 0, &[sound(0)]).await.unwrap(), Step::Next(1));
    assert!(is_stopped(&engine).await);
    engine.sink.sick.store(false, Ordering::SeqCst);
    resume(&engine).await;
    assert_eq!(engine.park((&other, 0), &item, failed.code(), seen).await.unwrap(), Step::Lost);
    assert!(!is_stopped(&engine).await, "nothing has failed since it was resumed");
    assert_eq!(engine.absorb(&other, 0, std::slice::from_ref(&late)).await.unwrap(), Step::Next(1));
    assert_eq!((held(&engine).await, engine.sink.given.load(Ordering::SeqCst)), (1, 1));
}

/// Guard: `ledger::stop_above` counts from the resume on. What was parked before has been answered for.
#[tokio::test]
async fn a_resumed_consumer_has_its_minute_anew() {
    let folder = Folder::new();
    let mut engine = engine(&folder).await;
    engine.settings.parked_per_minute_max = 1;
    engine.sink.sick.store(true, Ordering::SeqCst);
    for (partition, stops) in [(0, false), (1, true), (2, false), (3, true)] {
        let place = Place { consumer: "c", topic: "t".into(), partition };
        engine.position(&place).await.unwrap();
        assert_eq!(engine.absorb(&place, 0, &[sound(partition)]).await.unwrap(), Step::Next(1));
        assert_eq!(is_stopped(&engine).await, stops, "at partition {partition}");
        if stops {
            resume(&engine).await;
        }
    }
}

fn broken(offset: u64) -> Record {
    let new = NewRecord { topic: "t".into(), key: Uuid::nil(), headers: Headers::default(), payload: "{}".into() };
    let at = Timestamp::from_micros(0);
    Record { topic: new.topic, partition: 0, offset, key: new.key, headers: new.headers, payload: new.payload, at }
}

/// Guard: `ledger::stop_when_full` asks for what was added. Records that an operator has seen stop no consumer for a gap.
#[tokio::test]
async fn what_was_dead_before_stops_nothing() {
    let folder = Folder::new();
    let mut engine = engine(&folder).await;
    engine.settings.dead_records_max = 2;
    let place = begun(&engine).await;
    assert_eq!(engine.absorb(&place, 0, &[broken(0), broken(1)]).await.unwrap(), Step::Next(2));
    assert!(is_stopped(&engine).await);
    resume(&engine).await;
    let gap = Record { offset: 2, ..numbered(Uuid::new_v4(), 2, 0) };
    assert_eq!(engine.absorb(&place, 2, &[gap]).await.unwrap(), Step::Next(3));
    assert!(!is_stopped(&engine).await, "a gap is no dead record");
    assert_eq!(engine.absorb(&place, 3, &[broken(3)]).await.unwrap(), Step::Next(4));
    assert!(is_stopped(&engine).await, "but this is one more");
}

/// Guard: compare-and-set in `ledger::advance`. A worker whose position is stale is told so and moves nothing back.
#[tokio::test]
async fn a_stale_position_moves_no_checkpoint() {
    let folder = Folder::new();
    let engine = engine(&folder).await;
    let place = Place { consumer: "c", topic: "t".into(), partition: 0 };
    assert_eq!(engine.position(&place).await.unwrap(), 0);
    let records: Vec<Record> = (0..5).map(broken).collect();
    assert_eq!(engine.absorb(&place, 0, &records).await.unwrap(), Step::Next(5));
    assert_eq!(engine.absorb(&place, 0, &records[..3]).await.unwrap(), Step::Lost);
    assert_eq!(engine.position(&place).await.unwrap(), 5);
    let kept = engine.db.query(Statement::same("SELECT count(*) FROM dead_record")).await.unwrap();
    assert_eq!(kept[0].count(0).unwrap(), 5);
}

/// Guard: `park` buries what is no event. A record that cannot be put aside is not passed over.
#[tokio::test]
async fn nothing_vanishes_when_it_cannot_be_put_aside() {
    let folder = Folder::new();
    let engine = engine(&folder).await;
    let place = Place { consumer: "c", topic: "t".into(), partition: 0 };
    assert_eq!(engine.position(&place).await.unwrap(), 0);
    let script = |text: &'static str| async {
        let mut tx = engine.db.begin().await.unwrap();
        tx.script(text).await.unwrap();
        tx.commit().await.unwrap();
    };
    script("CREATE TRIGGER no_room BEFORE INSERT ON dead_record BEGIN SELECT RAISE(ABORT, 'no room'); END;").await;
    engine.absorb(&place, 0, &[broken(0)]).await.unwrap_err();
    assert_eq!(engine.position(&place).await.unwrap(), 0);
    script("DROP TRIGGER no_room;").await;
    assert_eq!(engine.absorb(&place, 0, &[broken(0)]).await.unwrap(), Step::Next(1));
    let kept = engine.db.query(Statement::same("SELECT count(*) FROM dead_record")).await.unwrap();
    assert_eq!(kept[0].count(0).unwrap(), 1);
}

/// Guard: `is_outdated`, in `enter` and in `drain`. Code of another version than the read model's applies, parks and drains
/// nothing, and goes on where it was once the version is its own again.
#[tokio::test]
async fn another_version_writes_nothing() {
    let folder = Folder::new();
    let mut engine = engine(&folder).await;
    engine.sink.version = Some(1);
    let engine = engine;
    let place = begun(&engine).await;
    let become_version = async |version: u32| {
        let set = "INSERT INTO projection_version (name, version, state, at) VALUES ('c', ?, 'live', 0)
                   ON CONFLICT (name) DO UPDATE SET version = excluded.version";
        let tx = engine.db.begin().await.unwrap();
        tx.commit_with(vec![Statement::same(set).bind(version)]).await.unwrap();
    };
    become_version(1).await;
    engine.sink.sick.store(true, Ordering::SeqCst);
    assert_eq!(engine.absorb(&place, 0, &[sound(0)]).await.unwrap(), Step::Next(1));
    engine.sink.sick.store(false, Ordering::SeqCst);

    let next = Record { offset: 1, ..sound(0) };
    let tx = engine.db.begin().await.unwrap();
    tx.commit_with(vec![Statement::same("UPDATE held_key SET reason = 'draining'")]).await.unwrap();
    become_version(2).await;
    let item = Item::read(&next, &engine);
    assert_eq!(engine.park((&place, 1), &item, "late", None).await.unwrap(), Step::Outdated);
    assert_eq!(engine.absorb(&place, 1, std::slice::from_ref(&next)).await.unwrap(), Step::Outdated);
    assert!(!engine.drain(&place, || true).await.unwrap());
    // Also when it had begun before.
    engine.drain_step(&place, key_held(&engine).await, 1, &|| true).await.unwrap();
    assert_eq!((held(&engine).await, engine.sink.given.load(Ordering::SeqCst)), (1, 0));
    assert!(engine.told_outdated.load(Ordering::SeqCst));

    become_version(1).await;
    assert!(engine.drain(&place, || true).await.unwrap());
    assert_eq!(engine.absorb(&place, 1, std::slice::from_ref(&next)).await.unwrap(), Step::Next(2));
    assert_eq!((held(&engine).await, engine.sink.given.load(Ordering::SeqCst)), (0, 2));
    assert!(!engine.told_outdated.load(Ordering::SeqCst));
}

async fn key_held(engine: &Engine<Count>) -> Uuid {
    engine.db.query(Statement::same("SELECT home_key FROM held_key")).await.unwrap()[0].uuid(0).unwrap()
}
