//! A read model rebuilt from the log equals the one that followed it live, and takes its place in one transaction.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use pim_core::signal::SignalRegistry;
use pim_data::backend::{Engine, SqlPair, Statement};
use pim_events::signals::EventSignals;
use pim_events::{
    ApplyError, ConsumerSettings, DOMAIN_TOPIC, DomainEvent as _, Event, NewRecord, Projection, ProjectionRunner,
    Publisher as _, ReadTable, ReadTx, Rebuild, RebuildError, RebuildState, RunnerError, StoreError, Subscriber as _,
    Verdict,
};
use uuid::Uuid;

use super::rig::{Folder, Happened, Journal, POISON, Rig, Running, eventually, patient};

/// Guard: `verify_and_copy` compares counts and hash at the same position, while writers go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_writers_go_on() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let journal = Journal::default();
    let relay = Running::relay(rig.relay());
    let runner = Running::projections(rig.projections(&journal).await);
    let home = patient();
    for step in 1..=100 {
        rig.write(home, Uuid::new_v4(), &[step]).await;
    }
    let rebuild = rebuild(&rig, Arc::new(journal.clone()), Verdict::MustEqual);
    let mut states = Vec::new();
    let writes = async {
        for step in 101..=200 {
            rig.write(home, Uuid::new_v4(), &[step]).await;
        }
    };
    let (report, ()) = tokio::join!(rebuild.run(folder.path(), |state, _| states.push(state)), writes);
    let report = report.unwrap();
    assert!(report.equal && report.state == "live", "{report:?}");
    assert_eq!((states.first(), states.last()), (Some(&RebuildState::Building), Some(&RebuildState::Live)));
    eventually("the live model goes on", || async { rig.journal().await.len() == 200 }).await;
    assert_eq!(rig.order_of(home).await, (1..=200).collect::<Vec<_>>());
    relay.end().await;
    runner.end().await;
}

/// Guard: `Ending` tells of a rebuild that is dropped, which is how one is cancelled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_dropped_is_none_that_runs() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let mut registry = SignalRegistry::new();
    let store = rig.store.clone().with_signals(&EventSignals::bind(&mut registry).unwrap());
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1, 2, 3]).await;
    let relay = Running::relay(rig.relay());
    let partition = pim_events::partition_of(home.uuid(), rig.bus.partitions(DOMAIN_TOPIC).await.unwrap());
    let end = || async { rig.bus.end_offset(DOMAIN_TOPIC, partition).await.unwrap() };
    eventually("three are on the bus", || async { end().await == 3 }).await;
    relay.end().await;
    let reached = tokio::sync::Notify::new();
    let journal = Arc::new(Journal::default());
    let rebuild = Rebuild::new(&store, rig.subscriber(), &rig.registry, journal, Verdict::MayDiffer);
    tokio::select! {
        ended = rebuild.run(folder.path(), |_, records| if records > 0 { reached.notify_one() }) => panic!("{ended:?}"),
        () = reached.notified() => {}
    }
    let told = registry.encode();
    assert!(told.contains("pim_events_rebuild_records{} 0\n"), "{told}");
    assert!(told.contains("failed\"} 1\n"), "{told}");
}

/// Guard: `Rebuild::target`. A live model that is behind the log is compared with what it has read, and goes on from there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_live_model_is_behind() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let journal = Journal::default();
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1, 2, 3]).await;
    let relay = Running::relay(rig.relay());
    let runner = Running::projections(rig.projections(&journal).await);
    eventually("three", || async { rig.journal().await.len() == 3 }).await;
    runner.end().await;
    rig.write(home, Uuid::new_v4(), &[4, 5]).await;
    let partition = pim_events::partition_of(home.uuid(), rig.bus.partitions(DOMAIN_TOPIC).await.unwrap());
    let on_the_bus = || async { rig.bus.end_offset(DOMAIN_TOPIC, partition).await.unwrap() == 5 };
    eventually("two more are on the bus", on_the_bus).await;
    let rebuild = rebuild(&rig, Arc::new(journal.clone()), Verdict::MustEqual);
    let report = rebuild.run(folder.path(), |_, _| {}).await.unwrap();
    assert_eq!((report.equal, report.state, report.records), (true, "live", 3));
    let runner = Running::projections(rig.projections(&journal).await);
    eventually("it goes on", || async { rig.order_of(home).await == [1, 2, 3, 4, 5] }).await;
    runner.end().await;
    relay.end().await;
}

