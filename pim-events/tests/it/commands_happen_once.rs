//! A command that an event drives happens once: under redelivery, races and crashes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pim_core::context::RequestContext;
use pim_core::identity::Actor;
use pim_core::shard::HomeKey;
use pim_data::backend::Statement;
use pim_data::unit::Unit;
use pim_events::{
    AppendExt as _, ApplyError, CommandHandler, CommandRunner, CommandSettings, ConsumerSettings, DOMAIN_TOPIC,
    DomainEvent as _, Effect, Event, ReadStore, Rebuild, RebuildError, StoreError, Subscriber as _, Verdict,
};
use uuid::Uuid;

use super::rig::{
    Answered, Folder, Happened, Journal, POISON, Patient, Rig, Role, Running, eventually, patient, powerful,
};

/// Answers each even step.
pub(super) struct Answer;

#[async_trait]
impl CommandHandler for Answer {
    fn name(&self) -> &'static str {
        "answer"
    }

    fn handles(&self, event_type: &str) -> bool {
        event_type == Happened::TYPE
    }

    async fn handle(&self, cx: &RequestContext, unit: &mut Unit, event: &Event) -> Result<Effect, ApplyError> {
        let happened = event.decode::<Happened>()?;
        assert_eq!(cx.causation(), Some(event.id));
        assert_eq!(cx.request_id(), event.correlation);
        assert_eq!(cx.trace().trace_id(), event.trace.trace_id());
        assert_eq!(cx.actor().original().map(ToString::to_string).as_deref(), Some("u-1"));
        if happened.step == POISON {
            return Err(ApplyError::Rejected { code: "poison" });
        }
        if happened.step % 2 == 1 {
            return Ok(Effect::Nothing);
        }
        unit.append(&Answered { answer: event.derive_id::<Patient>(0).uuid(), cause: event.id })?;
        Ok(Effect::Commit)
    }
}

/// Guard: `CommandRunner::open` looks for a read model of its name, with which it would share its place in the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_have_no_name_of_a_read_model() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let namesake =
        Statement::same("INSERT INTO projection_version (name, version, state, at) VALUES ('answer', 1, 'live', 0)");
    rig.store.db().begin().await.unwrap().commit_with(vec![namesake]).await.unwrap();
    let handler: Arc<dyn CommandHandler> = Arc::new(Answer);
    let refused =
        CommandRunner::open(&rig.cluster, &rig.store, rig.subscriber(), &rig.registry, vec![handler], &settings())
            .await;
    let told = refused.unwrap_err().to_string();
    assert!(told.starts_with("answer is the name of a read model of this store"), "{told}");
    assert!(rig.store.retire("answer").await.unwrap());
    assert!(!rig.store.retire("answer").await.unwrap(), "it is not known any more");
    drop(commands(&rig).await);
}

/// Guard: `ReadStore::install` and `Rebuild::run` look for a handler that has been there. What it has passed in the log a read model
/// would never see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_model_has_no_name_of_a_handler() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let passed = Statement::same("INSERT INTO projection_checkpoint VALUES ('journal', 'domain.v1', 0, 5, 0, 0)");
    let head = Statement::same(
        "INSERT INTO inbox_head (consumer, home_key, owner_epoch, n, at) VALUES ('journal', ?, 1, 5, 0)",
    );
    let head = head.bind(patient().uuid());
    rig.store.db().begin().await.unwrap().commit_with(vec![passed, head]).await.unwrap();
    let refused = rig.store.install(&Journal::default()).await.unwrap_err();
    assert!(matches!(refused, StoreError::HandlersName { name: "journal" }), "{refused}");
    // To be forgotten frees no name: what is known of the keys stays.
    assert!(rig.store.forget("journal").await.unwrap());
    rig.store.install(&Journal::default()).await.unwrap_err();
    let journal = Arc::new(Journal::default());
    let rebuild = Rebuild::new(&rig.store, rig.subscriber(), &rig.registry, journal, Verdict::MayDiffer);
    let refused = rebuild.run(folder.path(), |_, _| {}).await.unwrap_err();
    assert!(matches!(refused, RebuildError::Store(StoreError::HandlersName { .. })), "{refused}");
    // Whoever means it says so.
    rig.store.retire("journal").await.unwrap();
    rig.store.install(&Journal::default()).await.unwrap();
}

