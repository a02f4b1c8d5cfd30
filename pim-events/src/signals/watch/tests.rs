//! What a watch tells when something that it looks at does not answer.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use pim_core::shard::ShardId;
use pim_core::signal::SignalRegistry;
use pim_data::backend::{Db, DbSettings};
use tokio::sync::watch;
use uuid::Uuid;

use super::*;
use crate::bus::Record;
use crate::event::Origin;

fn folder() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("pim-watch-{}", Uuid::new_v4().simple()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

async fn script(db: &Db, text: &str) {
    let mut tx = db.begin().await.unwrap();
    tx.script(text).await.unwrap();
    tx.commit().await.unwrap();
}

async fn source(folder: &Path, shard: u16) -> Source {
    let db = Db::open(&folder.join(format!("{shard}.db")), DbSettings::default()).await.unwrap();
    Source { origin: Origin::Shard(ShardId(shard)), db, commits: watch::channel(0).1 }
}

fn bound() -> EventSignals {
    EventSignals::bind(&mut SignalRegistry::default()).unwrap()
}

/// Guard: `outboxes` goes on behind an outbox that does not answer; of that one it says what it knew.
#[tokio::test]
async fn one_silent_outbox_freezes_no_other() {
    let folder = folder();
    let (silent, telling) = (source(&folder, 0).await, source(&folder, 1).await);
    pim_data::migration::migrate(&telling.db, crate::outbox::migrations()).await.unwrap();
    script(
        &telling.db,
        "INSERT INTO outbox_event (bucket, lane, owner_epoch, home_key, n, event_id, topic, event_type, schema_version,
           aggregate, aggregate_id, aggregate_version, correlation, traceparent, actor, role, at, payload)
         VALUES (1, 1, 1, x'00', 1, x'00', 't', 'thing.told', 1, 'thing', x'00', 1, x'00', '', 'u-1', 'clerk', 0, '{}');",
    )
    .await;
    let signals = bound();
    let gauges = signals.0.clone().unwrap();
    gauges.backlog.get(SourceLabel::Shard0).set(7);
    let watch = Watch::of_outboxes(vec![silent, telling], Clock::system(), &signals, &WatchSettings::default());
    watch.look().await.unwrap_err();
    let backlog = |label| gauges.backlog.get(label).get();
    assert_eq!((backlog(SourceLabel::Shard0), backlog(SourceLabel::Shard1)), (7, 1));
    assert!(gauges.oldest_unsent.get(SourceLabel::Shard1).get() > 0);
    drop(watch);
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A bus of one topic with ten records, the first of which are not where they were put.
struct Away;

#[async_trait]
impl Subscriber for Away {
    async fn partitions(&self, _topic: &str) -> Result<u16, BusError> {
        Ok(1)
    }

    async fn fetch(&self, _topic: &str, partition: u16, offset: u64, _max: usize) -> Result<Vec<Record>, BusError> {
        Err(BusError::SegmentMissing { partition, offset, file: "1.db".into() })
    }

    async fn end_offset(&self, topic: &str, _partition: u16) -> Result<u64, BusError> {
        if topic == "t" { Ok(10) } else { Err(BusError::UnknownTopic) }
    }

    fn arrivals(&self, _topic: &str, _partition: u16) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

/// Guard: `consumers` and `dead_letters` go on behind what the bus does not tell.
#[tokio::test]
async fn a_silent_bus_hides_no_consumer() {
    let folder = folder();
    let store = ReadStore::open(&folder.join("read.db"), Clock::system()).await.unwrap();
    script(
        store.db(),
        "INSERT INTO projection_checkpoint (consumer, topic, part, next_offset, event_at, at)
         VALUES ('a', 'gone', 0, 3, 0, 0), ('b', 't', 0, 4, 0, 0);
         INSERT INTO consumer_stop (consumer, reason, since) VALUES ('a', 'test', 0);
         INSERT INTO held_key (consumer, home_key, part, reason, code, tries, since, last_epoch, last_n)
         VALUES ('a', x'00', 0, 'poison', 'x', 0, 0, 1, 1);",
    )
    .await;
    let signals = bound();
    let gauges = signals.0.clone().unwrap();
    let watch = Watch::of_consumers(&store, Arc::new(Away), &signals, &WatchSettings::default());
    watch.look().await.unwrap_err();
    assert_eq!(gauges.lag_records.get(ConsumerKind::Command).get(), 6, "what the other has not read");
    assert!(gauges.lag_seconds.get(ConsumerKind::Command).get() > 0, "for how long it has stood");
    assert_eq!(gauges.stopped.get(()).get(), 1);
    assert_eq!(gauges.parked_keys.get(HoldReason::Poison).get(), 1);
    store.status(&Away).await.unwrap_err();

    script(store.db(), "DELETE FROM projection_checkpoint WHERE topic = 'gone';").await;
    let all = store.status(&Away).await.unwrap();
    let partition = &all[0].partitions[0];
    assert_eq!((partition.lag, partition.lag_ms, partition.moved_at.as_micros()), (6, None, 0));
    watch.look().await.unwrap();
    drop((watch, store));
    std::fs::remove_dir_all(&folder).unwrap();
}
