//! Outboxes forget what is on the bus and old, the log moves what everybody has read; nothing that anybody needs goes.

use std::sync::Arc;

use async_trait::async_trait;
use pim_core::clock::{Clock, Timestamp};
use pim_core::shard::HomeKey;
use pim_core::signal::SignalRegistry;
use pim_data::backend::{Db, DbSettings, Statement};
use pim_events::signals::EventSignals;
use pim_events::{
    Ack, BusError, DOMAIN_TOPIC, EmbeddedBus, NewRecord, Origin, Publisher, Rebuild, Refusal, Relay, Retention,
    RetentionSettings, Source, Subscriber as _, Verdict,
};
use uuid::Uuid;

use super::rig::{Folder, Journal, POISON, Rig, Running, eventually, patient, relay_settings};

/// Everything may go at once, in segments and transactions so small that each sweep needs many.
fn at_once() -> RetentionSettings {
    RetentionSettings {
        outbox_age_secs: 0,
        log_age_secs: 0,
        segment_records: 4,
        log_records_max: 4,
        batch_max: 3,
        ..RetentionSettings::default()
    }
}

async fn prune(rig: &Rig, settings: &RetentionSettings) -> u64 {
    Retention::of_outboxes(Source::all(&rig.cluster), Clock::system(), settings).unwrap().sweep().await.unwrap()
}

async fn cut(rig: &Rig, settings: &RetentionSettings) -> u64 {
    Retention::of_log(&rig.bus, &rig.store, settings).unwrap().sweep().await.unwrap()
}

async fn count(rig: &Rig, home: HomeKey) -> u64 {
    let db = rig.cluster.database(rig.cluster.router().route(&home).shard).unwrap();
    let asked = Statement::same("SELECT count(*) FROM outbox_event WHERE home_key = ?").bind(home.uuid());
    db.query(asked).await.unwrap()[0].count(0).unwrap()
}

async fn live(folder: &Folder) -> u64 {
    let db = Db::open(&folder.path().join("bus.db"), DbSettings::default()).await.unwrap();
    let rows = db.query(Statement::same("SELECT count(*) FROM bus_record")).await.unwrap();
    rows[0].count(0).unwrap()
}

async fn sent(rig: &Rig) -> bool {
    let now = Clock::system().now();
    for source in Source::all(&rig.cluster) {
        if source.status(now).await.unwrap().backlog > 0 {
            return false;
        }
    }
    true
}

/// Guard: `Source::prune` stops at the cursor, and at the age. Nothing is lost by sweeping while events are written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outbox_keeps_what_is_not_published_or_young() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    for step in 1..=10 {
        rig.write(home, Uuid::new_v4(), &[step]).await;
    }
    assert_eq!(prune(&rig, &at_once()).await, 0, "nothing is published");
    let relay = Running::relay(rig.relay());
    eventually("all of it is sent", || sent(&rig)).await;
    assert_eq!(prune(&rig, &RetentionSettings::default()).await, 0, "it is young");
    assert_eq!(prune(&rig, &at_once()).await, 10);
    assert_eq!(count(&rig, home).await, 0);
    // The key goes on where it was: its n and the outbox's seq are not used again.
    rig.write(home, Uuid::new_v4(), &[11]).await;
    let _runner = Running::projections(rig.projections(&Journal::default()).await);
    eventually("all eleven", || async { rig.order_of(home).await.len() == 11 }).await;
    assert_eq!(rig.order_of(home).await, (1..=11).collect::<Vec<_>>());
    relay.end().await;
}

async fn pruned_until(rig: &Rig, home: HomeKey) -> Option<Timestamp> {
    let shard = rig.cluster.router().route(&home).shard;
    let sources = Source::all(&rig.cluster);
    let source = sources.iter().find(|it| it.origin == Origin::Shard(shard)).unwrap();
    source.pruned_until().await.unwrap()
}

