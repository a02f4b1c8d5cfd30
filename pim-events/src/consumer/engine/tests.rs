//! What the engine must do whoever else is at work.

use std::sync::atomic::{AtomicUsize, Ordering};

use pim_data::backend::{DbSettings, Statement};
use uuid::Uuid;

use super::*;
use crate::bus::NewRecord;
use crate::event::Headers;

/// Counts what it is given.
struct Count(AtomicUsize);

#[async_trait]
impl Sink for Count {
    const PREPARES: bool = false;
    const KIND: ConsumerKind = ConsumerKind::Projection;

    fn handles(&self, _event_type: &str) -> bool {
        true
    }

    async fn prepare(&self, _events: &[Event]) -> Result<(), ApplyError> {
        Ok(())
    }

    async fn apply(&self, _tx: &mut Transaction, events: &[Event]) -> Result<(), ApplyError> {
        self.0.fetch_add(events.len(), Ordering::SeqCst);
        Ok(())
    }
}

async fn engine(folder: &std::path::Path) -> Engine<Count> {
    let db = Db::open(&folder.join("ledger.db"), DbSettings::default()).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    tx.script(&ledger::LEDGER_SCHEMA.text(db.engine()).unwrap()).await.unwrap();
    tx.commit().await.unwrap();
    let settings = ConsumerSettings::default();
    Engine {
        sink: Count(AtomicUsize::new(0)),
        db,
        registry: Registry::default(),
        settings,
        clock: Clock::system(),
        signals: EventSignals::unbound(),
    }
}

fn broken(offset: u64) -> Record {
    let new = NewRecord { topic: "t".into(), key: Uuid::nil(), headers: Headers::default(), payload: "{}".into() };
    let at = Timestamp::from_micros(0);
    Record { topic: new.topic, partition: 0, offset, key: new.key, headers: new.headers, payload: new.payload, at }
}

/// Guard: compare-and-set in `ledger::advance`. A worker whose position is stale is told so and moves nothing back.
#[tokio::test]
async fn a_stale_position_moves_no_checkpoint() {
    let folder = std::env::temp_dir().join(format!("pim-engine-{}", Uuid::new_v4().simple()));
    std::fs::create_dir_all(&folder).unwrap();
    let engine = engine(&folder).await;
    let place = Place { consumer: "c", topic: "t".into(), partition: 0 };
    assert_eq!(engine.position(&place).await.unwrap(), 0);
    let records: Vec<Record> = (0..5).map(broken).collect();
    assert_eq!(engine.absorb(&place, 0, &records).await.unwrap(), Step::Next(5));
    assert_eq!(engine.absorb(&place, 0, &records[..3]).await.unwrap(), Step::Lost);
    assert_eq!(engine.position(&place).await.unwrap(), 5);
    let kept = engine.db.query(Statement::same("SELECT count(*) FROM dead_record")).await.unwrap();
    assert_eq!(kept[0].count(0).unwrap(), 5);
    drop(engine);
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Guard: `park` buries what is no event. A record that cannot be put aside is not passed over.
#[tokio::test]
async fn nothing_vanishes_when_it_cannot_be_put_aside() {
    let folder = std::env::temp_dir().join(format!("pim-engine-{}", Uuid::new_v4().simple()));
    std::fs::create_dir_all(&folder).unwrap();
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
    drop(engine);
    std::fs::remove_dir_all(&folder).unwrap();
}
