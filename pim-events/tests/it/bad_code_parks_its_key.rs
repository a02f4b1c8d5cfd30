//! What a program gives a consumer may panic, or never answer: that parks a key, and ends neither worker nor partition.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use pim_core::context::RequestContext;
use pim_core::shard::HomeKey;
use pim_data::backend::{SqlPair, Statement};
use pim_data::unit::{CommitFacts, PartCall, PartError, Unit, UnitPart};
use pim_events::{
    ApplyError, BusError, CommandHandler, CommandSettings, ConsumerSettings, DOMAIN_TOPIC, DomainEvent, Effect,
    EmbeddedBus, Event, Projection, ProjectionRunner, ReadTable, ReadTx, Record, Registry, Subscriber, Tail, Target,
    partition_of,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

use super::commands_happen_once::{Answer, answers, commands_with, settings};
use super::rig::{BOMB, Folder, Happened, Journal, POISON, Rig, Running, eventually, patient};

/// Two keys of one partition.
pub(super) async fn neighbours(rig: &Rig) -> (HomeKey, HomeKey) {
    let (one, partitions) = (patient(), rig.bus.partitions(DOMAIN_TOPIC).await.unwrap());
    let is_near = |key: &HomeKey| partition_of(key.uuid(), partitions) == partition_of(one.uuid(), partitions);
    (one, std::iter::repeat_with(patient).find(is_near).unwrap())
}

/// The code that the key is held with, and how often it was un-parked in vain.
async fn held(rig: &Rig, consumer: &str, home: HomeKey) -> Option<(String, u64)> {
    let keys = rig.store.held_keys(Some(consumer), 100).await.unwrap();
    keys.into_iter().find(|key| key.key == home.uuid()).map(|key| (key.code, key.tries))
}

fn few_tries() -> ConsumerSettings {
    ConsumerSettings { pause_max_ms: 20, tries_max: 1, ..ConsumerSettings::default() }
}

async fn run(rig: &Rig, bus: Arc<dyn Subscriber>, registry: &Registry, projection: Arc<dyn Projection>) -> Running {
    run_with(rig, bus, registry, projection, &few_tries()).await
}

async fn run_with(
    rig: &Rig,
    bus: Arc<dyn Subscriber>,
    registry: &Registry,
    projection: Arc<dyn Projection>,
    settings: &ConsumerSettings,
) -> Running {
    let runner = ProjectionRunner::open(&rig.store, bus, registry, vec![projection], settings).await;
    Running::projections(runner.unwrap())
}

/// Ends it; the time is no promise, and only keeps a test from hanging.
async fn ends(running: Running) {
    tokio::time::timeout(Duration::from_secs(20), running.end()).await.expect("it ends");
}

/// Runs commands for two keys of a partition, of which one has poison for the handler: it is held with this code, and the other
/// is answered.
async fn holds_the_sick_alone(handler: Arc<dyn CommandHandler>, settings: CommandSettings, code: &str) {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let (sick, well) = neighbours(&rig).await;
    rig.write(sick, Uuid::new_v4(), &[POISON]).await;
    rig.write(well, Uuid::new_v4(), &[2]).await;
    let relay = Running::relay(rig.relay());
    let running = Running::commands(commands_with(&rig, handler, settings).await);
    let is_held = || async { held(&rig, "answer", sick).await == Some((code.to_owned(), 0)) };
    eventually("the sick key is held", is_held).await;
    eventually("the well key is answered", || async { answers(&rig).await.len() == 1 }).await;
    // Also while one is under way.
    rig.store.unpark("answer", sick.uuid()).await.unwrap();
    ends(running).await;
    assert_eq!(answers(&rig).await.len(), 1);
    ends(relay).await;
}

/// The next version of what happened.
#[derive(Serialize, Deserialize)]
struct HappenedSince {
    thing: Uuid,
    step: u64,
}

impl DomainEvent for HappenedSince {
    const TYPE: &'static str = Happened::TYPE;
    const VERSION: u16 = Happened::VERSION + 1;
    const AGGREGATE: &'static str = Happened::AGGREGATE;
    fn aggregate_id(&self) -> Uuid {
        self.thing
    }
    fn aggregate_version(&self) -> u64 {
        self.step
    }
}

/// Writes down the keys of which it was shown something.
struct Keys;

#[async_trait]
impl Projection for Keys {
    fn name(&self) -> &'static str {
        "keys"
    }

    fn schema(&self) -> SqlPair {
        SqlPair::of("CREATE TABLE keys (home uuid)", "CREATE TABLE keys (home BLOB)")
    }

    fn tables(&self) -> &'static [ReadTable] {
        &[ReadTable { name: "keys", columns: &["home"] }]
    }

    fn handles(&self, event_type: &str) -> bool {
        event_type == HappenedSince::TYPE
    }

    async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError> {
        for event in batch {
            event.decode::<HappenedSince>()?;
            tx.query(Statement::same("INSERT INTO keys (home) VALUES (?)").bind(event.home)).await?;
        }
        Ok(())
    }
}

