//! While buckets move between shards, each event of a patient is applied once and in order, and each command happens once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pim_core::context::RequestContext;
use pim_core::identity::Actor;
use pim_core::shard::{HomeKey, ShardId};
use pim_data::backend::{Engine, Statement};
use pim_data::relocation::{MoveError, MoveStep, Mover};
use pim_data::unit::Unit;
use pim_events::{
    AppendExt as _, ApplyError, CommandHandler, CommandRunner, CommandSettings, ConsumerSettings, DomainEvent as _,
    Effect, Event, OutboxOutlet, Source,
};
use uuid::Uuid;

use super::rig::{
    Answered, Folder, Happened, Journal, Patient, Rig, Role, Running, carried_out, context, eventually, patient,
};

/// Answers every step.
pub(crate) struct Answer;

#[async_trait]
impl CommandHandler for Answer {
    fn name(&self) -> &'static str {
        "answer"
    }

    fn handles(&self, event_type: &str) -> bool {
        event_type == Happened::TYPE
    }

    async fn handle(&self, _cx: &RequestContext, unit: &mut Unit, event: &Event) -> Result<Effect, ApplyError> {
        unit.append(&Answered { answer: event.derive_id::<Patient>(0).uuid(), cause: event.id })?;
        Ok(Effect::Commit)
    }
}

pub(crate) async fn commands(rig: &Rig) -> Running {
    let service = Actor::new("svc-answer".parse().unwrap(), Role::Service);
    let consumer = ConsumerSettings { pause_max_ms: 20, ..ConsumerSettings::default() };
    let settings = CommandSettings { consumer, ..CommandSettings::of(service) };
    let handlers: Vec<Arc<dyn CommandHandler>> = vec![Arc::new(Answer)];
    let runner = CommandRunner::open(&rig.cluster, &rig.store, rig.subscriber(), &rig.registry, handlers, &settings);
    Running::commands(runner.await.unwrap())
}

fn other_end(rig: &Rig, home: HomeKey) -> ShardId {
    ShardId(1 - rig.cluster.router().route(&home).shard.0)
}

/// Whoever lives beside a key, in another bucket of the same shard.
fn neighbour(rig: &Rig, home: HomeKey) -> HomeKey {
    let shard_of = |key: &HomeKey| rig.cluster.router().route(key).shard;
    let is_beside = |key: &HomeKey| shard_of(key) == shard_of(&home) && key.bucket() != home.bucket();
    std::iter::repeat_with(patient).find(is_beside).expect("every second one")
}

/// Causes of all answers, in all outboxes.
pub(crate) async fn answers(rig: &Rig) -> Vec<Uuid> {
    let mut all = Vec::new();
    for source in Source::all(&rig.cluster) {
        let asked = Statement::same("SELECT causation FROM outbox_event WHERE event_type = 'answer.given'");
        all.extend(source.db.query(asked).await.unwrap().iter().map(|row| row.uuid(0).unwrap()));
    }
    all
}

/// Guard: the target takes its first write only when the source's outbox of the bucket is dry (`Run::drain`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_keep_their_order_while_their_bucket_moves_there_and_back() {
    let folder = Folder::new();
    let rig = Arc::new(Rig::open(folder.path()).await);
    let relay = Running::relay(rig.relay());
    let runner = Running::projections(rig.projections(&Journal::default()).await);
    let commands = commands(&rig).await;
    let home = patient();
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writing = {
        let (rig, stop, written) = (Arc::clone(&rig), Arc::clone(&stop), Arc::clone(&written));
        tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let number = written.load(Ordering::SeqCst) + 1;
                // In thousands: some small numbers mean something to the journal.
                rig.write(home, Uuid::new_v4(), &[1000 * number]).await;
                written.store(number, Ordering::SeqCst);
                // So that relay, consumers and mover get their turns on one small machine.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    };
    let goes_on = async || {
        let before = written.load(Ordering::SeqCst);
        eventually("the writer goes on", || async { written.load(Ordering::SeqCst) > before + 5 }).await;
    };
    let mover = Mover::new(&rig.cluster, Arc::new(OutboxOutlet));
    for _ in 0..6 {
        goes_on().await;
        let planned = mover.plan(&context(), [home.bucket()], other_end(&rig, home)).await.unwrap();
        assert_eq!(carried_out(&mover, planned.id).await.step, MoveStep::Done);
    }
    goes_on().await;
    stop.store(true, Ordering::SeqCst);
    writing.await.unwrap();
    let written = written.load(Ordering::SeqCst);
    eventually("everything is applied", || async { rig.journal().await.len() as u64 >= written }).await;
    eventually("everything is answered", || async { answers(&rig).await.len() as u64 >= written }).await;
    eventually("nothing is held", || async { rig.store.held_keys(None, 9).await.unwrap().is_empty() }).await;
    relay.end().await;
    runner.end().await;
    commands.end().await;
    let steps: Vec<u64> = rig.journal().await.into_iter().map(|(_, _, step)| step).collect();
    assert_eq!(steps, (1..=written).map(|step| 1000 * step).collect::<Vec<_>>(), "each once, in the order of writing");
    let mut causes = answers(&rig).await;
    causes.sort_unstable();
    causes.dedup();
    assert_eq!((causes.len() as u64, answers(&rig).await.len() as u64), (written, written), "each command once");
}