/// Guard: each page writes down the youngest that went, which a restore compares with the age of its log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outbox_knows_when_the_youngest_was_written_that_has_gone() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    let relay = Running::relay(rig.relay());
    for step in 1..=7 {
        rig.write(home, Uuid::new_v4(), &[step]).await;
    }
    eventually("all of it is sent", || sent(&rig)).await;
    assert_eq!(pruned_until(&rig, home).await, None);
    assert_eq!(prune(&rig, &RetentionSettings::default()).await, 0);
    assert_eq!(pruned_until(&rig, home).await, None, "nothing has gone");
    let db = rig.cluster.database(rig.cluster.router().route(&home).shard).unwrap();
    let rows = db.query(Statement::same("SELECT max(at) FROM outbox_event")).await.unwrap();
    let youngest = Some(rows[0].time(0).unwrap());
    assert_eq!(prune(&rig, &at_once()).await, 7);
    assert_eq!(pruned_until(&rig, home).await, youngest);
    assert_eq!(prune(&rig, &at_once()).await, 0);
    assert_eq!(pruned_until(&rig, home).await, youngest, "nothing more has gone");
    relay.end().await;
}

/// Guard: `Sweep::take`. What cannot be swept keeps nothing old in the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outbox_that_fails_keeps_nothing_old_in_another() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    let relay = Running::relay(rig.relay());
    rig.write(home, Uuid::new_v4(), &[1, 2, 3]).await;
    eventually("all of it is sent", || sent(&rig)).await;
    relay.end().await;
    let empty = Db::open(&folder.path().join("empty.db"), DbSettings::default()).await.unwrap();
    let broken = Source { db: empty, ..Source::all(&rig.cluster).remove(0) };
    let sources: Vec<Source> = [broken.clone(), broken].into_iter().chain(Source::all(&rig.cluster)).collect();
    let mut registry = SignalRegistry::new();
    let signals = EventSignals::bind(&mut registry).unwrap();
    let retention = Retention::of_outboxes(sources, Clock::system(), &at_once()).unwrap().with_signals(&signals);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let sweeping = tokio::spawn(retention.run(async { drop(stopped.await) }));
    eventually("it has gone", || async { count(&rig, home).await == 0 }).await;
    eventually("each is told", || async { registry.encode().contains("sweep_failures_total{from=\"outbox\"} 2") })
        .await;
    drop(stop);
    sweeping.await.unwrap();
}

/// The same of the log's partitions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_is_damaged_keeps_nothing_in_another() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let partitions = rig.bus.partitions(DOMAIN_TOPIC).await.unwrap();
    let of =
        |wanted| std::iter::repeat_with(patient).find(|it| pim_events::partition_of(it.uuid(), partitions) == wanted);
    let (damaged, whole) = (of(0).unwrap(), of(partitions - 1).unwrap());
    for home in [damaged, whole] {
        rig.write(home, Uuid::new_v4(), &[1, 2, 3, 4, 5]).await;
    }
    let relay = Running::relay(rig.relay());
    eventually("all of it is sent", || sent(&rig)).await;
    relay.end().await;
    let db = Db::open(&folder.path().join("bus.db"), DbSettings::default()).await.unwrap();
    let hole = Statement::sqlite("DELETE FROM bus_record WHERE id = (SELECT min(id) + 1 FROM bus_record)");
    db.begin().await.unwrap().commit_with(vec![hole]).await.unwrap();
    let retention = Retention::of_log(&rig.bus, &rig.store, &at_once()).unwrap();
    retention.sweep().await.unwrap_err();
    assert_eq!(live(&folder).await, 4 + 1, "a segment of the other has gone");
}

/// Refuses every record of one key.
struct Picky {
    bus: EmbeddedBus,
    refused: Uuid,
}

#[async_trait]
impl Publisher for Picky {
    async fn publish(&self, batch: Vec<NewRecord>) -> Result<Vec<Ack>, BusError> {
        let (refused, taken): (Vec<_>, Vec<_>) = batch.iter().cloned().partition(|record| record.key == self.refused);
        drop(refused);
        let mut acks = self.bus.publish(taken).await?.into_iter();
        let answer = |record: &NewRecord| {
            if record.key == self.refused { Some(Ack::Refused(Refusal::TooLarge)) } else { acks.next() }
        };
        Ok(batch.iter().filter_map(answer).collect())
    }
}