/// Guard: a difference keeps the live model (`Verdict::MustEqual`); the hash sees a changed row, not only counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_difference_is_found() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let journal = Journal::default();
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1, 2, 3]).await;
    let relay = Running::relay(rig.relay());
    let runner = Running::projections(rig.projections(&journal).await);
    eventually("three", || async { rig.journal().await.len() == 3 }).await;
    runner.end().await;
    relay.end().await;
    let mut tx = rig.store.db().begin().await.unwrap();
    tx.query(Statement::same("UPDATE journal SET step = 7 WHERE n = 2")).await.unwrap();
    tx.commit().await.unwrap();
    let report =
        rebuild(&rig, Arc::new(journal.clone()), Verdict::MustEqual).run(folder.path(), |_, _| {}).await.unwrap();
    assert_eq!((report.equal, report.state), (false, "retired"));
    assert_eq!(rig.journal().await[1].2, 7, "the live model is as it was");
    let report = rebuild(&rig, Arc::new(journal), Verdict::MayDiffer).run(folder.path(), |_, _| {}).await.unwrap();
    assert_eq!((report.equal, report.state), (false, "live"));
    assert_eq!(rig.journal().await[1].2, 2);
}

/// A mended projection takes its parked events along: the rebuilt heads and holds replace the live ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holds_are_rebuilt_too() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let journal = Journal::default();
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1, POISON, 3]).await;
    let _relay = Running::relay(rig.relay());
    let _runner = Running::projections(rig.projections(&journal).await);
    eventually("parked", || async { rig.store.held_keys(None, 10).await.unwrap().len() == 1 }).await;
    eventually("absorbed", || async {
        rig.store.status(&rig.bus).await.unwrap()[0].partitions.iter().all(|partition| partition.lag == 0)
    })
    .await;
    journal.mended.store(true, Ordering::SeqCst);
    rebuild(&rig, Arc::new(journal), Verdict::MayDiffer).run(folder.path(), |_, _| {}).await.unwrap();
    assert_eq!(rig.order_of(home).await, [1, 2, 3]);
    assert!(rig.store.held_keys(None, 10).await.unwrap().is_empty());
    rig.write(home, Uuid::new_v4(), &[4]).await;
    eventually("it goes on", || async { rig.order_of(home).await == [1, 2, 3, 4] }).await;
}

/// Guard: `Rebuild::follow` and `Rebuild::copy`. A rebuild parks within a minute what was parked in months, which stops neither it
/// nor the model that takes its holds over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_more_parked_keys_than_a_minute_may_have() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let journal = Journal::default();
    let relay = Running::relay(rig.relay());
    let all: Vec<Arc<dyn Projection>> = vec![Arc::new(journal.clone())];
    let settings = ConsumerSettings { parked_per_minute_max: 1000, ..ConsumerSettings::default() };
    let opened = ProjectionRunner::open(&rig.store, rig.subscriber(), &rig.registry, all, &settings).await;
    let runner = Running::projections(opened.unwrap());
    for most in [50, 100, 150] {
        for _ in rig.store.held_keys(None, 200).await.unwrap().len()..most {
            rig.write(patient(), Uuid::new_v4(), &[POISON]).await;
        }
        eventually("all are parked", || async { rig.store.held_keys(None, 200).await.unwrap().len() == most }).await;
    }
    runner.end().await;
    let rebuild = rebuild(&rig, Arc::new(journal.clone()), Verdict::MustEqual);
    assert_eq!(rebuild.run(folder.path(), |_, _| {}).await.unwrap().state, "live");
    let runner = Running::projections(rig.projections(&journal).await);
    rig.write(patient(), Uuid::new_v4(), &[POISON]).await;
    eventually("one more", || async { rig.store.held_keys(None, 200).await.unwrap().len() == 151 }).await;
    assert!(rig.store.status(&rig.bus).await.unwrap().iter().all(|consumer| consumer.stopped.is_none()));
    runner.end().await;
    relay.end().await;
}