pub(super) async fn commands(rig: &Rig) -> CommandRunner {
    commands_of(rig, Arc::new(Answer)).await
}

pub(super) async fn commands_of(rig: &Rig, handler: Arc<dyn CommandHandler>) -> CommandRunner {
    commands_with(rig, handler, settings()).await
}

pub(super) fn settings() -> CommandSettings {
    let service = Actor::new("svc-answer".parse().unwrap(), Role::Service);
    let consumer = ConsumerSettings { pause_max_ms: 20, ..ConsumerSettings::default() };
    CommandSettings { consumer, ..CommandSettings::of(service) }
}

pub(super) async fn commands_with(
    rig: &Rig,
    handler: Arc<dyn CommandHandler>,
    settings: CommandSettings,
) -> CommandRunner {
    let handlers: Vec<Arc<dyn CommandHandler>> = vec![handler];
    CommandRunner::open(&rig.cluster, &rig.store, rig.subscriber(), &rig.registry, handlers, &settings).await.unwrap()
}

/// Causes of all answers, in all outboxes.
pub(super) async fn answers(rig: &Rig) -> Vec<Uuid> {
    let mut all = Vec::new();
    for source in pim_events::Source::all(&rig.cluster) {
        let asked = Statement::same("SELECT causation FROM outbox_event WHERE event_type = 'answer.given'");
        all.extend(source.db.query(asked).await.unwrap().iter().map(|row| row.uuid(0).unwrap()));
    }
    all
}

pub(super) async fn forget_position(rig: &Rig) {
    let mut tx = rig.store.db().begin().await.unwrap();
    for table in ["projection_checkpoint", "inbox_head"] {
        tx.script(&format!("DELETE FROM {table} WHERE consumer = 'answer'")).await.unwrap();
    }
    tx.commit().await.unwrap();
}

/// Guard: the inbox row in the command's own transaction (`InboxPart`), not the consumer's position, makes it happen once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn also_when_the_consumer_forgets_where_it_was() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let _relay = Running::relay(rig.relay());
    for _ in 0..3 {
        rig.write(patient(), Uuid::new_v4(), &[1, 2, 3, 4]).await;
    }
    for round in 0..3 {
        let running = Running::commands(commands(&rig).await);
        eventually("six answers, all read", || async {
            let status = rig.store.status(&rig.bus).await.unwrap();
            let read = |consumer: &pim_events::ConsumerStatus| {
                consumer.partitions.iter().map(|it| it.next_offset).sum::<u64>()
            };
            answers(&rig).await.len() >= 6 && status.iter().any(|it| it.consumer == "answer" && read(it) >= 18)
        })
        .await;
        if round % 2 == 0 {
            running.end().await;
        } else {
            running.crash().await;
        }
        forget_position(&rig).await;
    }
    let mut causes = answers(&rig).await;
    causes.sort_unstable();
    causes.dedup();
    assert_eq!((causes.len(), answers(&rig).await.len()), (6, 6));
}

/// Guard: of two runners that run the same command at the same time one commits; the other finds it done (`lost_race`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn also_when_two_runners_race_and_crash() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let other = Rig::open(folder.path()).await;
    let _relay = Running::relay(rig.relay());
    let homes: Vec<_> = (0..5).map(|_| patient()).collect();
    for round in 0..6_u64 {
        let one = Running::commands(commands(&rig).await);
        let two = Running::commands(commands(&other).await);
        for home in &homes {
            rig.write(*home, Uuid::new_v4(), &[2 * round + 2, 2 * round + 1]).await;
        }
        tokio::time::sleep(Duration::from_millis(3 * round)).await;
        one.crash().await;
        two.crash().await;
    }
    let last = Running::commands(commands(&rig).await);
    eventually("thirty answers", || async { answers(&rig).await.len() >= 30 }).await;
    last.end().await;
    let mut causes = answers(&rig).await;
    causes.sort_unstable();
    causes.dedup();
    assert_eq!((causes.len(), answers(&rig).await.len()), (30, 30));
}

