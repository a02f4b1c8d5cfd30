//! Whoever fails at an event does so before it has the key to itself: what became of the key meanwhile stays.

use super::*;
use crate::consumer::Head;

/// Fails at every event. Before it says so for the last time another worker finds that the key was rewound.
struct Overtaken {
    db: Db,
    /// How often it fails before that.
    before: AtomicUsize,
}

#[async_trait]
impl Sink for Overtaken {
    const PREPARES: bool = true;
    const KIND: ConsumerKind = ConsumerKind::Command;

    fn handles(&self, _event_type: &str) -> bool {
        true
    }

    async fn prepare(&self, events: &[Event], _: &Ahead<'_>, _: GoesOn<'_>) -> Result<bool, ApplyError> {
        let Some(event) = events.first() else { return Ok(true) };
        let sick = ApplyError::Rejected { code: "sick" };
        if self.before.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(sick);
        }
        let rewound = Statement::same(
            "INSERT INTO held_key (consumer, home_key, part, reason, code, tries, since, last_epoch, last_n)
             VALUES ('c', ?, 0, 'rewound', 'order', 0, 0, 1, ?)
             ON CONFLICT (consumer, home_key) DO UPDATE SET reason = 'rewound', code = 'order'",
        );
        let rewound = rewound.bind(event.home).bind(event.n);
        self.db.begin().await?.commit_with(vec![rewound]).await?;
        Err(sick)
    }

    async fn apply(&self, _tx: &mut Transaction, _events: &[Event]) -> Result<(), ApplyError> {
        Ok(())
    }
}

async fn overtaken(folder: &Path, before: usize) -> Engine<Overtaken> {
    engine_over(folder, |db| Overtaken { db: db.clone(), before: AtomicUsize::new(before) }).await
}

/// Why the one key is held, how often it was tried in vain, and how many events wait.
async fn the_hold(engine: &Engine<Overtaken>) -> (String, u64, u64) {
    let asked = "SELECT reason, tries, (SELECT count(*) FROM held_event) FROM held_key";
    let row = &engine.db.query(Statement::same(asked)).await.unwrap()[0];
    (row.text(0).unwrap().to_owned(), row.count(1).unwrap(), row.count(2).unwrap())
}

/// Guard: `Item::held` decides behind the lock.
#[tokio::test]
async fn a_failed_event_keeps_what_was_rewound() {
    let folder = Folder::new();
    let engine = overtaken(&folder, 0).await;
    let place = begun(&engine).await;
    assert_eq!(engine.absorb(&place, 0, &[sound(0)]).await.unwrap(), Step::Next(1));
    assert_eq!(the_hold(&engine).await, ("rewound".into(), 0, 1));
}

/// Guard: `ledger::give_up` parks what still drains.
#[tokio::test]
async fn a_failed_drain_keeps_what_was_rewound() {
    let folder = Folder::new();
    // A step of a hundred is halved six times before it is one event.
    let engine = overtaken(&folder, 6).await;
    let place = begun(&engine).await;
    let late = numbered(Uuid::new_v4(), 2, 0);
    assert_eq!(engine.absorb(&place, 0, std::slice::from_ref(&late)).await.unwrap(), Step::Next(1));
    assert_eq!(the_hold(&engine).await, ("gap".into(), 0, 1));
    let head = Head { epoch: pim_core::shard::Epoch(1), n: 1 };
    let drains = Statement::same("UPDATE held_key SET reason = 'draining'");
    let first = ledger::save_heads("c", &[(late.key, head, None)], engine.clock.now());
    engine.db.begin().await.unwrap().commit_with(vec![first, drains]).await.unwrap();
    assert!(engine.drain(&place, || true).await.unwrap());
    assert_eq!(the_hold(&engine).await, ("rewound".into(), 0, 1));
}