/// Guard: `Source::prune` leaves what the relay holds, though the cursor has passed it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outbox_keeps_what_is_held() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let (sick, well) = (patient(), patient());
    let picky: Arc<dyn Publisher> = Arc::new(Picky { bus: rig.bus.clone(), refused: sick.uuid() });
    let relay = Running::relay(Relay::new(Source::all(&rig.cluster), &picky, &relay_settings()).unwrap());
    for step in 1..=5 {
        rig.write(sick, Uuid::new_v4(), &[step]).await;
        rig.write(well, Uuid::new_v4(), &[step]).await;
    }
    eventually("sent or held", || sent(&rig)).await;
    assert_eq!(prune(&rig, &at_once()).await, 5);
    assert_eq!((count(&rig, sick).await, count(&rig, well).await), (5, 0));
    relay.end().await;
    // The bus takes them after all: all five are still there to be sent, in order.
    for source in Source::all(&rig.cluster) {
        source.retry_held(sick.uuid()).await.unwrap();
    }
    let _relay = Running::relay(rig.relay());
    let _runner = Running::projections(rig.projections(&Journal::default()).await);
    eventually("the held key is applied", || async { rig.order_of(sick).await == [1, 2, 3, 4, 5] }).await;
    eventually("it may go now", || async { prune(&rig, &at_once()).await > 0 || count(&rig, sick).await == 0 }).await;
}

/// Guard: `Inner::may_leave` waits for the slowest consumer, and for age or number; only whole segments leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_keeps_what_a_consumer_has_not_read() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    for step in 1..=10 {
        rig.write(home, Uuid::new_v4(), &[step]).await;
    }
    let relay = Running::relay(rig.relay());
    let runner = Running::projections(rig.projections(&Journal::default()).await);
    eventually("ten", || async { rig.order_of(home).await.len() == 10 }).await;
    runner.end().await;
    relay.end().await;
    // A second consumer that has read five records of the partition only.
    let partition = pim_events::partition_of(home.uuid(), rig.bus.partitions(DOMAIN_TOPIC).await.unwrap());
    let slow = Statement::same("INSERT INTO projection_checkpoint VALUES ('slow', ?, ?, 5, 0, 0)");
    let mut tx = rig.store.db().begin().await.unwrap();
    tx.query(slow.bind(DOMAIN_TOPIC).bind(partition)).await.unwrap();
    tx.commit().await.unwrap();
    let young = RetentionSettings { log_records_max: 100, log_age_secs: 3600, ..at_once() };
    assert_eq!(cut(&rig, &young).await, 0, "young, and few");
    assert_eq!(cut(&rig, &at_once()).await, 4, "one segment, whatever the first consumer has read");
    let many = RetentionSettings { log_age_secs: 3600, ..at_once() };
    let mut tx = rig.store.db().begin().await.unwrap();
    tx.query(Statement::same("DELETE FROM projection_checkpoint WHERE consumer = 'slow'")).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(cut(&rig, &many).await, 4, "young, but too many");
    assert_eq!(live(&folder).await, 2, "never a part of a segment");
    // Read as one, across both segments and the live file.
    let (mut at, mut steps) = (0, Vec::new());
    while steps.len() < 10 {
        let records = rig.bus.fetch(DOMAIN_TOPIC, partition, at, 3).await.unwrap();
        assert_eq!(records[0].offset, at);
        steps.extend(records.iter().map(|record| record.event().unwrap().n));
        at = records.last().unwrap().offset + 1;
    }
    assert_eq!(steps, (1..=10).collect::<Vec<_>>());
    assert_eq!(rig.bus.end_offset(DOMAIN_TOPIC, partition).await.unwrap(), 10);
}

