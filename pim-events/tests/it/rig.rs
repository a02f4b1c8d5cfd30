//! A cluster, a bus and a read store in a folder that goes away.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pim_core::clock::Clock;
use pim_core::context::{RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::id::Id;
use pim_core::identity::Actor;
use pim_core::shard::{HomeKey, ShardId, ShardMap};
#[cfg(feature = "postgres")]
use pim_data::backend::Engine;
use pim_data::backend::{Db, SqlPair, Statement};
#[cfg(feature = "postgres")]
use pim_data::cluster::CONTROL;
use pim_data::cluster::{Access, Cluster, ClusterSettings};
use pim_data::relocation::{MoveRecord, Mover};
use pim_data::schema::Schema;
use pim_events::{
    AppendExt as _, ApplyError, BusSettings, CommandRunner, ConsumerSettings, DomainEvent, EmbeddedBus, Event,
    EventsExt as _, Projection, ProjectionRunner, Publisher, ReadStore, ReadTable, ReadTx, Registry, Relay,
    RelaySettings, Source, Subscriber,
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

#[cfg(feature = "postgres")]
use super::ENGINE;

pim_core::id_kinds! {
    /// Whose facts.
    Patient = "patient",
}

pim_core::roles! {
    /// Who writes.
    pub enum Role {
        /// A person.
        Person = "person",
        /// A service.
        Service = "service",
    }
}

/// Something happened to a thing of a patient.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Happened {
    pub thing: Uuid,
    pub step: u64,
}

impl DomainEvent for Happened {
    const TYPE: &'static str = "thing.happened";
    const AGGREGATE: &'static str = "thing";
    fn aggregate_id(&self) -> Uuid {
        self.thing
    }
    fn aggregate_version(&self) -> u64 {
        self.step
    }
}

/// What a command made of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answered {
    pub answer: Uuid,
    pub cause: Uuid,
}

impl DomainEvent for Answered {
    const TYPE: &'static str = "answer.given";
    const AGGREGATE: &'static str = "answer";
    fn aggregate_id(&self) -> Uuid {
        self.answer
    }
    fn aggregate_version(&self) -> u64 {
        1
    }
}

/// A step that the journal refuses until it is mended.
pub const POISON: u64 = 666;
/// A step at which the journal panics until it is mended.
pub const BOMB: u64 = 667;

/// A folder below the target directory's temporary one.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("pim-events-{}", Uuid::new_v4().simple()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        #[cfg(feature = "postgres")]
        if ENGINE == Engine::Postgres {
            crate::server::forget(&self.0);
        }
        let _left_behind = std::fs::remove_dir_all(&self.0);
    }
}

pub fn registry() -> Registry {
    Registry::builder().event::<Happened>().event::<Answered>().build().unwrap()
}

/// Everything between a write and a read model.
pub struct Rig {
    pub cluster: Cluster,
    pub bus: EmbeddedBus,
    pub store: ReadStore,
    pub registry: Registry,
}

impl Rig {
    pub async fn open(folder: &Path) -> Self {
        Self::over(folder, settings(folder, 2).with_access(Access::Shared)).await
    }

    /// Over other databases than those of this level.
    pub async fn over(folder: &Path, settings: ClusterSettings) -> Self {
        let registry = registry();
        let schema = Schema::builder().events(&registry).build().unwrap();
        let cluster = Cluster::open(settings, schema).await.unwrap();
        let bus = EmbeddedBus::open(&folder.join("bus.db"), BusSettings::default(), Clock::system()).await.unwrap();
        let store = store(folder).await;
        Self { cluster, bus, store, registry }
    }

