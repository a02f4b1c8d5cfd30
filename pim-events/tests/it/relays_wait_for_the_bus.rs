//! A bus that is slow or away costs a relay time and nothing else: no event, no lease, and no thousand attempts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pim_core::signal::{Span, SpanSink, Spans};
use pim_events::{
    Ack, BusError, DOMAIN_TOPIC, EmbeddedBus, NewRecord, Publisher, Relay, RelaySettings, Source, Subscriber as _,
};
use uuid::Uuid;

use super::rig::{Folder, Rig, Running, eventually, patient, relay_settings};

/// Guard: `RelaySettings::check`. A batch of none looks like an empty outbox, and the cursor would pass what was never sent.
#[tokio::test]
async fn settings_out_of_bounds_are_named() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let refused =
        |settings: RelaySettings| Relay::new(&rig.cluster, &rig.publisher(), &settings).unwrap_err().to_string();
    assert_eq!(
        refused(RelaySettings { batch_max: 0, ..RelaySettings::default() }),
        "relay setting batch_max must be between 1 and 10000, not 0"
    );
    for (key, settings) in [
        ("pause_max_ms", RelaySettings { pause_max_ms: 0, ..RelaySettings::default() }),
        ("lease_ms", RelaySettings { lease_ms: 0, ..RelaySettings::default() }),
        ("cursor_delay_ms", RelaySettings { cursor_delay_ms: u64::MAX, ..RelaySettings::default() }),
    ] {
        let told = refused(settings);
        assert!(told.starts_with(&format!("relay setting {key} must be between ")), "{told}");
    }
}

/// Takes its time for everything.
struct Slow {
    bus: EmbeddedBus,
    pause: Duration,
}

#[async_trait]
impl Publisher for Slow {
    async fn publish(&self, batch: Vec<NewRecord>) -> Result<Vec<Ack>, BusError> {
        let acks = self.bus.publish(batch).await?;
        tokio::time::sleep(self.pause).await;
        Ok(acks)
    }
}

/// Guard: `Task::publish` renews the lease. Two relays and a bus that takes longer than a lease lasts send the same for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_slower_than_a_lease_is_waited_for() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let other = Rig::open(folder.path()).await;
    for _ in 0..10 {
        rig.write(patient(), Uuid::new_v4(), &[1]).await;
    }
    let settings = RelaySettings { lease_ms: 5000, ..relay_settings() };
    let relay = |rig: &Rig| {
        let slow: Arc<dyn Publisher> = Arc::new(Slow { bus: rig.bus.clone(), pause: Duration::from_millis(6500) });
        Running::relay(Relay::new(Source::all(&rig.cluster), &slow, &settings).unwrap())
    };
    let relays = [relay(&rig), relay(&other)];
    eventually("all is sent", || async { backlog(&rig).await == 0 }).await;
    for relay in relays {
        relay.end().await;
    }
    let mut sent = 0;
    for partition in 0..rig.bus.partitions(DOMAIN_TOPIC).await.unwrap() {
        sent += rig.bus.end_offset(DOMAIN_TOPIC, partition).await.unwrap();
    }
    assert!((10..20).contains(&sent), "not all of it more than once: {sent}");
}

/// Is away, and counts who asks.
#[derive(Default)]
struct Away {
    asked: AtomicUsize,
    panics: bool,
}

#[async_trait]
impl Publisher for Away {
    async fn publish(&self, _batch: Vec<NewRecord>) -> Result<Vec<Ack>, BusError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics, "as a driver may");
        Err(BusError::Closed)
    }
}

/// Guard: the pause behind a failed tenure grows until a turn goes well (`Task::run`), though each tenure takes its lease anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_away_is_asked_less_and_less_often() {
    ask_less_and_less_often(Away::default()).await;
}

/// Guard: the same where it panics, which ends no relay and begins none anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_so_is_one_that_panics() {
    ask_less_and_less_often(Away { panics: true, ..Away::default() }).await;
}

/// Panics at whatever it is handed.
#[derive(Debug, Default)]
struct Clumsy(AtomicUsize);

impl SpanSink for Clumsy {
    fn keep(&self, _span: Span) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("as a program's own code may");
    }
}

/// Guard: `Task::run` begins its work anew behind a pause, whatever has panicked in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_of_spans_that_panics_makes_no_relay_spin() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let sink = Arc::new(Clumsy::default());
    let spans = Spans::to(sink.clone(), "relay");
    pauses_grow(&rig, rig.publisher(), spans, || sink.0.load(Ordering::SeqCst)).await;
}

/// Guard: `Task::publish` takes a panic for a failure, behind which the lease is given back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_panics_keeps_its_outboxes_from_no_other() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    rig.write(patient(), Uuid::new_v4(), &[1]).await;
    let away = Arc::new(Away { panics: true, ..Away::default() });
    let publisher: Arc<dyn Publisher> = away.clone();
    let settings = RelaySettings { lease_ms: 600_000, pause_max_ms: 100, ..relay_settings() };
    let relay = Running::relay(Relay::new(Source::all(&rig.cluster), &publisher, &settings).unwrap());
    eventually("it was asked", || async { away.asked.load(Ordering::SeqCst) > 0 }).await;
    let other = Running::relay(rig.relay());
    eventually("the other one sends it", || async { backlog(&rig).await == 0 }).await;
    ends(relay).await;
    ends(other).await;
}