/// Guard: a refused command parks its key and nothing of the key overtakes it (`CommandSink::lane`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_command_parks_its_key() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let _relay = Running::relay(rig.relay());
    let (sick, well) = (patient(), patient());
    rig.write(sick, Uuid::new_v4(), &[2, POISON, 4]).await;
    rig.write(well, Uuid::new_v4(), &[2, 4]).await;
    let _running = Running::commands(commands(&rig).await);
    eventually("the sick key is held", || async {
        let held = rig.store.held_keys(Some("answer"), 10).await.unwrap();
        held.len() == 1 && held[0].key == sick.uuid() && held[0].events >= 2
    })
    .await;
    eventually("three answers", || async { answers(&rig).await.len() == 3 }).await;
    assert_eq!(rig.store.head("answer", sick.uuid()).await.unwrap().n, 1);
}

/// Takes longer over poison than it may, and answers the rest.
struct Ponder;

#[async_trait]
impl CommandHandler for Ponder {
    fn name(&self) -> &'static str {
        "answer"
    }

    fn handles(&self, event_type: &str) -> bool {
        Answer.handles(event_type)
    }

    async fn handle(&self, cx: &RequestContext, unit: &mut Unit, event: &Event) -> Result<Effect, ApplyError> {
        if event.decode::<Happened>()?.step != POISON {
            return Answer.handle(cx, unit, event).await;
        }
        tokio::time::sleep(cx.deadline().remaining().unwrap_or_default() + Duration::from_millis(10)).await;
        unit.append(&Answered { answer: event.derive_id::<Patient>(0).uuid(), cause: event.id })?;
        Ok(Effect::Commit)
    }
}

/// Guard: `takes_too_long`. A command that always takes longer than it may, while its shard answers, parks its key; its
/// partition goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_takes_too_long_parks_its_key() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let _relay = Running::relay(rig.relay());
    let sick = patient();
    rig.write(sick, Uuid::new_v4(), &[2, POISON, 4]).await;
    let mut settings = CommandSettings { patience: Duration::from_millis(600), ..settings() };
    settings.consumer.tries_max = 1;
    let running = Running::commands(commands_with(&rig, Arc::new(Ponder), settings).await);
    eventually("the sick key is held", || async {
        let held = rig.store.held_keys(Some("answer"), 10).await.unwrap();
        held.len() == 1 && held[0].key == sick.uuid() && held[0].events >= 2
    })
    .await;
    assert_eq!(rig.store.held_keys(Some("answer"), 10).await.unwrap()[0].code, "patience");
    assert_eq!((answers(&rig).await.len(), rig.store.head("answer", sick.uuid()).await.unwrap().n), (1, 1));
    running.end().await;
}

/// Guard: a consumer that is stopped runs no command either, although commands run outside of its transaction (`Engine::attempt`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_consumer_runs_nothing() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let relay = Running::relay(rig.relay());
    let home = patient();
    let running = Running::commands(commands(&rig).await);
    rig.write(home, Uuid::new_v4(), &[2]).await;
    eventually("one answer", || async { answers(&rig).await.len() == 1 }).await;
    running.end().await;
    let mut tx = rig.store.db().begin().await.unwrap();
    tx.script("INSERT INTO consumer_stop (consumer, reason, since) VALUES ('answer', 'test', 0)").await.unwrap();
    tx.commit().await.unwrap();
    rig.write(home, Uuid::new_v4(), &[4]).await;
    // An ordinary read model over the same topic shows when the event has arrived.
    let journal = Running::projections(rig.projections(&Journal::default()).await);
    eventually("it has arrived", || async { rig.order_of(home).await.len() >= 2 }).await;
    let running = Running::commands(commands(&rig).await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    // In order: whatever a worker had begun has ended.
    running.end().await;
    assert_eq!(answers(&rig).await.len(), 1, "nothing happens while it is stopped");
    assert!(rig.store.resume("answer").await.unwrap());
    let running = Running::commands(commands(&rig).await);
    eventually("it goes on", || async { answers(&rig).await.len() == 2 }).await;
    running.end().await;
    journal.end().await;
    relay.end().await;
}

/// Answers, and while it has a step in hand for the first time another worker passes that, with all that is before it.
struct Overtaken {
    store: ReadStore,
    partition: u16,
    step: u64,
    before: AtomicBool,
}

