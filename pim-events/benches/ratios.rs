//! Rates of relay, projection and rebuild beside the bare work, and freshness; one JSON object a line.
//!
//! Sides of a ratio are measured in the same run, alternating, three rounds each; the middle one counts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pim_core::clock::Clock;
use pim_core::context::{RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::id::Id;
use pim_core::identity::Actor;
use pim_core::shard::{HomeKey, ShardMap};
use pim_data::backend::{Db, DbSettings, SqlPair, Statement, Value};
use pim_data::cluster::{Cluster, ClusterSettings};
use pim_data::schema::Schema;
use pim_events::{
    AppendExt as _, ApplyError, BusSettings, ConsumerSettings, DOMAIN_TOPIC, DomainEvent, EmbeddedBus, Event,
    EventsExt as _, NewRecord, Projection, ProjectionRunner, Publisher, ReadStore, ReadTable, ReadTx, Rebuild,
    Registry, Relay, RelaySettings, Source, Subscriber, Verdict,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pim_core::id_kinds! {
    /// Whose facts.
    Patient = "patient",
}
pim_core::roles! {
    /// Who writes.
    pub enum Role {
        /// A service.
        Service = "service",
    }
}

const EVENTS: usize = 25_600;
const UNIT: usize = 256;
const ROUNDS: usize = 3;

/// A fact of about 512 bytes.
#[derive(Clone, Serialize, Deserialize)]
struct Fact {
    thing: Uuid,
    step: u64,
    text: String,
}

impl DomainEvent for Fact {
    const TYPE: &'static str = "bench.fact";
    const AGGREGATE: &'static str = "thing";
    fn aggregate_id(&self) -> Uuid {
        self.thing
    }
    fn aggregate_version(&self) -> u64 {
        self.step
    }
}

/// A read model with one row an event.
struct Rows;

fn insert(rows: impl Iterator<Item = (Uuid, u64)>) -> Statement {
    let values: Vec<Value> = rows.flat_map(|(home, n)| [Value::from(home), Value::from(n)]).collect();
    let marks = vec!["(?, ?)"; values.len() / 2].join(", ");
    Statement::of(SqlPair::generated(format!("INSERT INTO bench_row (home, n) VALUES {marks}"))).bind_all(values)
}

#[async_trait]
impl Projection for Rows {
    fn name(&self) -> &'static str {
        "bench_row"
    }
    fn schema(&self) -> SqlPair {
        SqlPair::sqlite("CREATE TABLE bench_row (home BLOB, n INTEGER, PRIMARY KEY (home, n)) WITHOUT ROWID")
    }
    fn tables(&self) -> &'static [ReadTable] {
        &[ReadTable { name: "bench_row", columns: &["home", "n"] }]
    }
    fn handles(&self, _event_type: &str) -> bool {
        true
    }
    async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError> {
        tx.query(insert(batch.iter().map(|event| (event.home, event.n)))).await?;
        Ok(())
    }
}

struct Bench {
    folder: PathBuf,
    cluster: Cluster,
    registry: Registry,
    homes: Vec<HomeKey>,
}

impl Bench {
    async fn open() -> Self {
        let folder = std::env::temp_dir().join(format!("pim-bench-{}", Uuid::new_v4().simple()));
        let registry = Registry::builder().event::<Fact>().build().expect("a registry");
        let schema = Schema::builder().events(&registry).build().expect("a schema");
        let settings = ClusterSettings::at(&folder).with_map(ShardMap::even(1).expect("a map"));
        let cluster = Cluster::open(settings, schema).await.expect("a cluster");
        let homes = (0..64).map(|_| Id::<Patient>::random().into()).collect();
        Self { folder, cluster, registry, homes }
    }

    async fn write(&self, events: usize, per_unit: usize) {
        let text = "x".repeat(430);
        for at in (0..events).step_by(per_unit) {
            let home = self.homes[(at / per_unit) % self.homes.len()];
            let mut unit = self.cluster.begin(&context(), home);
            for step in 0..per_unit {
                let fact = Fact { thing: home.uuid(), step: step as u64, text: text.clone() };
                unit.append(&fact).expect("appended");
            }
            unit.commit().await.expect("committed");
        }
    }

    async fn bus(&self, name: &str) -> EmbeddedBus {
        EmbeddedBus::open(&self.folder.join(name), BusSettings::default(), Clock::system()).await.expect("a bus")
    }

    async fn store(&self, name: &str) -> ReadStore {
        ReadStore::open(&self.folder.join(name), Clock::system()).await.expect("a store")
    }