/// Guard: `ReadStore::forget` takes the positions of a consumer that nobody runs any more, and not its heads: should it come back,
/// it applies what it held and nothing twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_consumer_holds_nothing_back() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let journal = Journal::default();
    let (home, sick) = (patient(), patient());
    rig.write(sick, Uuid::new_v4(), &[1, POISON, 3]).await;
    for step in 1..=10 {
        rig.write(home, Uuid::new_v4(), &[step]).await;
    }
    let relay = Running::relay(rig.relay());
    let runner = Running::projections(rig.projections(&journal).await);
    eventually("ten", || async { rig.order_of(home).await.len() == 10 }).await;
    eventually("parked", || async {
        rig.store.held_keys(None, 9).await.unwrap().first().is_some_and(|held| held.events == 2)
    })
    .await;
    runner.end().await;
    relay.end().await;
    let mut tx = rig.store.db().begin().await.unwrap();
    for partition in 0..rig.bus.partitions(DOMAIN_TOPIC).await.unwrap() {
        let retired = Statement::same("INSERT INTO projection_checkpoint VALUES ('retired', ?, ?, 0, 0, 0)");
        tx.query(retired.bind(DOMAIN_TOPIC).bind(partition)).await.unwrap();
    }
    tx.commit().await.unwrap();
    assert_eq!(cut(&rig, &at_once()).await, 0, "the other has read nothing");
    assert!(rig.store.forget("retired").await.unwrap());
    assert!(!rig.store.forget("retired").await.unwrap(), "it is not known any more");
    assert!(cut(&rig, &at_once()).await >= 8);

    assert!(rig.store.forget("journal").await.unwrap());
    assert!(rig.store.status(&rig.bus).await.unwrap().is_empty());
    assert!(rig.store.held_keys(None, 9).await.unwrap().is_empty());
    journal.mended.store(true, std::sync::atomic::Ordering::SeqCst);
    let runner = Running::projections(rig.projections(&journal).await);
    eventually("what was held", || async { rig.order_of(sick).await.len() >= 3 }).await;
    eventually("all is read", || async {
        let status = rig.store.status(&rig.bus).await.unwrap();
        status.iter().all(|it| it.partitions.len() == 4 && it.partitions.iter().all(|partition| partition.lag == 0))
    })
    .await;
    runner.end().await;
    assert_eq!(rig.order_of(sick).await, [1, 2, 3]);
    assert_eq!(rig.order_of(home).await, (1..=10).collect::<Vec<_>>());
}

/// Guard: `EmbeddedBus::fetch` goes on in the archive. A rebuild over a log that is cut under it equals the live model.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_reads_the_archive_also_while_it_grows() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let journal = Journal::default();
    let (home, sick) = (patient(), patient());
    let _relay = Running::relay(rig.relay());
    let _runner = Running::projections(rig.projections(&journal).await);
    rig.write(sick, Uuid::new_v4(), &[1, POISON, 3]).await;
    for step in 1..=60 {
        rig.write(home, Uuid::new_v4(), &[step]).await;
    }
    eventually("parked", || async {
        rig.store.held_keys(None, 10).await.unwrap().first().is_some_and(|k| k.events == 2)
    })
    .await;
    eventually("sixty", || async { rig.order_of(home).await.len() == 60 }).await;
    eventually("cut", || async { cut(&rig, &at_once()).await > 0 }).await;
    assert!(live(&folder).await < 40);
    let projection: Arc<Journal> = Arc::new(journal.clone());
    let rebuild = Rebuild::new(&rig.store, rig.subscriber(), &rig.registry, projection, Verdict::MustEqual);
    let growing = async {
        for step in 61..=100 {
            rig.write(home, Uuid::new_v4(), &[step]).await;
            cut(&rig, &at_once()).await;
        }
    };
    let (report, ()) = tokio::join!(rebuild.run(folder.path(), |_, _| {}), growing);
    let report = report.unwrap();
    assert_eq!((report.equal, report.state), (true, "live"));
    // The parked key has its events beside the model; no cut takes them.
    journal.mended.store(true, std::sync::atomic::Ordering::SeqCst);
    cut(&rig, &at_once()).await;
    rig.store.unpark("journal", sick.uuid()).await.unwrap();
    eventually("the parked key", || async { rig.order_of(sick).await == [1, 2, 3] }).await;
    eventually("all of it", || async { rig.order_of(home).await == (1..=100).collect::<Vec<_>>() }).await;
}

/// Guard: `Inner::seal` names a segment only when it is whole; what a crash left behind is completed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_that_dies_loses_nothing() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    let partition = pim_events::partition_of(home.uuid(), rig.bus.partitions(DOMAIN_TOPIC).await.unwrap());
    let relay = Running::relay(rig.relay());
    for step in 1..=41 {
        rig.write(home, Uuid::new_v4(), &[step]).await;
    }
    eventually("sent", || sent(&rig)).await;
    relay.end().await;
    let settings = RetentionSettings { segment_records: 10, log_records_max: 10, batch_max: 1, ..at_once() };
    for round in 0..40_u64 {
        let retention = Retention::of_log(&rig.bus, &rig.store, &settings).unwrap();
        let sweeping = tokio::spawn(async move { retention.sweep().await.map(drop) });
        tokio::time::sleep(std::time::Duration::from_micros(700 * round)).await;
        sweeping.abort();
        let _aborted = sweeping.await;
        let (mut at, mut steps) = (0, Vec::new());
        while at < 41 {
            let records = rig.bus.fetch(DOMAIN_TOPIC, partition, at, 7).await.unwrap();
            steps.extend(records.iter().map(|record| record.event().unwrap().n));
            at = records.last().unwrap().offset + 1;
        }
        assert_eq!(steps, (1..=41).collect::<Vec<_>>(), "round {round}");
    }
    cut(&rig, &settings).await;
    assert_eq!(live(&folder).await, 1);
}