impl Overtaken {
    async fn at(step: u64, rig: &Rig, home: HomeKey) -> Arc<Self> {
        let partition = pim_events::partition_of(home.uuid(), rig.bus.partitions(DOMAIN_TOPIC).await.unwrap());
        Arc::new(Self { store: rig.store.clone(), partition, step, before: AtomicBool::new(false) })
    }
}

#[async_trait]
impl CommandHandler for Overtaken {
    fn name(&self) -> &'static str {
        Answer.name()
    }

    fn handles(&self, event_type: &str) -> bool {
        Answer.handles(event_type)
    }

    async fn handle(&self, cx: &RequestContext, unit: &mut Unit, event: &Event) -> Result<Effect, ApplyError> {
        let step = event.decode::<Happened>()?.step;
        if step == self.step && !self.before.swap(true, Ordering::SeqCst) {
            // The log begins with the key's first event.
            let passes = Statement::same(
                "UPDATE projection_checkpoint SET next_offset = ? WHERE consumer = 'answer' AND topic = ? AND part = ?",
            );
            let head = Statement::same(
                "INSERT INTO inbox_head (consumer, home_key, owner_epoch, n, event_id, at) VALUES ('answer', ?, ?, ?, ?, 0)",
            );
            let head = head.bind(event.home).bind(event.owner_epoch.0).bind(event.n).bind(event.id);
            let passes = passes.bind(event.n).bind(DOMAIN_TOPIC).bind(self.partition);
            self.store.db().begin().await?.commit_with(vec![passes, head]).await?;
        }
        Answer.handle(cx, unit, event).await
    }
}

/// Guard: `Ahead::has`, asked right before a command is committed. A worker that was overtaken may have decided on what came later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_worker_has_passed_is_not_commanded() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let _relay = Running::relay(rig.relay());
    let home = patient();
    let overtaken = Overtaken::at(2, &rig, home).await;
    let running = Running::commands(commands_of(&rig, overtaken.clone()).await);
    rig.write(home, Uuid::new_v4(), &[2]).await;
    eventually("it is passed", || async { overtaken.before.load(Ordering::SeqCst) }).await;
    rig.write(home, Uuid::new_v4(), &[3, 4]).await;
    eventually("the next are read", || async { rig.store.head("answer", home.uuid()).await.unwrap().n >= 3 }).await;
    running.end().await;
    assert_eq!(answers(&rig).await.len(), 1, "of the fourth, and of none that was passed");
}

/// Guard: `CommandSink::forget`. What a worker remembers of a batch that another one passed says nothing of a shard that was set
/// back since: its inbox is asked again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_set_back_is_not_taken_for_done() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let _relay = Running::relay(rig.relay());
    let home = patient();
    // The first is answered, and then both are passed, which come in one batch.
    let overtaken = Overtaken::at(3, &rig, home).await;
    let _running = Running::commands(commands_of(&rig, overtaken.clone()).await);
    rig.write(home, Uuid::new_v4(), &[2, 3]).await;
    eventually("answered", || async { answers(&rig).await.len() == 1 }).await;
    // The number three is the answer's own. When the fourth has come, nothing of the first is in hand any more.
    rig.write(home, Uuid::new_v4(), &[5]).await;
    eventually("the next is read", || async { rig.store.head("answer", home.uuid()).await.unwrap().n == 4 }).await;

    let mut tx = powerful(&rig, home).await.begin().await.unwrap();
    tx.script("DELETE FROM command_inbox").await.unwrap();
    tx.script("DELETE FROM outbox_event WHERE event_type = 'answer.given'").await.unwrap();
    tx.commit().await.unwrap();
    let rewound = Statement::same(
        "INSERT INTO held_key (consumer, home_key, part, reason, code, tries, since, last_epoch, last_n)
         SELECT consumer, home_key, ?, 'rewound', 'order', 0, 0, owner_epoch, n FROM inbox_head WHERE home_key = ?",
    );
    let rewound = rewound.bind(overtaken.partition).bind(home.uuid());
    rig.store.db().begin().await.unwrap().commit_with(vec![rewound]).await.unwrap();
    rig.store.unpark_command(rig.subscriber().as_ref(), overtaken.as_ref(), home.uuid()).await.unwrap();
    eventually("all of it is gone through", || async { rig.store.held_keys(None, 9).await.unwrap().is_empty() }).await;
    assert_eq!(answers(&rig).await.len(), 1, "the answer that was lost is given again");
}