    async fn forget_cursors(&self) {
        for source in Source::all(&self.cluster) {
            let reset = Statement::sqlite("UPDATE outbox_cursor SET last_seq = 0");
            let (tx, _) = source.db.begin_with(&[reset]).await.expect("reset");
            tx.commit().await.expect("reset");
        }
    }
}

fn context() -> RequestContext {
    let actor = Actor::new("svc-bench".parse().expect("a subject"), Role::Service);
    RequestContext::new(RequestId::mint(), actor, Deadline::after(Duration::from_secs(60)))
}

async fn all(bus: &EmbeddedBus) -> Vec<NewRecord> {
    let mut records = Vec::new();
    for partition in 0..bus.partitions(DOMAIN_TOPIC).await.expect("partitions") {
        for record in bus.fetch(DOMAIN_TOPIC, partition, 0, EVENTS).await.expect("records") {
            let (topic, key, headers, payload) = (record.topic, record.key, record.headers, record.payload);
            records.push(NewRecord { topic, key, headers, payload });
        }
    }
    records
}

async fn count(bus: &EmbeddedBus) -> usize {
    let mut total = 0;
    for partition in 0..bus.partitions(DOMAIN_TOPIC).await.expect("partitions") {
        total += bus.end_offset(DOMAIN_TOPIC, partition).await.expect("an end");
    }
    usize::try_from(total).expect("a count")
}

fn rate(begun: Instant) -> f64 {
    EVENTS as f64 / begun.elapsed().as_secs_f64()
}

fn middle(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let middle = values[values.len() / 2];
    (middle, (values[values.len() - 1] - values[0]) / middle)
}

fn print(name: &str, ours: &mut [f64], peer: &mut [f64], goal: &str, holds: impl Fn(f64, f64) -> bool) {
    let ((ours, spread), (peer, _)) = (middle(ours), middle(peer));
    let ratio = ours / peer;
    println!(
        "{}",
        serde_json::json!({
            "name": name, "ours": ours.round(), "peer": peer.round(), "ratio": (ratio * 100.0).round() / 100.0,
            "spread": (spread * 100.0).round() / 100.0, "goal": goal, "holds": holds(ours, ratio),
        })
    );
}

async fn relay(bench: &Bench) {
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        bench.forget_cursors().await;
        let bus = bench.bus(&format!("relay-{round}.db")).await;
        let publisher: Arc<dyn Publisher> = Arc::new(bus.clone());
        let begun = Instant::now();
        let running = tokio::spawn(
            Relay::new(Source::all(&bench.cluster), &publisher, &RelaySettings::default())
                .expect("a relay")
                .run(std::future::pending()),
        );
        while count(&bus).await < EVENTS {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        ours.push(rate(begun));
        running.abort();
        let _aborted = running.await;
        release(bench).await;
        let records = all(&bus).await;
        let bare = bench.bus(&format!("bare-{round}.db")).await;
        let batches: Vec<Vec<NewRecord>> = records.chunks(500).map(<[_]>::to_vec).collect();
        let begun = Instant::now();
        for batch in batches {
            bare.publish(batch).await.expect("published");
        }
        peer.push(rate(begun));
    }
    print("relay events/s, against a bare producer", &mut ours, &mut peer, ">= 30000/s", |ours, _| ours >= 30_000.0);
}

/// An aborted relay keeps its lease until it runs out; a bench does not wait for that.
async fn release(bench: &Bench) {
    for source in Source::all(&bench.cluster) {
        let free = Statement::sqlite("UPDATE outbox_cursor SET owner = NULL, lease_until_ms = 0");
        let (tx, _) = source.db.begin_with(&[free]).await.expect("released");
        tx.commit().await.expect("released");
    }
}

async fn projection(bench: &Bench) {
    let bus = bench.bus("relay-0.db").await;
    let subscriber: Arc<dyn Subscriber> = Arc::new(bus.clone());
    let (mut ours, mut rebuilt, mut peer) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let store = bench.store(&format!("read-{round}.db")).await;
        let settings = ConsumerSettings::default();
        let rows: Arc<dyn Projection> = Arc::new(Rows);
        let runner = ProjectionRunner::open(
            &store,
            Arc::clone(&subscriber),
            &bench.registry,
            vec![Arc::clone(&rows)],
            &settings,
        );
        let runner = runner.await.expect("a runner");
        let begun = Instant::now();
        let running = tokio::spawn(runner.run(std::future::pending()));
        while applied(&store).await < EVENTS as u64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        ours.push(rate(begun));
        running.abort();
        let _aborted = running.await;

        let begun = Instant::now();
        let rebuild = Rebuild::new(&store, Arc::clone(&subscriber), &bench.registry, rows, Verdict::MustEqual);
        let report = rebuild.run(&bench.folder, |_, _| {}).await.expect("rebuilt");
        assert!(report.equal, "the rebuilt model differs");
        rebuilt.push(rate(begun));
        peer.push(by_hand(&bus, &bench.folder.join(format!("hand-{round}.db"))).await);
    }
    let goal = ">= 10000/s";
    print("projection events/s, against the same rows by hand", &mut ours, &mut peer, goal, |it, _| it >= 10_000.0);
    let goal = ">= 50000/s";
    print("rebuild events/s, against the same rows by hand", &mut rebuilt, &mut peer, goal, |it, _| it >= 50_000.0);
}