/// Guard: `Rebuild::follow`. A log that has more unreadable records than a consumer may put aside unless it is told otherwise is
/// rebuilt all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_more_unreadable_records_than_a_consumer_has_room_for() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let record = NewRecord {
        topic: DOMAIN_TOPIC.into(),
        key: Uuid::nil(),
        headers: pim_events::Headers::default(),
        payload: "{}".into(),
    };
    let many = rig.bus.publish(vec![record; 10_001]).await.unwrap().len();
    let journal: Arc<dyn Projection> = Arc::new(Journal::default());
    let _installed = rig.projections(&Journal::default()).await;
    // As if it had read them all, over the years.
    let partition = pim_events::partition_of(Uuid::nil(), rig.bus.partitions(DOMAIN_TOPIC).await.unwrap());
    let read = Statement::same(
        "INSERT INTO projection_checkpoint (consumer, topic, part, next_offset, event_at, at) VALUES (?, ?, ?, ?, 0, 0)",
    );
    let read = read.bind(journal.name()).bind(DOMAIN_TOPIC).bind(partition).bind(many as u64);
    rig.store.db().begin().await.unwrap().commit_with(vec![read]).await.unwrap();
    let report = rebuild(&rig, journal, Verdict::MustEqual).run(folder.path(), |_, _| {}).await.unwrap();
    assert_eq!((report.state, report.records), ("live", many as u64));
}

/// A read model with a name that is none in SQL, and more columns than are usual.
struct Wide;

const WIDE: &[&str] = &[
    "c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "c9", "c10", "c11", "c12", "c13", "c14", "c15", "c16", "c17",
    "c18", "c19", "c20", "c21", "c22", "c23", "c24", "c25", "c26", "c27", "c28", "c29", "c30", "c31", "c32", "c33",
    "c34", "c35", "c36", "c37", "c38", "c39",
];

#[async_trait]
impl Projection for Wide {
    fn name(&self) -> &'static str {
        "a-B"
    }
    fn schema(&self) -> SqlPair {
        let columns = WIDE.join(" bigint, ");
        SqlPair::generated(format!("CREATE TABLE wide ({columns} bigint)"))
    }
    fn tables(&self) -> &'static [ReadTable] {
        &[ReadTable { name: "wide", columns: WIDE }]
    }
    fn handles(&self, event_type: &str) -> bool {
        event_type == Happened::TYPE
    }
    async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError> {
        let (columns, values) = (WIDE.join(", "), vec!["x"; WIDE.len()].join(", "));
        for _ in batch {
            let text = format!(
                "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 1000)
                 INSERT INTO wide ({columns}) SELECT {values} FROM c"
            );
            tx.query(Statement::of(SqlPair::generated(text))).await?;
        }
        Ok(())
    }
}

/// Guards: `green::plain` and the bound of `copy_from_file`. What installs and runs is rebuilt, whatever its name and its width.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_its_name_and_its_width() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    rig.write(patient(), Uuid::new_v4(), &[1]).await;
    let _relay = Running::relay(rig.relay());
    let wide: Arc<dyn Projection> = Arc::new(Wide);
    let settings = ConsumerSettings { pause_max_ms: 20, ..ConsumerSettings::default() };
    let all = vec![Arc::clone(&wide)];
    let opened = ProjectionRunner::open(&rig.store, rig.subscriber(), &rig.registry, all, &settings).await;
    let _runner = Running::projections(opened.unwrap());
    let rows = async || {
        let rows = rig.store.query(Statement::same("SELECT count(*) FROM wide WHERE c39 > 0")).await.unwrap();
        rows[0].count(0).unwrap()
    };
    eventually("a thousand rows", || async { rows().await == 1000 }).await;
    let report = rebuild(&rig, wide, Verdict::MustEqual).run(folder.path(), |_, _| {}).await.unwrap();
    assert_eq!((report.state, report.rebuilt[0].rows, rows().await), ("live", 1000, 1000));
}

/// The journal, whose script has got an index.
struct Indexed(Journal);