/// Guard: `Inner::fill`. A file of an archive may be of a later life of its log than the copy that was put back: what is in it is
/// not what is moved now, and it is neither taken for it nor touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leftover_file_is_not_taken_for_the_segment() {
    let home = patient();
    let told = async |folder: &Folder, steps: &[u64]| {
        let rig = Rig::open(folder.path()).await;
        let relay = Running::relay(rig.relay());
        rig.write(home, Uuid::new_v4(), steps).await;
        eventually("sent", || sent(&rig)).await;
        relay.end().await;
        rig
    };
    let (lost, folder) = (Folder::new(), Folder::new());
    let rig = told(&lost, &[1, 2, 3, 4, 5]).await;
    assert_eq!(cut(&rig, &at_once()).await, 4);
    // The archive stays, the log is a copy of before.
    let (archive, leftover) = (folder.path().join("bus.archive"), lost.path().join("bus.archive"));
    std::fs::create_dir(&archive).unwrap();
    for file in std::fs::read_dir(leftover).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), archive.join(file.file_name())).unwrap();
    }
    let rig = told(&folder, &[10, 20, 30, 40, 50]).await;
    let partition = pim_events::partition_of(home.uuid(), rig.bus.partitions(DOMAIN_TOPIC).await.unwrap());
    let read = async || {
        let records = rig.bus.fetch(DOMAIN_TOPIC, partition, 0, 4).await.unwrap();
        records.into_iter().map(|record| (record.offset, record.payload)).collect::<Vec<_>>()
    };
    let before = read().await;
    assert_eq!(cut(&rig, &at_once()).await, 4);
    assert_eq!(read().await, before, "the archive has what the log had");
}

/// A segment that somebody moved away is named, and read again once it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_segment_is_named() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    let partition = pim_events::partition_of(home.uuid(), rig.bus.partitions(DOMAIN_TOPIC).await.unwrap());
    let _relay = Running::relay(rig.relay());
    rig.write(home, Uuid::new_v4(), &[1, 2, 3, 4, 5]).await;
    eventually("sent", || sent(&rig)).await;
    assert_eq!(cut(&rig, &at_once()).await, 4);
    let archive = folder.path().join("bus.archive");
    let away = folder.path().join("away");
    std::fs::rename(&archive, &away).unwrap();
    let Err(BusError::SegmentMissing { offset, .. }) = rig.bus.fetch(DOMAIN_TOPIC, partition, 1, 10).await else {
        panic!("the segment is away")
    };
    assert_eq!(offset, 1);
    // A consumer that needs it is shown all the same: where it stands is what somebody will ask.
    let late = Statement::same(
        "INSERT INTO projection_checkpoint (consumer, topic, part, next_offset, event_at, at) VALUES ('late', ?, ?, 0, 0, 0)",
    );
    let late = late.bind(DOMAIN_TOPIC).bind(partition);
    rig.store.db().begin().await.unwrap().commit_with(vec![late]).await.unwrap();
    let status = rig.store.status(&rig.bus).await.unwrap();
    assert_eq!((status[0].partitions[0].lag, status[0].partitions[0].lag_ms), (5, None));
    assert_eq!(
        rig.bus.fetch(DOMAIN_TOPIC, partition, 4, 10).await.unwrap().len(),
        1,
        "the live file answers all the same"
    );
    std::fs::rename(&away, &archive).unwrap();
    assert_eq!(rig.bus.fetch(DOMAIN_TOPIC, partition, 1, 10).await.unwrap().len(), 3);
}

#[tokio::test]
async fn settings_out_of_bounds_are_named() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let settings = RetentionSettings { segment_records: 0, ..RetentionSettings::default() };
    let refused = Retention::of_log(&rig.bus, &rig.store, &settings).unwrap_err();
    assert_eq!(refused.to_string(), "retention setting segment_records must be between 1 and 10000000, not 0");
}
