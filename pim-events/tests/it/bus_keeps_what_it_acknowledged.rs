//! What the embedded bus has acknowledged is there, in order, with dense offsets, also after a restart.

use std::sync::Arc;
use std::time::Duration;

use pim_core::clock::Clock;
use pim_events::{
    Ack, BusSettings, DOMAIN_TOPIC, EVENT_BYTES_MAX, EmbeddedBus, HEADER_BYTES_MAX, Headers, NewRecord, Publisher as _,
    Refusal, Subscriber as _, partition_of,
};
use uuid::Uuid;

use super::rig::Folder;

/// As few bytes as a bus may take.
const RECORD_MAX: usize = EVENT_BYTES_MAX + HEADER_BYTES_MAX;

async fn open(folder: &Folder, partitions: u16) -> EmbeddedBus {
    let settings = BusSettings { partitions, record_bytes_max: RECORD_MAX, ..BusSettings::default() };
    EmbeddedBus::open(&folder.path().join("bus.db"), settings, Clock::system()).await.unwrap()
}

fn record(key: Uuid, payload: impl Into<String>) -> NewRecord {
    NewRecord { topic: DOMAIN_TOPIC.into(), key, headers: Headers::default(), payload: payload.into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_publishers_get_dense_offsets_that_survive() {
    let folder = Folder::new();
    let bus = open(&folder, 2).await;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let bus = bus.clone();
        tasks.push(tokio::spawn(async move {
            let key = Uuid::new_v4();
            for n in 0..20 {
                let acks = bus.publish(vec![record(key, format!("{n}")), record(key, "x")]).await.unwrap();
                assert!(acks.iter().all(|ack| matches!(ack, Ack::Stored { .. })));
            }
            key
        }));
    }
    let mut keys = Vec::new();
    for task in tasks {
        keys.push(task.await.unwrap());
    }
    drop(bus);
    // Other settings do not move keys: the topic keeps its partitions.
    let bus = open(&folder, 7).await;
    assert_eq!(bus.partitions(DOMAIN_TOPIC).await.unwrap(), 2);
    let mut total = 0;
    for partition in 0..2 {
        let records = bus.fetch(DOMAIN_TOPIC, partition, 0, 10_000).await.unwrap();
        assert!(records.iter().enumerate().all(|(at, record)| record.offset == at as u64));
        assert_eq!(bus.end_offset(DOMAIN_TOPIC, partition).await.unwrap(), records.len() as u64);
        for key in keys.iter().filter(|key| partition_of(**key, 2) == partition) {
            let own = records.iter().filter(|record| record.key == *key && record.payload != "x");
            let order: Vec<u64> = own.map(|record| record.payload.parse().unwrap()).collect();
            assert_eq!(order, (0..20).collect::<Vec<_>>());
        }
        total += records.len();
    }
    assert_eq!(total, 320);
}

/// Guard: behind a refused record of a key nothing of that key is stored (`Inner::place`).
#[tokio::test]
async fn nothing_overtakes_a_refused_record_of_its_key() {
    let folder = Folder::new();
    let bus = open(&folder, 1).await;
    let (key, other) = (Uuid::new_v4(), Uuid::new_v4());
    let batch = vec![record(key, "1"), record(key, "x".repeat(RECORD_MAX + 1)), record(other, "1"), record(key, "3")];
    let acks = bus.publish(batch).await.unwrap();
    assert!(matches!(acks[0], Ack::Stored { offset: 0, .. }));
    assert_eq!(acks[1], Ack::Refused(Refusal::TooLarge));
    assert!(matches!(acks[2], Ack::Stored { offset: 1, .. }));
    assert_eq!(acks[3], Ack::Behind);
    let mut stray = record(key, "1");
    stray.topic = "nowhere".into();
    assert_eq!(bus.publish(vec![stray]).await.unwrap(), [Ack::Refused(Refusal::UnknownTopic)]);
}

/// Guard: headers have a bound of their own (`Inner::place`), however small their record is.
#[tokio::test]
async fn headers_that_are_too_long_are_refused() {
    let folder = Folder::new();
    let bus = open(&folder, 1).await;
    let with_headers = |bytes: usize| {
        let mut record = record(Uuid::new_v4(), "{}");
        record.headers.set("name", "x".repeat(bytes - "name".len()));
        record
    };
    let acks = bus.publish(vec![with_headers(HEADER_BYTES_MAX), with_headers(HEADER_BYTES_MAX + 1)]).await.unwrap();
    assert!(matches!(acks[0], Ack::Stored { .. }));
    assert_eq!(acks[1], Ack::Refused(Refusal::TooLarge));
}

/// Guard: a publisher whose leader was dropped tries again (`Inner::publish`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_publisher_takes_nobody_along() {
    let folder = Folder::new();
    let bus = Arc::new(open(&folder, 1).await);
    for round in 0..60_usize {
        let tasks: Vec<_> = (0..6)
            .map(|n| {
                let bus = Arc::clone(&bus);
                let batch = vec![record(Uuid::new_v4(), format!("{round}-{n}")); 64];
                tokio::spawn(async move { bus.publish(batch).await })
            })
            .collect();
        // The first writes alone; whoever comes second writes for all the others, and is dropped at some point of it.
        tokio::time::sleep(Duration::from_millis(round as u64 % 12)).await;
        let dropped: Vec<usize> = (0..6).filter(|n| n % 3 != round % 3).collect();
        for n in &dropped {
            tasks[*n].abort();
        }
        for (n, task) in tasks.into_iter().enumerate() {
            let ended = task.await;
            assert!(dropped.contains(&n) || matches!(ended, Ok(Ok(_))), "round {round} publisher {n}: {ended:?}");
        }
    }
}
