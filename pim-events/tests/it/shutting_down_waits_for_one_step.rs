//! Work that may take minutes ends behind the step in hand when the program is told to end, and is gone on with by the next one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pim_core::clock::Clock;
use pim_core::context::RequestContext;
use pim_core::shard::HomeKey;
use pim_data::backend::{Db, DbSettings, Statement};
use pim_data::unit::Unit;
use pim_events::{ApplyError, CommandHandler, Effect, Event, Retention, RetentionSettings, Source};
use uuid::Uuid;

use super::commands_happen_once::{Answer, answers, commands_with, settings};
use super::rig::{Folder, Rig, Running, eventually, patient};

/// So many pages that a sweep is in the middle of them for a while.
const EVENTS: u64 = 1000;

fn row_by_row() -> RetentionSettings {
    RetentionSettings {
        outbox_age_secs: 0,
        log_age_secs: 0,
        segment_records: EVENTS,
        log_records_max: EVENTS,
        batch_max: 1,
        ..RetentionSettings::default()
    }
}

/// Writes many events of one key, and sends them.
async fn told(rig: &Rig) -> HomeKey {
    let home = patient();
    // None of them means anything to anybody.
    let steps: Vec<u64> = (1001..=1000 + EVENTS).collect();
    for steps in steps.chunks(250) {
        rig.write(home, Uuid::new_v4(), steps).await;
    }
    let relay = Running::relay(rig.relay());
    eventually("all of it is sent", || async {
        let mut backlog = 0;
        for source in Source::all(&rig.cluster) {
            backlog += source.status(Clock::system().now()).await.unwrap().backlog;
        }
        backlog == 0
    })
    .await;
    relay.end().await;
    home
}

async fn count(db: &Db, text: &'static str) -> u64 {
    db.query(Statement::same(text)).await.unwrap()[0].count(0).unwrap()
}

/// Guard: `Source::prune` asks before each page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_sweep_of_outboxes() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = told(&rig).await;
    let db = rig.cluster.database(rig.cluster.router().route(&home).shard).unwrap().clone();
    let left = async || count(&db, "SELECT count(*) FROM outbox_event").await;
    let sweeper = || Retention::of_outboxes(Source::all(&rig.cluster), Clock::system(), &row_by_row()).unwrap();
    sweeper().run(async { eventually("it has begun", || async { left().await < EVENTS }).await }).await;
    let rest = left().await;
    assert!((1..EVENTS).contains(&rest), "{rest} are left");
    assert_eq!(sweeper().sweep().await.unwrap(), rest);
}

/// Guard: `Inner::fill` asks before each page, and the next sweep completes what it began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_sweep_of_the_log() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    told(&rig).await;
    let db = Db::open(&folder.path().join("bus.db"), DbSettings::default()).await.unwrap();
    let has_begun = || async { std::fs::read_dir(folder.path().join("bus.archive")).is_ok_and(|it| it.count() > 0) };
    let sweeper = || Retention::of_log(&rig.bus, &rig.store, &row_by_row()).unwrap();
    sweeper().run(async { eventually("it has begun", has_begun).await }).await;
    assert_eq!(count(&db, "SELECT count(*) FROM bus_segment").await, 0, "the segment is not complete");
    assert_eq!(count(&db, "SELECT count(*) FROM bus_record").await, EVENTS);
    let at_once = RetentionSettings { batch_max: 500, ..row_by_row() };
    let swept = Retention::of_log(&rig.bus, &rig.store, &at_once).unwrap().sweep().await.unwrap();
    assert_eq!((swept, count(&db, "SELECT count(*) FROM bus_record").await), (EVENTS, 0));
}

/// Takes its time to answer.
struct Slow;

#[async_trait]
impl CommandHandler for Slow {
    fn name(&self) -> &'static str {
        Answer.name()
    }

    fn handles(&self, event_type: &str) -> bool {
        Answer.handles(event_type)
    }

    async fn handle(&self, cx: &RequestContext, unit: &mut Unit, event: &Event) -> Result<Effect, ApplyError> {
        tokio::time::sleep(Duration::from_millis(30)).await;
        Answer.handle(cx, unit, event).await
    }
}

/// Guard: `CommandSink::lane` asks before each command. What was done stays done, and the rest is done by the next runner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_batch_of_commands() {
    const COMMANDS: usize = 40;
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let steps: Vec<u64> = (1001..).map(|step| 2 * step).take(COMMANDS).collect();
    rig.write(patient(), Uuid::new_v4(), &steps).await;
    let relay = Running::relay(rig.relay());
    let running = Running::commands(commands_with(&rig, Arc::new(Slow), settings()).await);
    eventually("it has begun", || async { !answers(&rig).await.is_empty() }).await;
    running.end().await;
    let answered = answers(&rig).await.len();
    assert!((1..COMMANDS).contains(&answered), "{answered} are answered");
    let running = Running::commands(commands_with(&rig, Arc::new(Answer), settings()).await);
    eventually("all are answered", || async { answers(&rig).await.len() == COMMANDS }).await;
    running.end().await;
    let mut causes = answers(&rig).await;
    causes.sort_unstable();
    causes.dedup();
    assert_eq!(causes.len(), COMMANDS);
    relay.end().await;
}
