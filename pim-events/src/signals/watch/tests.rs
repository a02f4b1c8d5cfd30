//! What a watch tells when something that it looks at does not answer.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use pim_core::shard::ShardId;
use pim_core::signal::SignalRegistry;
use pim_data::backend::{Db, DbSettings, ReadGuard};
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use super::*;
use crate::bus::Record;
use crate::event::Origin;
use crate::projection::READERS_MAX;

/// Much less than the patience of anybody with something that hangs.
const PROMPT: Duration = Duration::from_secs(20);

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

/// An outbox with one event to send.
async fn telling(folder: &Path, shard: u16) -> Source {
    let telling = source(folder, shard).await;
    pim_data::migration::migrate(&telling.db, crate::outbox::migrations()).await.unwrap();
    script(
        &telling.db,
        "INSERT INTO outbox_event (bucket, lane, owner_epoch, home_key, n, event_id, topic, event_type, schema_version,
           aggregate, aggregate_id, aggregate_version, correlation, traceparent, actor, role, at, payload)
         VALUES (1, 1, 1, x'00', 1, x'00', 't', 'thing.told', 1, 'thing', x'00', 1, x'00', '', 'u-1', 'clerk', 0, '{}');",
    )
    .await;
    telling
}

/// Guard: `outboxes` goes on behind an outbox that does not answer; of that one it says what it knew.
#[tokio::test]
async fn one_silent_outbox_freezes_no_other() {
    let folder = folder();
    let (silent, telling) = (source(&folder, 0).await, telling(&folder, 1).await);
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

/// An outbox that never answers, as long as the guards are held.
async fn hanging(folder: &Path, shard: u16) -> (Source, Vec<ReadGuard>) {
    let hanging = source(folder, shard).await;
    let mut guards = Vec::new();
    for _ in 0..DbSettings::default().readers_max {
        guards.push(hanging.db.read().await.unwrap());
    }
    (hanging, guards)
}

/// Guard: `outboxes` asks all at once, and waits for none without bound.
#[tokio::test]
async fn outboxes_that_hang_delay_no_other() {
    let folder = folder();
    let ((first, _first), (second, _second)) = (hanging(&folder, 0).await, hanging(&folder, 1).await);
    let sources = vec![first, second, telling(&folder, 2).await];
    let signals = bound();
    let gauges = signals.0.clone().unwrap();
    gauges.backlog.get(SourceLabel::Shard0).set(7);
    let mut watch = Watch::of_outboxes(sources, Clock::system(), &signals, &WatchSettings::default());
    watch.patience = Duration::from_secs(1);
    timeout(PROMPT, watch.look()).await.unwrap().unwrap_err();
    let backlog = |label| gauges.backlog.get(label).get();
    assert_eq!((backlog(SourceLabel::Shard0), backlog(SourceLabel::Shard2)), (7, 1));
    drop(watch);
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Guard: `Watch::run` ends in the middle of a look.
#[tokio::test]
async fn a_look_that_hangs_keeps_nobody_from_stopping() {
    let folder = folder();
    let (hanging, _guards) = hanging(&folder, 0).await;
    let mut watch = Watch::of_outboxes(vec![hanging], Clock::system(), &bound(), &WatchSettings::default());
    watch.patience = Duration::from_secs(600);
    timeout(PROMPT, watch.run(tokio::time::sleep(Duration::from_millis(50)))).await.unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A bus of one topic with ten records, the first of which are not where they were put. One partition of it never answers.
struct Away;

const HANGING: u16 = 9;

#[async_trait]
impl Subscriber for Away {
    async fn partitions(&self, _topic: &str) -> Result<u16, BusError> {
        Ok(1)
    }

    async fn fetch(&self, _topic: &str, partition: u16, offset: u64, _max: usize) -> Result<Vec<Record>, BusError> {
        Err(BusError::SegmentMissing { partition, offset, file: "1.db".into() })
    }

    async fn end_offset(&self, topic: &str, partition: u16) -> Result<u64, BusError> {
        if partition == HANGING {
            std::future::pending::<()>().await;
        }
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

/// Guard: `ReadStore::known_status` asks about all partitions at once, and waits for none without bound.
#[tokio::test]
async fn a_partition_that_hangs_delays_no_other() {
    let folder = folder();
    let store = ReadStore::open(&folder.join("read.db"), Clock::system()).await.unwrap();
    script(
        store.db(),
        "INSERT INTO projection_checkpoint (consumer, topic, part, next_offset, event_at, at)
         VALUES ('a', 't', 9, 3, 0, 0), ('b', 't', 9, 3, 0, 0), ('c', 't', 0, 4, 0, 0);",
    )
    .await;
    let signals = bound();
    let gauges = signals.0.clone().unwrap();
    let mut watch = Watch::of_consumers(&store, Arc::new(Away), &signals, &WatchSettings::default());
    watch.patience = Duration::from_secs(1);
    timeout(PROMPT, watch.look()).await.unwrap().unwrap_err();
    assert_eq!(gauges.lag_records.get(ConsumerKind::Command).get(), 6);
    drop((watch, store));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Guard: `ReadStore::ask_until`. Of a store that does not answer nothing is known in time.
#[tokio::test]
async fn a_store_that_hangs_is_waited_for_no_longer() {
    let folder = folder();
    let store = ReadStore::open(&folder.join("read.db"), Clock::system()).await.unwrap();
    let signals = bound();
    let mut guards = Vec::new();
    for _ in 0..READERS_MAX {
        guards.push(store.db().read().await.unwrap());
    }
    let mut watch = Watch::of_consumers(&store, Arc::new(Away), &signals, &WatchSettings::default());
    watch.patience = Duration::from_secs(1);
    timeout(PROMPT, watch.look()).await.unwrap().unwrap_err();
    drop((watch, guards, store));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A bus with ten records that tells where it ends, and is too busy for more.
struct Busy;

#[async_trait]
impl Subscriber for Busy {
    async fn partitions(&self, _topic: &str) -> Result<u16, BusError> {
        Ok(1)
    }

    async fn fetch(&self, _topic: &str, _partition: u16, _offset: u64, _max: usize) -> Result<Vec<Record>, BusError> {
        Err(BusError::Log(DbError::Busy))
    }

    async fn end_offset(&self, _topic: &str, _partition: u16) -> Result<u64, BusError> {
        Ok(10)
    }

    fn arrivals(&self, _topic: &str, _partition: u16) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

/// Guard: what has no record before it has no age, and one that is not told for once is not as old as its consumer has stood.
#[tokio::test]
async fn a_busy_bus_makes_nobody_late() {
    let folder = folder();
    let store = ReadStore::open(&folder.join("read.db"), Clock::system()).await.unwrap();
    script(
        store.db(),
        "INSERT INTO projection_checkpoint (consumer, topic, part, next_offset, event_at, at) VALUES ('a', 't', 0, 10, 0, 0);",
    )
    .await;
    let signals = bound();
    let gauges = signals.0.clone().unwrap();
    let lags = || {
        let kind = ConsumerKind::Command;
        (gauges.lag_records.get(kind).get(), gauges.lag_seconds.get(kind).get())
    };
    let watch = Watch::of_consumers(&store, Arc::new(Busy), &signals, &WatchSettings::default());
    watch.look().await.unwrap();
    assert_eq!(lags(), (0, 0), "all is read");
    let all = store.status(&Busy).await.unwrap();
    assert_eq!((all[0].partitions[0].lag, all[0].partitions[0].lag_ms), (0, Some(0)));

    script(store.db(), "UPDATE projection_checkpoint SET next_offset = 4;").await;
    gauges.lag_seconds.get(ConsumerKind::Command).set(7);
    watch.look().await.unwrap_err();
    assert_eq!(lags(), (6, 7), "how old it is was not told, how many there are was");
    let all = store.status(&Busy).await.unwrap();
    assert_eq!((all[0].partitions[0].lag, all[0].partitions[0].lag_ms), (6, None));
    drop((watch, store));
    std::fs::remove_dir_all(&folder).unwrap();
}
