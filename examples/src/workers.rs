//! The workers behind the commit: the outbox processor moves events to the bus, the projection worker folds them.

mod moves;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::FromRef;
use http::Uri;
use pim_core::clock::Clock;
use pim_core::identity::Actor;
use pim_core::role::RoleCode;
use pim_core::shard::ShardMap;
use pim_data::cluster::{Access, Cluster, ClusterSettings};
use pim_events::signals::{Watch, WatchSettings};
use pim_events::{
    BusSettings, CommandHandler, CommandRunner, CommandSettings, ConsumerSettings, DOMAIN_TOPIC, EmbeddedBus,
    ProjectionRunner, Publisher, ReadStore, Registry, Relay, RelaySettings, Retention, RetentionSettings, Subscriber,
    Tail,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::billing::DraftClaim;
use crate::chaos::{self, StruckPublisher, StruckSubscriber};
use crate::client::Client;
use crate::jobs::{Upkeep, UpkeepSettings};
use crate::journey::Programs;
use crate::policy::LabRole;
use crate::reference::ReferenceBook;
use crate::rig::{
    Checked, Drain, HttpKeys, Parts, PostgresSettings, ServeSettings, ServerPlaces, Service, SettingsError, bind,
    sessions,
};
use crate::runs::Summaries;
use crate::signals::{self, Hub};
use crate::{jobs, projections, schema};

/// Longest signing at the end of a program.
const SIGN_OFF_MAX: Duration = Duration::from_secs(5);

/// The stores that workers share.
#[derive(Clone, Debug)]
pub struct Stores {
    /// Shards and control database.
    pub cluster: Cluster,
    /// The durable log.
    pub bus: EmbeddedBus,
    /// The read models.
    pub reads: ReadStore,
    /// Facilities and providers as they are known here.
    pub reference: ReferenceBook,
    /// Every event type.
    pub registry: Registry,
    /// What this process tells of itself.
    pub hub: Hub,
    /// How other programs are asked.
    pub client: Client,
    /// Programs that keep spans of their own beside this one; none when every part is in one process.
    pub programs: Programs,
    /// The run's summary is computed by one at a time.
    pub summaries: Summaries,
}

/// Where stores are.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The folder of maps, keys and the bus, and of rows when they are kept in files.
    pub data_dir: &'a Path,
    /// How many shards a new data directory of files gets; none opens an existing one as it is.
    pub shards: Option<u16>,
    /// The servers, if rows are kept on some.
    pub postgres: &'a PostgresSettings,
}

impl FromRef<Stores> for Cluster {
    fn from_ref(stores: &Stores) -> Self {
        stores.cluster.clone()
    }
}

impl FromRef<Stores> for ReadStore {
    fn from_ref(stores: &Stores) -> Self {
        stores.reads.clone()
    }
}

impl FromRef<Stores> for ReferenceBook {
    fn from_ref(stores: &Stores) -> Self {
        stores.reference.clone()
    }
}

impl Stores {
    /// Opens everything in a data directory, making it when it is not there.
    ///
    /// # Errors
    /// When a store cannot be opened; the error names it and what to do.
    pub async fn open(
        data_dir: &Path,
        shards: Option<u16>,
        access: Access,
        clock: Clock,
        hub: &Hub,
    ) -> anyhow::Result<Self> {
        let place = Place { data_dir, shards, postgres: &PostgresSettings::default() };
        Self::open_at(place, access, clock, hub).await
    }