/// Guard: `Ready::of`. An upcaster that panics parks the key, also when it is un-parked; the next key of the partition is applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upcaster_that_panics() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let (sick, well) = neighbours(&rig).await;
    rig.write(sick, Uuid::new_v4(), &[BOMB]).await;
    rig.write(well, Uuid::new_v4(), &[1]).await;
    let mended = Arc::new(AtomicBool::new(false));
    let is_mended = Arc::clone(&mended);
    let step = move |old: serde_json::Value| {
        assert!(old["step"] != BOMB || is_mended.load(Ordering::SeqCst), "a bomb");
        Ok(old)
    };
    let registry = Registry::builder().event::<HappenedSince>().upcast(Happened::TYPE, 1, step).build().unwrap();
    let relay = Running::relay(rig.relay());
    let runner = run(&rig, rig.subscriber(), &registry, Arc::new(Keys)).await;
    let applied = async |home: HomeKey| {
        let asked = Statement::same("SELECT 1 FROM keys WHERE home = ?").bind(home.uuid());
        rig.store.query(asked).await.unwrap().len() == 1
    };
    eventually("the well key is applied", || applied(well)).await;
    eventually("the sick key is parked", || async { held(&rig, "keys", sick).await == Some(("panic".into(), 0)) })
        .await;
    rig.store.unpark("keys", sick.uuid()).await.unwrap();
    eventually("parked again", || async { held(&rig, "keys", sick).await == Some(("panic".into(), 1)) }).await;
    mended.store(true, Ordering::SeqCst);
    rig.store.unpark("keys", sick.uuid()).await.unwrap();
    eventually("the sick key is applied", || applied(sick)).await;
    ends(runner).await;
    ends(relay).await;
}

/// Answers, but does not say where to for poison.
struct Aimless;

#[async_trait]
impl CommandHandler for Aimless {
    fn name(&self) -> &'static str {
        Answer.name()
    }

    fn handles(&self, event_type: &str) -> bool {
        Answer.handles(event_type)
    }

    fn target(&self, event: &Event) -> Target {
        assert!(event.decode::<Happened>().unwrap().step != POISON, "no aim");
        Answer.target(event)
    }

    async fn handle(&self, cx: &RequestContext, unit: &mut Unit, event: &Event) -> Result<Effect, ApplyError> {
        Answer.handle(cx, unit, event).await
    }
}

/// Guard: `CommandSink::run` asks for the target behind `guarded_call`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_whose_target_panics() {
    holds_the_sick_alone(Arc::new(Aimless), settings(), "panic").await;
}

/// Answers, but goes on for ever over poison.
struct Silent;

#[async_trait]
impl CommandHandler for Silent {
    fn name(&self) -> &'static str {
        Answer.name()
    }

    fn handles(&self, event_type: &str) -> bool {
        Answer.handles(event_type)
    }

    async fn handle(&self, cx: &RequestContext, unit: &mut Unit, event: &Event) -> Result<Effect, ApplyError> {
        if event.decode::<Happened>()?.step == POISON {
            std::future::pending::<()>().await;
        }
        Answer.handle(cx, unit, event).await
    }
}

/// Guard: `CommandSink::run` waits for the handler no longer than `patience`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_never_answers() {
    let mut settings = CommandSettings { patience: Duration::from_millis(600), ..settings() };
    settings.consumer.tries_max = 1;
    holds_the_sick_alone(Arc::new(Silent), settings, "patience").await;
}

/// A part of a unit that panics when it is committed.
#[derive(Debug, Default)]
struct Fuse;

impl UnitPart for Fuse {
    fn facts(&self) -> u64 {
        0
    }

    fn statements(&mut self, _: &CommitFacts<'_>) -> Result<Vec<Statement>, PartError> {
        panic!("not this one")
    }

    fn call(&mut self, _: &CommitFacts<'_>) -> Result<Option<PartCall>, PartError> {
        panic!("not this one")
    }
}

/// Answers, but poison with such a part.
struct Armed;