#[async_trait]
impl Projection for Indexed {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn schema(&self) -> SqlPair {
        const INDEX: &str = "CREATE INDEX journal_by_step ON journal (step) WHERE n > 0";
        let text = |engine| format!("{}; {INDEX}", self.0.schema().text(engine).unwrap());
        SqlPair::joined(
            SqlPair::generated_postgres(text(Engine::Postgres)),
            SqlPair::generated_sqlite(text(Engine::Sqlite)),
        )
    }
    fn tables(&self) -> &'static [ReadTable] {
        self.0.tables()
    }
    fn handles(&self, event_type: &str) -> bool {
        self.0.handles(event_type)
    }
    async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError> {
        self.0.apply(tx, batch).await
    }
}

/// Guard: `indexes::add_missing`. A table that was made by the script of before gets its new indexes, and keeps those of others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_comes_without_a_new_version() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1, 2]).await;
    let relay = Running::relay(rig.relay());
    let runner = Running::projections(rig.projections(&Journal::default()).await);
    eventually("two", || async { rig.journal().await.len() == 2 }).await;
    let mut tx = rig.store.db().begin().await.unwrap();
    tx.script("CREATE INDEX by_hand ON journal (n)").await.unwrap();
    tx.commit().await.unwrap();
    let indexes = async || {
        let asked = Statement::of(SqlPair::of(
            "SELECT indexname::text FROM pg_indexes WHERE schemaname = current_schema() AND tablename = 'journal' ORDER BY 1",
            "SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'journal' ORDER BY 1",
        ));
        let rows = rig.store.query(asked).await.unwrap();
        rows.iter().map(|row| row.text(0).unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(indexes().await, ["by_hand"]);
    let again = async || {
        let indexed: Arc<dyn Projection> = Arc::new(Indexed(Journal::default()));
        let report = rebuild(&rig, indexed, Verdict::MustEqual).run(folder.path(), |_, _| {}).await.unwrap();
        assert_eq!((report.state, report.equal), ("live", true));
    };
    let script = async |text: &str| {
        let mut tx = rig.store.db().begin().await.unwrap();
        tx.script(text).await.unwrap();
        tx.commit().await.unwrap();
    };
    // Its name may be another table's.
    script("CREATE TABLE other (step BIGINT); CREATE INDEX Journal_By_Step ON other (step)").await;
    again().await;
    assert_eq!(indexes().await, ["by_hand"]);
    script("DROP TABLE other").await;
    // The second time there is nothing left to do.
    for _ in 0..2 {
        again().await;
        assert_eq!(indexes().await, ["by_hand", "journal_by_step"]);
    }
    rig.write(home, Uuid::new_v4(), &[3]).await;
    eventually("it goes on", || async { rig.order_of(home).await == [1, 2, 3] }).await;
    runner.end().await;
    relay.end().await;
}

struct Wider;

#[async_trait]
impl Projection for Wider {
    fn name(&self) -> &'static str {
        "journal"
    }
    fn version(&self) -> u32 {
        2
    }
    fn schema(&self) -> SqlPair {
        SqlPair::of(
            "CREATE TABLE journal (pos bigint GENERATED BY DEFAULT AS IDENTITY, home uuid, n bigint, step bigint,
                                   kind text NOT NULL)",
            "CREATE TABLE journal (pos INTEGER PRIMARY KEY, home BLOB, n INTEGER, step INTEGER, kind TEXT NOT NULL)",
        )
    }
    fn tables(&self) -> &'static [ReadTable] {
        &[ReadTable { name: "journal", columns: &["home", "n", "step", "kind"] }]
    }
    fn handles(&self, _event_type: &str) -> bool {
        true
    }
    async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError> {
        for event in batch {
            let write = Statement::same("INSERT INTO journal (home, n, step, kind) VALUES (?, ?, ?, ?)");
            let write = write.bind(event.home).bind(event.n).bind(event.aggregate_version);
            tx.query(write.bind(event.event_type.as_str())).await?;
        }
        Ok(())
    }
}