    pub fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(self.bus.clone())
    }

    pub fn subscriber(&self) -> Arc<dyn Subscriber> {
        Arc::new(self.bus.clone())
    }

    /// Commits one unit with these steps of one thing.
    pub async fn write(&self, home: HomeKey, thing: Uuid, steps: &[u64]) {
        let cx = context();
        let mut unit = self.cluster.begin(&cx, home);
        for step in steps {
            unit.append(&Happened { thing, step: *step }).unwrap();
        }
        unit.commit().await.unwrap();
    }

    pub fn relay(&self) -> Relay {
        Relay::new(Source::all(&self.cluster), &self.publisher(), &relay_settings()).unwrap()
    }

    pub async fn projections(&self, journal: &Journal) -> ProjectionRunner {
        let all: Vec<Arc<dyn Projection>> = vec![Arc::new(journal.clone())];
        let settings = ConsumerSettings { pause_max_ms: 20, ..ConsumerSettings::default() };
        ProjectionRunner::open(&self.store, self.subscriber(), &self.registry, all, &settings).await.unwrap()
    }

    /// What the journal has written, in order of writing.
    pub async fn journal(&self) -> Vec<(Uuid, u64, u64)> {
        let asked = Statement::same("SELECT home, n, step FROM journal ORDER BY pos");
        let rows = self.store.query(asked).await.unwrap();
        rows.iter().map(|row| (row.uuid(0).unwrap(), row.count(1).unwrap(), row.count(2).unwrap())).collect()
    }

    /// The n of one key, in the order in which the journal wrote them.
    pub async fn order_of(&self, home: HomeKey) -> Vec<u64> {
        let journal = self.journal().await;
        journal.into_iter().filter(|(key, ..)| *key == home.uuid()).map(|(_, n, _)| n).collect()
    }
}

/// A cluster of this level's engine.
pub fn settings(folder: &Path, shards: u16) -> ClusterSettings {
    let settings = ClusterSettings::at(folder).with_map(ShardMap::even(shards).unwrap());
    #[cfg(feature = "postgres")]
    if ENGINE == Engine::Postgres {
        return settings.with_servers(crate::server::provide(folder, shards));
    }
    settings
}

async fn store(folder: &Path) -> ReadStore {
    #[cfg(feature = "postgres")]
    if ENGINE == Engine::Postgres {
        crate::server::make(folder, "servers-read", ["read".to_owned()]);
        let secrets = Arc::new(crate::server::secrets(folder));
        let settings = pim_data::backend::ServerSettings::default();
        return ReadStore::connect("read-owner", secrets, settings, Clock::system()).await.unwrap();
    }
    ReadStore::open(&folder.join("read.db"), Clock::system()).await.unwrap()
}

/// A shard's database, for somebody who may do everything there.
pub async fn powerful(rig: &Rig, home: HomeKey) -> Db {
    powerful_of(rig, rig.cluster.router().route(&home).shard).await
}

/// As [`powerful`], by the number of a shard or of the control database.
pub async fn powerful_of(rig: &Rig, shard: ShardId) -> Db {
    #[cfg(feature = "postgres")]
    if ENGINE == Engine::Postgres {
        let folder = rig.cluster.data_dir();
        if shard != CONTROL {
            return crate::server::superuser(folder, shard.0).await;
        }
        let (secrets, settings) =
            (Arc::new(crate::server::secrets(folder)), pim_data::backend::ServerSettings::default());
        return Db::connect("control-super", secrets, settings).await.unwrap();
    }
    rig.cluster.database(shard).unwrap().clone()
}

/// Keeps what shards and control database are now. Nobody may have them open.
pub async fn snapshot(folder: &Path) {
    #[cfg(feature = "postgres")]
    if ENGINE == Engine::Postgres {
        for name in databases(folder) {
            on_server(folder, format!("CREATE DATABASE \"{name}_kept\" TEMPLATE \"{name}\" OWNER pim_test_owner"))
                .await;
        }
        return;
    }
    until_closed(folder).await;
    std::fs::create_dir_all(folder.join("kept")).unwrap();
    copy(folder, &folder.join("kept"));
}

/// Lets them be again what was kept; log and read models stay as they are.
pub async fn put_back(folder: &Path) {
    #[cfg(feature = "postgres")]
    if ENGINE == Engine::Postgres {
        for name in databases(folder) {
            on_server(folder, format!("DROP DATABASE \"{name}\" WITH (FORCE)")).await;
            on_server(folder, format!("ALTER DATABASE \"{name}_kept\" RENAME TO \"{name}\"")).await;
        }
        return;
    }
    until_closed(folder).await;
    copy(&folder.join("kept"), folder);
}

/// Connections close behind whoever drops them, and would write over what is put back.
async fn until_closed(folder: &Path) {
    let is_open = |fd: std::io::Result<std::fs::DirEntry>| {
        let file = fd.ok().and_then(|fd| std::fs::read_link(fd.path()).ok());
        file.is_some_and(|file| file.starts_with(folder) && file.to_string_lossy().contains(".db"))
    };
    eventually("every file is closed", || async { !std::fs::read_dir("/proc/self/fd").unwrap().any(is_open) }).await;
}