#[async_trait]
impl CommandHandler for Armed {
    fn name(&self) -> &'static str {
        Answer.name()
    }

    fn handles(&self, event_type: &str) -> bool {
        Answer.handles(event_type)
    }

    async fn handle(&self, cx: &RequestContext, unit: &mut Unit, event: &Event) -> Result<Effect, ApplyError> {
        if event.decode::<Happened>()?.step == POISON {
            unit.part::<Fuse>();
            return Ok(Effect::Commit);
        }
        Answer.handle(cx, unit, event).await
    }
}

/// Guard: `CommandSink::run` commits behind `guarded`. What panics only then parks its key too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_whose_commit_panics() {
    holds_the_sick_alone(Arc::new(Armed), settings(), "panic").await;
}

/// The journal, but it goes on for ever over poison.
struct Stuck(Journal);

#[async_trait]
impl Projection for Stuck {
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
        for event in batch {
            self.0.mended.store(true, Ordering::SeqCst);
            self.0.apply(tx, std::slice::from_ref(event)).await?;
            if event.decode::<Happened>()?.step == POISON {
                std::future::pending::<()>().await;
            }
        }
        Ok(())
    }
}

/// Guard: `ProjectionSink::apply` waits no longer than `apply_ms_max`, and what had been written by then is taken back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_projection_that_never_answers() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let (sick, well) = neighbours(&rig).await;
    rig.write(sick, Uuid::new_v4(), &[POISON]).await;
    rig.write(well, Uuid::new_v4(), &[1]).await;
    let relay = Running::relay(rig.relay());
    // Long enough for the well key on a machine that is busy.
    let patient = ConsumerSettings { apply_ms_max: 1000, ..few_tries() };
    let stuck = Arc::new(Stuck(Journal::default()));
    let runner = run_with(&rig, rig.subscriber(), &rig.registry, stuck, &patient).await;
    eventually("the well key is applied", || async { rig.order_of(well).await == [1] }).await;
    let is_parked = || async { held(&rig, "journal", sick).await == Some(("patience".into(), 0)) };
    eventually("the sick key is parked", is_parked).await;
    // Also while it is under way.
    rig.store.unpark("journal", sick.uuid()).await.unwrap();
    ends(runner).await;
    assert_eq!(rig.order_of(sick).await, [0; 0]);
    ends(relay).await;
}

/// Panics when it is asked at first.
struct Fragile {
    bus: EmbeddedBus,
    asked: AtomicUsize,
}

#[async_trait]
impl Subscriber for Fragile {
    async fn partitions(&self, topic: &str) -> Result<u16, BusError> {
        self.bus.partitions(topic).await
    }

    async fn fetch(&self, topic: &str, partition: u16, offset: u64, max: usize) -> Result<Vec<Record>, BusError> {
        assert!(self.asked.fetch_add(1, Ordering::SeqCst) > 20, "not yet");
        self.bus.fetch(topic, partition, offset, max).await
    }

    async fn end_offset(&self, topic: &str, partition: u16) -> Result<u64, BusError> {
        self.bus.end_offset(topic, partition).await
    }

    fn arrivals(&self, topic: &str, partition: u16) -> watch::Receiver<u64> {
        self.bus.arrivals(topic, partition)
    }
}

/// Guard: `Worker::run` begins anew. Whatever panics, no partition is left without a worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_goes_on_after_a_panic() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1]).await;
    let relay = Running::relay(rig.relay());
    let fragile = Arc::new(Fragile { bus: rig.bus.clone(), asked: AtomicUsize::new(0) });
    let runner = run(&rig, fragile, &rig.registry, Arc::new(Journal::default())).await;
    eventually("it is applied", || async { rig.order_of(home).await == [1] }).await;
    ends(runner).await;
    ends(relay).await;
}

/// Guard: `follow` passes an event at which `show` panics, and asks a bus again that does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_goes_on_after_a_panic() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let fragile: Arc<dyn Subscriber> = Arc::new(Fragile { bus: rig.bus.clone(), asked: AtomicUsize::new(0) });
    let tail = Tail::open(fragile, DOMAIN_TOPIC).await.unwrap();
    let seen: Arc<Mutex<Vec<u64>>> = Arc::default();
    let shown = Arc::clone(&seen);
    let show = move |event: Event| {
        assert!(event.n != 1, "not this one");
        shown.lock().unwrap().push(event.n);
        std::future::ready(())
    };
    let running = tokio::spawn(tail.run(std::future::pending(), show));
    let relay = Running::relay(rig.relay());
    rig.write(patient(), Uuid::new_v4(), &[1, 2]).await;
    eventually("the next is shown", || async { *seen.lock().unwrap() == [2] }).await;
    running.abort();
    ends(relay).await;
}