/// Guard: of two rebuilds at once the second is refused, before it empties what the first has filled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_one_waits_for_its_turn() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1, 2]).await;
    let _relay = Running::relay(rig.relay());
    let _runner = Running::projections(rig.projections(&Journal::default()).await);
    eventually("two", || async { rig.journal().await.len() == 2 }).await;
    let journal: Arc<dyn Projection> = Arc::new(Journal::default());
    let (mut refused, before) = (None, rig.journal().await);
    let runtime = tokio::runtime::Handle::current();
    let first = rebuild(&rig, Arc::clone(&journal), Verdict::MustEqual);
    let report = first.run(folder.path(), |state, _| {
        if state == RebuildState::Verifying {
            let second = rebuild(&rig, Arc::clone(&journal), Verdict::MustEqual);
            let run = second.run(folder.path(), |_, _| {});
            refused = Some(tokio::task::block_in_place(|| runtime.block_on(run)));
        }
    });
    assert_eq!(report.await.unwrap().state, "live");
    assert!(matches!(refused, Some(Err(RebuildError::Running { name: "journal" }))), "{refused:?}");
    assert_eq!(rig.journal().await, before);
    let third = rebuild(&rig, journal, Verdict::MustEqual).run(folder.path(), |_, _| {}).await;
    assert_eq!(third.unwrap().state, "live", "it is its turn");
}

/// Guard: a runner refuses a read model of another version; a rebuild brings it there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_version_is_built_from_the_log() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1, 2]).await;
    let _relay = Running::relay(rig.relay());
    let runner = Running::projections(rig.projections(&Journal::default()).await);
    eventually("two", || async { rig.journal().await.len() == 2 }).await;
    runner.end().await;
    let wider: Arc<dyn Projection> = Arc::new(Wider);
    let settings = ConsumerSettings::default();
    let opened =
        ProjectionRunner::open(&rig.store, rig.subscriber(), &rig.registry, vec![Arc::clone(&wider)], &settings).await;
    let outdated = RunnerError::Store(StoreError::Outdated { name: "journal", stored: 1, known: 2 });
    assert_eq!(opened.unwrap_err().to_string(), outdated.to_string());
    rebuild(&rig, Arc::clone(&wider), Verdict::MustEqual).run(folder.path(), |_, _| {}).await.unwrap();
    let opened = ProjectionRunner::open(&rig.store, rig.subscriber(), &rig.registry, vec![wider], &settings).await;
    let _runner = Running::projections(opened.unwrap());
    rig.write(home, Uuid::new_v4(), &[3]).await;
    eventually("it goes on", || async { rig.order_of(home).await == [1, 2, 3] }).await;
}

/// Guard: `Engine::enter` compares versions. A runner that was there before the swap writes nothing into the new tables, and
/// parks nothing because it does not know them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_of_the_old_version_stands_still() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1, 2]).await;
    let _relay = Running::relay(rig.relay());
    let old = Running::projections(rig.projections(&Journal::default()).await);
    eventually("two", || async { rig.journal().await.len() == 2 }).await;
    let wider: Arc<dyn Projection> = Arc::new(Wider);
    rebuild(&rig, Arc::clone(&wider), Verdict::MustEqual).run(folder.path(), |_, _| {}).await.unwrap();
    rig.write(home, Uuid::new_v4(), &[3, 4]).await;
    let partition = pim_events::partition_of(home.uuid(), rig.bus.partitions(DOMAIN_TOPIC).await.unwrap());
    let on_the_bus = || async { rig.bus.end_offset(DOMAIN_TOPIC, partition).await.unwrap() == 4 };
    eventually("two more are on the bus", on_the_bus).await;
    // Many times the longest pause of the old runner.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(rig.order_of(home).await, [1, 2]);
    assert!(rig.store.held_keys(None, 10).await.unwrap().is_empty());
    let settings = ConsumerSettings::default();
    let opened = ProjectionRunner::open(&rig.store, rig.subscriber(), &rig.registry, vec![wider], &settings).await;
    let new = Running::projections(opened.unwrap());
    eventually("the new version goes on", || async { rig.order_of(home).await == [1, 2, 3, 4] }).await;
    let unkind = Statement::same("SELECT count(*) FROM journal WHERE kind <> 'thing.happened'");
    assert_eq!(rig.store.query(unkind).await.unwrap()[0].count(0).unwrap(), 0);
    new.end().await;
    old.end().await;
}

fn rebuild(rig: &Rig, projection: Arc<dyn Projection>, verdict: Verdict) -> Rebuild {
    Rebuild::new(&rig.store, rig.subscriber(), &rig.registry, projection, verdict)
}