async fn ask_less_and_less_often(away: Away) {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let away = Arc::new(away);
    pauses_grow(&rig, away.clone(), Spans::default(), || away.asked.load(Ordering::SeqCst)).await;
}

/// Whatever it is in a relay's turn that fails each time.
async fn pauses_grow(rig: &Rig, publisher: Arc<dyn Publisher>, spans: Spans, attempts: impl Fn() -> usize) {
    rig.write(patient(), Uuid::new_v4(), &[1]).await;
    let settings = RelaySettings { pause_max_ms: 60_000, spans, ..relay_settings() };
    let began = Instant::now();
    let relay = Running::relay(Relay::new(Source::all(&rig.cluster), &publisher, &settings).unwrap());
    eventually("ten attempts", || async { attempts() >= 10 }).await;
    // Nine pauses from 5 ms on, each twice the one before it and cut to no less than half. A slow machine only adds to that.
    let least = Duration::from_micros(2_500) * ((1 << 9) - 1);
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
    relay.end().await;
}

/// Says nothing of what it was given, the first few times.
struct Taciturn {
    bus: EmbeddedBus,
    asked: AtomicUsize,
}

#[async_trait]
impl Publisher for Taciturn {
    async fn publish(&self, batch: Vec<NewRecord>) -> Result<Vec<Ack>, BusError> {
        match self.asked.fetch_add(1, Ordering::SeqCst) {
            0..3 => Ok(Vec::new()),
            _ => self.bus.publish(batch).await,
        }
    }
}

/// Guard: `Task::publish` counts answers. What is not spoken of was not stored, and is not passed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_does_not_speak_of_is_sent_again() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    rig.write(patient(), Uuid::new_v4(), &[1, 2]).await;
    let taciturn: Arc<dyn Publisher> = Arc::new(Taciturn { bus: rig.bus.clone(), asked: AtomicUsize::new(0) });
    let relay = Running::relay(Relay::new(Source::all(&rig.cluster), &taciturn, &relay_settings()).unwrap());
    eventually("all is passed", || async { backlog(&rig).await == 0 }).await;
    relay.end().await;
    let mut sent = 0;
    for partition in 0..rig.bus.partitions(DOMAIN_TOPIC).await.unwrap() {
        sent += rig.bus.end_offset(DOMAIN_TOPIC, partition).await.unwrap();
    }
    assert_eq!(sent, 2);
}

/// Takes what it is given, and never says anything.
struct Silent {
    asked: AtomicUsize,
}

#[async_trait]
impl Publisher for Silent {
    async fn publish(&self, _batch: Vec<NewRecord>) -> Result<Vec<Ack>, BusError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        std::future::pending().await
    }
}

/// Ends it; the time is no promise, and only keeps a test from hanging.
async fn ends(relay: Running) {
    tokio::time::timeout(Duration::from_secs(30), relay.end()).await.expect("it ends");
}

/// Guard: `Task::publish` ends with the relay, and the lease is given back: nobody has to wait until it is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_silent_keeps_nobody_from_shutting_down() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    rig.write(patient(), Uuid::new_v4(), &[1]).await;
    let silent = Arc::new(Silent { asked: AtomicUsize::new(0) });
    let publisher: Arc<dyn Publisher> = silent.clone();
    let settings = RelaySettings { lease_ms: 600_000, ..relay_settings() };
    let relay = Running::relay(Relay::new(Source::all(&rig.cluster), &publisher, &settings).unwrap());
    eventually("it was asked", || async { silent.asked.load(Ordering::SeqCst) > 0 }).await;
    ends(relay).await;
    let next = Running::relay(rig.relay());
    eventually("the next one sends it", || async { backlog(&rig).await == 0 }).await;
    ends(next).await;
}

/// Guard: `Relay::serve` cuts short what does not end by itself, after it was told to end as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_an_outbox_that_is_silent() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let relay = Running::relay(rig.relay());
    rig.write(patient(), Uuid::new_v4(), &[1]).await;
    eventually("it is sent", || async { backlog(&rig).await == 0 }).await;
    let mut kept = Vec::new();
    for source in Source::all(&rig.cluster) {
        // Its cursor cannot be written while this is open.
        let mut tx = source.db.begin().await.unwrap();
        tx.script("UPDATE outbox_cursor SET epoch = epoch").await.unwrap();
        kept.push(tx);
    }
    ends(relay).await;
    drop(kept);
}

async fn backlog(rig: &Rig) -> u64 {
    let mut total = 0;
    for source in Source::all(&rig.cluster) {
        total += source.status(rig.cluster.clock().now()).await.unwrap().backlog;
    }
    total
}
