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

    async fn prepare(&self, events: &[Event]) -> Result<(), ApplyError> {
        self.count.prepare(events).await
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
    let folder = std::env::temp_dir().join(format!("pim-engine-{}", Uuid::new_v4().simple()));
    std::fs::create_dir_all(&folder).unwrap();
    let engine = engine_of(&folder, NotYet { count: Count::default(), since: std::sync::Mutex::default() }).await;
    let place = Place { consumer: "c", topic: "t".into(), partition: 0 };
    engine.position(&place).await.unwrap();
    let key = Uuid::new_v4();
    let told = [numbered(key, 2, 0), Record { offset: 1, ..numbered(key, 1, 0) }];
    assert_eq!(engine.absorb(&place, 0, &told).await.unwrap(), Step::Next(2));
    assert!(engine.drain(&place, || true).await.unwrap());
    let held = engine.db.query(Statement::same("SELECT reason FROM held_key")).await.unwrap();
    assert_eq!((held.len(), engine.sink.count.given.load(Ordering::SeqCst)), (0, 2));
    drop(engine);
    std::fs::remove_dir_all(&folder).unwrap();
}
