//! What the engine must do with sequences that it applies again.

use super::*;

/// The handler says "not now" of the first event that follows a gap, for longer than tries without a pause would last.
struct NotYet {
    count: Count,
    since: std::sync::Mutex<Option<Instant>>,
}

#[async_trait]
impl Sink for NotYet {
    const PREPARES: bool = false;
    const KIND: ConsumerKind = ConsumerKind::Projection;

    fn handles(&self, event_type: &str) -> bool {
        self.count.handles(event_type)
    }

    async fn prepare(&self, events: &[Event], ahead: &Ahead<'_>, goes_on: GoesOn<'_>) -> Result<bool, ApplyError> {
        self.count.prepare(events, ahead, goes_on).await
    }

    async fn apply(&self, tx: &mut Transaction, events: &[Event]) -> Result<(), ApplyError> {
        if events.iter().any(|event| event.n == 2) {
            let since = *self.since.lock().unwrap().get_or_insert_with(Instant::now);
            if since.elapsed() < Duration::from_millis(300) {
                return Err(ApplyError::Later { code: "not_now" });
            }
        }
        self.count.apply(tx, events).await
    }
}

/// Guard: `drain_key` pauses before each try, as a batch does. What is held for a gap alone is not poison milliseconds later.
#[tokio::test]
async fn what_is_to_come_later_is_given_time() {
    let folder = Folder::new();
    let engine = engine_of(&folder, NotYet { count: Count::default(), since: std::sync::Mutex::default() }).await;
    let place = begun(&engine).await;
    let key = Uuid::new_v4();
    let told = [numbered(key, 2, 0), Record { offset: 1, ..numbered(key, 1, 0) }];
    assert_eq!(engine.absorb(&place, 0, &told).await.unwrap(), Step::Next(2));
    assert!(engine.drain(&place, || true).await.unwrap());
    let held = engine.db.query(Statement::same("SELECT reason FROM held_key")).await.unwrap();
    assert_eq!((held.len(), engine.sink.count.given.load(Ordering::SeqCst)), (0, 2));
}

/// Its effects are elsewhere, and counted.
#[derive(Default)]
struct Elsewhere {
    count: Count,
    prepared: AtomicUsize,
}

#[async_trait]
impl Sink for Elsewhere {
    const PREPARES: bool = true;
    const KIND: ConsumerKind = ConsumerKind::Command;

    fn handles(&self, event_type: &str) -> bool {
        self.count.handles(event_type)
    }

    async fn prepare(&self, events: &[Event], _: &Ahead<'_>, _: GoesOn<'_>) -> Result<bool, ApplyError> {
        self.prepared.fetch_add(events.len(), Ordering::SeqCst);
        Ok(true)
    }

    async fn apply(&self, tx: &mut Transaction, events: &[Event]) -> Result<(), ApplyError> {
        self.count.apply(tx, events).await
    }
}

/// Guards: `drain`, `drain_step` before it prepares, and `may_drain`. A consumer that was stopped applies nothing and has no other
/// effect before an operator resumes it, whatever is un-parked meanwhile.
#[tokio::test]
async fn a_stopped_consumer_drains_nothing() {
    let folder = Folder::new();
    let engine = engine_of(&folder, Elsewhere::default()).await;
    let place = begun(&engine).await;
    let run = async |text: &'static str| {
        let tx = engine.db.begin().await.unwrap();
        tx.commit_with(vec![Statement::same(text)]).await.unwrap();
    };
    engine.sink.count.sick.store(true, Ordering::SeqCst);
    let key = Uuid::new_v4();
    assert_eq!(engine.absorb(&place, 0, &[numbered(key, 1, 0)]).await.unwrap(), Step::Next(1));
    engine.sink.count.sick.store(false, Ordering::SeqCst);
    engine.sink.prepared.store(0, Ordering::SeqCst);
    let came_to = || (engine.sink.prepared.load(Ordering::SeqCst), engine.sink.count.given.load(Ordering::SeqCst));

    run("UPDATE held_key SET reason = 'draining'").await;
    run("INSERT INTO consumer_stop (consumer, reason, since) VALUES ('c', 'test', 0)").await;
    assert!(!engine.drain(&place, || true).await.unwrap());
    // Also when it had begun before.
    engine.drain_step(&place, key, 1, &|| true).await.unwrap();
    assert_eq!(came_to(), (0, 0));

    run("DELETE FROM consumer_stop").await;
    assert!(engine.drain(&place, || true).await.unwrap());
    assert_eq!(came_to(), (1, 1));
}

/// Guard: `may_drain`. The stop may come between preparing and applying, or to a consumer that prepares nothing.
#[tokio::test]
async fn a_step_of_a_stopped_consumer_writes_nothing() {
    let folder = Folder::new();
    let engine = engine(&folder).await;
    let place = begun(&engine).await;
    engine.sink.sick.store(true, Ordering::SeqCst);
    let key = Uuid::new_v4();
    assert_eq!(engine.absorb(&place, 0, &[numbered(key, 1, 0)]).await.unwrap(), Step::Next(1));
    engine.sink.sick.store(false, Ordering::SeqCst);
    let stop = "INSERT INTO consumer_stop (consumer, reason, since) VALUES ('c', 'test', 0)";
    let drains = "UPDATE held_key SET reason = 'draining'";
    let tx = engine.db.begin().await.unwrap();
    tx.commit_with(vec![Statement::same(drains), Statement::same(stop)]).await.unwrap();
    engine.drain_step(&place, key, 1, &|| true).await.unwrap();
    assert_eq!((held(&engine).await, engine.sink.given.load(Ordering::SeqCst)), (1, 0));
    resume(&engine).await;
    engine.drain_step(&place, key, 1, &|| true).await.unwrap();
    assert_eq!((held(&engine).await, engine.sink.given.load(Ordering::SeqCst)), (0, 1));
}