    /// As [`Stores::open`]; rows and read models are on servers where the place names some. The bus stays in the data
    /// directory.
    ///
    /// # Errors
    /// When a store cannot be opened; the error names it and what to do.
    pub async fn open_at(place: Place<'_>, access: Access, clock: Clock, hub: &Hub) -> anyhow::Result<Self> {
        let Place { data_dir, shards, postgres } = place;
        let servers = postgres.places()?;
        let registry = schema::registry()?;
        let schema = schema::schema(&registry)?;
        let mut settings = ClusterSettings::at(data_dir).with_access(access);
        settings.clock = clock.clone();
        settings.signals = hub.data();
        settings.map = match &servers {
            Some(servers) => Some(servers.map.clone()),
            None => shards.map(ShardMap::even).transpose()?,
        };
        settings.servers = servers.as_ref().map(|it| it.servers.clone());
        let cluster = Cluster::open(settings, schema).await?;
        let bus = EmbeddedBus::open(&data_dir.join("bus.db"), BusSettings::default(), clock.clone()).await;
        let bus = bus.context("cannot open the bus")?;
        let reads = match servers {
            Some(ServerPlaces { servers, read_store, .. }) => {
                ReadStore::connect(&read_store, servers.secrets, servers.settings, clock).await
            }
            None => ReadStore::open(&data_dir.join("read.db"), clock).await,
        };
        let reads = reads?.with_signals(&hub.events());
        // Every program that asks the read models finds their tables, whichever started first.
        for projection in projections::all() {
            reads.install(projection.as_ref()).await?;
        }
        let reference = ReferenceBook::over(cluster.clone());
        let (hub, client, programs) = (hub.clone(), Client::new(), Programs::none());
        let summaries = Summaries::default();
        Ok(Self { cluster, bus, reads, reference, registry, hub, client, programs, summaries })
    }

    /// Lets the reference book follow the events of this log until told to stop. To be opened before anybody looks into it.
    ///
    /// # Errors
    /// When the bus does not answer.
    pub async fn reference_followed(&self, stop: Drain) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
        let bus: Arc<dyn Subscriber> = Arc::new(self.bus.clone());
        let tail = Tail::open(bus, DOMAIN_TOPIC).await.context("cannot follow the bus")?;
        let book = self.reference.clone();
        Ok(async move { book.follow(tail, stop.begun()).await })
    }

    /// Moves events from every outbox to the bus until told to stop.
    ///
    /// # Errors
    /// When a setting of relay or retention is out of its bounds.
    pub async fn relay(self, pause_max_ms: u64, retention: &RetentionSettings, stop: Drain) -> anyhow::Result<()> {
        let bus: Arc<dyn Publisher> = Arc::new(self.bus);
        let bus: Arc<dyn Publisher> = Arc::new(StruckPublisher::before(bus, self.hub.clone()));
        let spans = self.hub.traces().spans(Worker::OutboxProcessor.name());
        let settings = RelaySettings { pause_max_ms, spans, ..RelaySettings::default() };
        let sweeping = Retention::of_outboxes(&self.cluster, self.cluster.clock().clone(), retention)?;
        let (signals, clock) = (self.hub.events(), self.cluster.clock().clone());
        let watch = Watch::of_outboxes(&self.cluster, clock, &signals, &WatchSettings::default());
        let relay = Relay::new(&self.cluster, &bus, &settings)?.with_signals(&signals);
        let sweeping = sweeping.with_signals(&signals);
        // Where the relay is, because a move waits for it.
        let moves = moves::tend(self.cluster.clone(), stop.clone());
        tokio::join!(relay.run(stop.begun()), sweeping.run(stop.begun()), watch.run(stop.begun()), moves);
        Ok(())
    }

    /// Goes on with moves of buckets whose mover is gone, until told to stop; nothing in a program that may not move any.
    pub fn moves_tended(&self, stop: Drain) -> impl Future<Output = ()> + Send + 'static {
        moves::tend(self.cluster.clone(), stop)
    }

    /// What is done again and again over these stores; its chores are entered here, so that nothing is written later that
    /// nobody asked for.
    ///
    /// # Errors
    /// When a setting is out of its bounds, or the control database does not answer.
    pub async fn upkeep(&self, settings: &UpkeepSettings) -> anyhow::Result<Upkeep> {
        let upkeep = Upkeep::new(self.cluster.clone(), settings, self.hub.chores())?;
        upkeep.enter().await.context("cannot enter the chores")?;
        Ok(upkeep)
    }

    /// Folds events into read models, runs event-driven commands, billing cycles and chores until told to stop.
    ///
    /// # Errors
    /// When a read model is of another version than the program's, or a retention setting out of its bounds.
    pub async fn consume(
        self,
        pause_max_ms: u64,
        retention: &RetentionSettings,
        upkeep: Upkeep,
        stop: Drain,
    ) -> anyhow::Result<()> {
        let sweeping = Retention::of_log(&self.bus, &self.reads, retention)?;
        let bus: Arc<dyn Subscriber> = Arc::new(self.bus);
        let watched = Arc::clone(&bus);
        let bus: Arc<dyn Subscriber> = Arc::new(StruckSubscriber::before(bus, self.hub.clone()));
        // Small batches: every partition of every consumer holds one, and the newcomer's memory counts.
        let spans = self.hub.traces().spans(Worker::ProjectionWorker.name());
        let consumer = ConsumerSettings { pause_max_ms, batch_max: 100, spans, ..ConsumerSettings::default() };
        let all = projections::all();
        let models = ProjectionRunner::open(&self.reads, Arc::clone(&bus), &self.registry, all, &consumer).await?;
        let settings = CommandSettings { consumer, ..CommandSettings::of(service_actor("projection-worker")?) };
        let commands =
            CommandRunner::open(&self.cluster, &self.reads, bus, &self.registry, commands(), &settings).await?;
        let watch = Watch::of_consumers(&self.reads, watched, &self.hub.events(), &WatchSettings::default());
        let jobs = jobs::run(self.cluster.clone(), stop.clone());
        tokio::join!(
            models.run(stop.begun()),
            commands.run(stop.begun()),
            jobs,
            upkeep.run(stop.begun()),
            sweeping.run(stop.begun()),
            watch.run(stop.begun())
        );
        sign_off(&self.cluster).await;
        Ok(())
    }
}