/// Guard: the inbox moves with its bucket, so that a redelivered event finds its command done on the new shard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_was_done_before_the_move_is_not_done_again() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let relay = Running::relay(rig.relay());
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1, 2, 3]).await;
    let running = commands(&rig).await;
    let is_read = || async {
        let status = rig.store.status(&rig.bus).await.unwrap();
        status.iter().any(|it| it.partitions.iter().map(|it| it.next_offset).sum::<u64>() >= 6)
    };
    eventually("three answers, all read", || async { answers(&rig).await.len() == 3 && is_read().await }).await;
    running.end().await;
    let mover = Mover::new(&rig.cluster, Arc::new(OutboxOutlet));
    let planned = mover.plan(&context(), [home.bucket()], other_end(&rig, home)).await.unwrap();
    carried_out(&mover, planned.id).await;
    let mut tx = rig.store.db().begin().await.unwrap();
    tx.script("DELETE FROM projection_checkpoint; DELETE FROM inbox_head").await.unwrap();
    tx.commit().await.unwrap();
    let running = commands(&rig).await;
    eventually("everything is read again", is_read).await;
    running.end().await;
    relay.end().await;
    assert_eq!(answers(&rig).await.len(), 3);
}

/// Guard: what waits in the outbox, or is parked there, keeps its bucket where it is.
#[tokio::test]
async fn an_outbox_with_something_of_the_bucket_holds_the_move() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    let bystander = neighbour(&rig, home);
    rig.write(home, Uuid::new_v4(), &[1]).await;
    let settings = pim_data::relocation::MoveSettings {
        lull_max: Duration::ZERO,
        pause_max: Duration::from_secs(3),
        ..Default::default()
    };
    let mover = Mover::new(&rig.cluster, Arc::new(OutboxOutlet)).with_settings(settings);
    let planned = mover.plan(&context(), [home.bucket()], other_end(&rig, home)).await.unwrap();
    assert!(matches!(mover.run(&context(), planned.id).await, Err(MoveError::NotDrained)), "no relay runs");
    rig.write(home, Uuid::new_v4(), &[2]).await;
    let source = rig.cluster.database(planned.source).unwrap();
    let mut tx = source.begin().await.unwrap();
    let passed = match source.engine() {
        Engine::Sqlite => "last_seq = 99",
        Engine::Postgres => "low = pg_current_snapshot()",
    };
    tx.script(&format!("UPDATE outbox_cursor SET {passed}")).await.unwrap();
    let parked =
        "INSERT INTO outbox_held (seq, home_key, code, at) SELECT seq, home_key, 'too_large', at FROM outbox_event";
    tx.script(parked).await.unwrap();
    tx.commit().await.unwrap();
    assert!(matches!(mover.run(&context(), planned.id).await, Err(MoveError::Parked)));
    let free = mover.plan(&context(), [bystander.bucket()], planned.target).await.unwrap();
    let moved = carried_out(&mover, free.id).await;
    assert_eq!((moved.source, moved.step), (planned.source, MoveStep::Done), "another key's park is no hindrance");
}