async fn applied(store: &ReadStore) -> u64 {
    let asked = Statement::sqlite("SELECT coalesce(sum(next_offset), 0) FROM projection_checkpoint");
    store.query(asked).await.expect("positions")[0].count(0).expect("a sum")
}

/// The same rows and a position, without heads: neither order nor duplicates are looked at.
async fn by_hand(bus: &EmbeddedBus, file: &Path) -> f64 {
    let db = Db::open(file, DbSettings::default()).await.expect("a database");
    let mut tx = db.begin().await.expect("a transaction");
    tx.script(&Rows.schema().text(pim_data::backend::Engine::Sqlite).expect("a script")).await.expect("a table");
    tx.script("CREATE TABLE position (part INTEGER PRIMARY KEY, next INTEGER)").await.expect("a table");
    tx.commit().await.expect("committed");
    let begun = Instant::now();
    for partition in 0..bus.partitions(DOMAIN_TOPIC).await.expect("partitions") {
        let mut next = 0;
        loop {
            let records = bus.fetch(DOMAIN_TOPIC, partition, next, 500).await.expect("records");
            let Some(last) = records.last() else { break };
            next = last.offset + 1;
            let n = |text: Option<&str>| text.and_then(|text| text.parse().ok()).unwrap_or(0);
            let rows = insert(records.iter().map(|record| (record.key, n(record.headers.get("pim-n")))));
            let move_on = Statement::sqlite("INSERT OR REPLACE INTO position VALUES (?, ?)").bind(partition).bind(next);
            let tx = db.begin().await.expect("a transaction");
            tx.commit_with(vec![rows, move_on]).await.expect("committed");
        }
    }
    rate(begun)
}

/// From commit to a row that a reader sees, at 2,000 events a second.
async fn freshness(bench: &Bench) {
    let bus = bench.bus("fresh.db").await;
    bench.forget_cursors().await;
    let store = bench.store("fresh-read.db").await;
    let publisher: Arc<dyn Publisher> = Arc::new(bus.clone());
    let sources = Source::all(&bench.cluster);
    let relay = tokio::spawn(
        Relay::new(sources, &publisher, &RelaySettings::default()).expect("a relay").run(std::future::pending()),
    );
    let all: Vec<Arc<dyn Projection>> = vec![Arc::new(Rows)];
    let runner =
        ProjectionRunner::open(&store, Arc::new(bus), &bench.registry, all, &ConsumerSettings::default()).await;
    let runner = tokio::spawn(runner.expect("a runner").run(std::future::pending()));
    while applied(&store).await < EVENTS as u64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut waits = Vec::new();
    let mut total = EVENTS as u64;
    let begun = Instant::now();
    for turn in 0..500_u32 {
        bench.write(4, 4).await;
        let committed = Instant::now();
        total += 4;
        // Every tenth commit is watched; the others only keep the pace.
        if turn % 10 == 0 {
            while applied(&store).await < total {
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
            waits.push(committed.elapsed().as_secs_f64() * 1000.0);
        }
        tokio::time::sleep_until((begun + Duration::from_millis(2) * (turn + 1)).into()).await;
    }
    let pace = 2000.0 / begun.elapsed().as_secs_f64();
    waits.sort_by(f64::total_cmp);
    let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize];
    println!(
        "{}",
        serde_json::json!({
            "name": "freshness ms, commit to read model, p50 (p99 as peer)", "ours": at(0.5), "peer": at(0.99),
            "ratio": (pace / 20.0).round() / 100.0, "spread": 0.0, "goal": "p50 <= 30, p99 <= 100",
            "holds": at(0.5) <= 30.0 && at(0.99) <= 100.0,
        })
    );
    relay.abort();
    runner.abort();
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let bench = Bench::open().await;
    bench.write(EVENTS, UNIT).await;
    relay(&bench).await;
    projection(&bench).await;
    freshness(&bench).await;
    let folder = bench.folder.clone();
    drop(bench);
    let _left = std::fs::remove_dir_all(folder);
}