/// Signs once more where every audit chain stands, for nobody may do so until the next start.
async fn sign_off(cluster: &Cluster) {
    let signed = tokio::time::timeout(SIGN_OFF_MAX, cluster.checkpoint_audit()).await;
    if !matches!(signed, Ok(Ok(_))) {
        pim_core::warn!("audit.not_signed_off");
    }
}

/// Every command that events drive.
#[must_use]
pub fn commands() -> Vec<Arc<dyn CommandHandler>> {
    vec![Arc::new(DraftClaim)]
}

/// One of our own programs as an actor.
///
/// # Errors
/// When the name is no subject.
pub fn service_actor(name: &str) -> anyhow::Result<Actor> {
    Ok(Actor::new(name.parse()?, RoleCode::of(LabRole::Service)))
}

/// Settings of a worker program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerSettings {
    /// Where health and metrics are served.
    pub listen: SocketAddr,
    /// The data directory, shared with the other programs.
    pub data_dir: PathBuf,
    /// How many shards a new data directory gets; an existing one must have as many.
    pub shards: u16,
    /// The servers that rows are kept on instead of files.
    pub postgres: PostgresSettings,
    /// Where the broker publishes its keys.
    pub jwks_url: String,
    /// Longest pause between two looks for work, in milliseconds.
    pub pause_max_ms: u64,
    /// How long work in hand may take once the program is told to stop, in milliseconds.
    pub drain_timeout_ms: u64,
    /// What outboxes and log keep; the outbox processor sweeps the former, the projection worker the latter.
    pub retention: RetentionSettings,
    /// How often the projection worker does its chores.
    pub upkeep: UpkeepSettings,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_dir: PathBuf::from("target/pim-data"),
            shards: 4,
            postgres: PostgresSettings::default(),
            jwks_url: "http://127.0.0.1:8081/jwks.json".to_owned(),
            pause_max_ms: 100,
            drain_timeout_ms: 10_000,
            retention: RetentionSettings::default(),
            upkeep: UpkeepSettings::default(),
        }
    }
}

