//! A row of the outbox that is no event holds its key, and nobody else's.

use pim_core::context::TraceContext;
use pim_core::shard::HomeKey;
use pim_data::backend::{SqlPair, Statement};
use pim_events::{DOMAIN_TOPIC, Source, Subscriber as _, partition_of};
use uuid::Uuid;

use super::relay_repeats_harmlessly::{held, on_the_bus};
use super::rig::{Folder, Rig, Running, eventually, patient, powerful};

/// Writes an event as somebody would type it.
async fn typed(rig: &Rig, home: HomeKey, n: u64, traceparent: &str) {
    let insert = Statement::same(
        "INSERT INTO outbox_event (bucket, lane, owner_epoch, home_key, n, event_id, topic, event_type, schema_version,
           aggregate, aggregate_id, aggregate_version, correlation, traceparent, actor, role, at, payload)
         VALUES (?, ?, 1, ?, ?, ?, 'domain.v1', 'thing.happened', 1, 'thing', ?, 1, ?, ?, 'u-1', 'person', ?, '{}')",
    );
    let insert = insert.bind(home.bucket().get()).bind(home.bucket().lane().get()).bind(home.uuid()).bind(n);
    let insert = insert.bind(Uuid::now_v7()).bind(home.uuid()).bind(Uuid::new_v4()).bind(traceparent);
    let insert = insert.bind(rig.cluster.clock().now());
    powerful(rig, home).await.begin().await.unwrap().commit_with(vec![insert]).await.unwrap();
}

/// What an operator sees of the held rows: their codes in order, and whether one of them is marked.
async fn codes(rig: &Rig, home: HomeKey) -> (Vec<String>, bool) {
    let asked =
        Statement::same("SELECT code, retry FROM outbox_held WHERE home_key = ? ORDER BY seq").bind(home.uuid());
    let rows = powerful(rig, home).await.query(asked).await.unwrap();
    let codes = rows.iter().map(|row| row.text(0).unwrap().to_owned()).collect();
    (codes, rows.iter().any(|row| row.count(1).unwrap() > 0))
}

async fn retry(rig: &Rig, home: HomeKey) {
    for source in Source::all(&rig.cluster) {
        source.retry_held(home.uuid()).await.unwrap();
    }
}

/// Guard: `Entry` tells key and place of a row also when it is no event (`Task::send`, `Task::retry`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_what_is_mended_is_sent_in_order() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let sick = patient();
    let shard_of = |home: &HomeKey| rig.cluster.router().route(home).shard;
    let well = std::iter::repeat_with(patient).find(|home| shard_of(home) == shard_of(&sick)).unwrap();
    let trace = TraceContext::root().to_string();
    typed(&rig, sick, 1, "").await;
    typed(&rig, sick, 2, &trace).await;
    rig.write(well, Uuid::new_v4(), &[1]).await;
    let _relay = Running::relay(rig.relay());
    eventually("the other key goes on", || async { on_the_bus(&rig).await == 1 }).await;
    eventually("its own is held", || async { held(&rig).await == 2 }).await;
    assert_eq!(codes(&rig, sick).await, (vec!["unreadable".to_owned(), "behind".to_owned()], false));

    retry(&rig, sick).await;
    eventually("looked at again", || async { !codes(&rig, sick).await.1 }).await;
    assert_eq!((held(&rig).await, on_the_bus(&rig).await), (2, 1), "nothing overtakes it");

    let let_change = SqlPair::of(
        "ALTER TABLE outbox_event DISABLE TRIGGER outbox_event_is_immutable",
        "DROP TRIGGER outbox_event_is_immutable",
    );
    let db = powerful(&rig, sick).await;
    let mut tx = db.begin().await.unwrap();
    tx.script(&let_change.text(db.engine()).unwrap()).await.unwrap();
    tx.query(Statement::same("UPDATE outbox_event SET traceparent = ? WHERE traceparent = ''").bind(trace))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    retry(&rig, sick).await;
    eventually("both are sent", || async { held(&rig).await == 0 && on_the_bus(&rig).await == 3 }).await;
    let partition = partition_of(sick.uuid(), rig.bus.partitions(DOMAIN_TOPIC).await.unwrap());
    let records = rig.bus.fetch(DOMAIN_TOPIC, partition, 0, 9).await.unwrap();
    let events = records.iter().map(|record| record.event().unwrap()).filter(|event| event.home == sick.uuid());
    assert_eq!(events.map(|event| event.n).collect::<Vec<_>>(), [1, 2]);
}