/// The files of shards and control database, and no index of a log that is not theirs.
fn copy(from: &Path, into: &Path) {
    std::fs::create_dir_all(into.join("shards")).unwrap();
    for name in ["control.db", "shards/shard-0.db", "shards/shard-1.db"] {
        for suffix in ["", "-wal", "-shm"] {
            let (source, target) = (from.join(format!("{name}{suffix}")), into.join(format!("{name}{suffix}")));
            let _absent = std::fs::remove_file(&target);
            if source.exists() {
                std::fs::copy(source, target).unwrap();
            }
        }
    }
}

#[cfg(feature = "postgres")]
fn databases(folder: &Path) -> Vec<String> {
    let prefix = folder.file_name().unwrap().to_string_lossy().replace('-', "_");
    ["shard-0", "shard-1", "control"].map(|name| format!("{prefix}_{name}")).to_vec()
}

#[cfg(feature = "postgres")]
async fn on_server(folder: &Path, text: String) {
    let settings = pim_data::backend::ServerSettings {
        transaction_max: Duration::from_secs(60),
        call_max: Duration::from_secs(60),
        ..pim_data::backend::ServerSettings::default()
    };
    let server = Db::connect("server-super", Arc::new(crate::server::secrets(folder)), settings).await.unwrap();
    server.query(Statement::of(SqlPair::generated(text))).await.unwrap();
}

pub fn relay_settings() -> RelaySettings {
    RelaySettings { pause_max_ms: 20, lease_ms: 150, ..RelaySettings::default() }
}

pub fn context() -> RequestContext {
    let actor = Actor::new("u-1".parse().unwrap(), Role::Person);
    RequestContext::new(RequestId::mint(), actor, Deadline::after(Duration::from_secs(20)))
}

pub fn patient() -> HomeKey {
    Id::<Patient>::random().into()
}

/// A read model that writes down every event in the order in which it gets them.
#[derive(Clone, Default)]
pub struct Journal {
    pub mended: Arc<AtomicBool>,
}

#[async_trait]
impl Projection for Journal {
    fn name(&self) -> &'static str {
        "journal"
    }

    fn schema(&self) -> SqlPair {
        SqlPair::of(
            "CREATE TABLE journal (pos bigint GENERATED BY DEFAULT AS IDENTITY, home uuid, n bigint, step bigint)",
            "CREATE TABLE journal (pos INTEGER PRIMARY KEY AUTOINCREMENT, home BLOB, n INTEGER, step INTEGER)",
        )
    }

    fn tables(&self) -> &'static [ReadTable] {
        &[ReadTable { name: "journal", columns: &["home", "n", "step"] }]
    }

    fn handles(&self, event_type: &str) -> bool {
        event_type == Happened::TYPE
    }

    async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError> {
        for event in batch {
            let happened = event.decode::<Happened>()?;
            if happened.step == POISON && !self.mended.load(Ordering::SeqCst) {
                return Err(ApplyError::Rejected { code: "poison" });
            }
            assert!(happened.step != BOMB || self.mended.load(Ordering::SeqCst), "a bomb");
            let write = Statement::same("INSERT INTO journal (home, n, step) VALUES (?, ?, ?)");
            tx.query(write.bind(event.home).bind(event.n).bind(happened.step)).await?;
        }
        Ok(())
    }
}

/// Something that runs until it is told to end.
pub struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    pub fn relay(relay: Relay) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(relay.run(async { drop(stopped.await) }));
        Self { stop, task }
    }

    pub fn projections(runner: ProjectionRunner) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(runner.run(async { drop(stopped.await) }));
        Self { stop, task }
    }

    pub fn commands(runner: CommandRunner) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(runner.run(async { drop(stopped.await) }));
        Self { stop, task }
    }

    /// Ends it in order.
    pub async fn end(self) {
        drop(self.stop);
        self.task.await.unwrap();
    }

    /// Ends it wherever it is.
    pub async fn crash(self) {
        self.task.abort();
        let _aborted = self.task.await;
    }
}

/// Carries a move out, again as often as a slow disk takes longer than its fence may last.
pub async fn carried_out(mover: &Mover, id: Uuid) -> MoveRecord {
    let give_up = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        match mover.run(&context(), id).await {
            Ok(done) => return done,
            Err(error) => {
                assert!(error.is_retryable() && tokio::time::Instant::now() < give_up, "{error:?}");
            }
        }
    }
}

/// Waits until `holds` answers true; fails after a minute, which a busy machine may need some of.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let give_up = tokio::time::Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(tokio::time::Instant::now() < give_up, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