impl Checked for WorkerSettings {
    fn check(&self) -> Result<(), SettingsError> {
        let refused = |key: &str, error: &dyn std::error::Error| SettingsError::Value {
            key: key.to_owned(),
            origin: "the settings".to_owned(),
            rule: error.to_string(),
        };
        // Consumers pause within the same bounds.
        let relay = RelaySettings { pause_max_ms: self.pause_max_ms, ..RelaySettings::default() };
        relay.check().map_err(|error| refused(error.key, &error))?;
        self.retention.check().map_err(|error| refused(&format!("retention.{}", error.key), &error))?;
        self.upkeep.check().map_err(|error| refused(&format!("upkeep.{}", error.key), &error))?;
        self.jwks_url.parse::<Uri>().map_err(|error| refused("jwks_url", &error))?;
        if self.postgres.places()?.is_none() {
            ShardMap::even(self.shards).map_err(|error| refused("shards", &error))?;
        }
        Ok(())
    }
}

/// Which worker a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worker {
    /// Outboxes to bus.
    OutboxProcessor,
    /// Bus to read models, and event-driven commands.
    ProjectionWorker,
}

impl Worker {
    const fn name(self) -> &'static str {
        match self {
            Self::OutboxProcessor => "outbox-processor",
            Self::ProjectionWorker => "projection-worker",
        }
    }

    /// Runs the worker as a program until it is told to stop.
    ///
    /// # Errors
    /// When a store cannot be opened or the port cannot be had.
    pub async fn run(self, settings: WorkerSettings, drain: Drain) -> anyhow::Result<()> {
        let bound = bind(ServeSettings::at(settings.listen)).await?;
        let sessions = sessions(HttpKeys::at(settings.jwks_url.parse()?), Clock::system());
        let (_telemetry, hub) = signals::install(self.name(), pim_telemetry::LogSettings::default(), true)?;
        let place = Place { data_dir: &settings.data_dir, shards: Some(settings.shards), postgres: &settings.postgres };
        let stores = Stores::open_at(place, Access::Shared, Clock::system(), &hub).await?;
        let cluster = Some(stores.cluster.clone());
        let parts = Parts {
            name: self.name(),
            cluster,
            drain: drain.clone(),
            openapi: json!({"openapi": "3.1.0", "paths": {}}),
            hub,
        };
        tokio::spawn(chaos::watch(stores.cluster.clone(), stores.hub.clone(), drain.begun()));
        let upkeep = match self {
            Self::ProjectionWorker => Some(stores.upkeep(&settings.upkeep).await?),
            Self::OutboxProcessor => None,
        };
        println!("{}", json!({"event": "ready", "service": self.name(), "url": bound.url()}));
        let router = Service::new(parts).spans(&sessions).into_router();
        let serving = tokio::spawn(bound.serve(router, drain.clone()));
        match upkeep {
            None => stores.relay(settings.pause_max_ms, &settings.retention, drain).await?,
            Some(upkeep) => stores.consume(settings.pause_max_ms, &settings.retention, upkeep, drain).await?,
        }
        let _ended = tokio::time::timeout(Duration::from_millis(settings.drain_timeout_ms), serving).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guard: a setting that a worker would die of is known before it opens anything, and to `--check-config`.
    #[test]
    fn what_a_worker_would_die_of_is_refused_beforehand() {
        let settings = WorkerSettings::default;
        settings().check().expect("can be used");
        let retention = RetentionSettings { batch_max: 0, ..RetentionSettings::default() };
        let upkeep = UpkeepSettings { audit_checkpoint_secs: 0, ..UpkeepSettings::default() };
        let bad = [
            ("pause_max_ms", WorkerSettings { pause_max_ms: 0, ..settings() }),
            ("retention.batch_max", WorkerSettings { retention, ..settings() }),
            ("upkeep.audit_checkpoint_secs", WorkerSettings { upkeep, ..settings() }),
            ("jwks_url", WorkerSettings { jwks_url: "no url".to_owned(), ..settings() }),
            ("shards", WorkerSettings { shards: 0, ..settings() }),
        ];
        for (key, settings) in bad {
            let refused = settings.check().expect_err(key).to_string();
            assert!(refused.contains(&format!("`{key}`")), "{refused}");
        }
    }
}
