//! The stores of the library, and what runs beside the desk: relay, projections and upkeep.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use pim_core::clock::Clock;
use pim_core::shard::ShardMap;
use pim_core::signal::{SignalError, SignalRegistry};
use pim_data::backend::{Secrets, ServerSettings};
use pim_data::cluster::{Cluster, ClusterSettings, Servers};
use pim_data::schema::Schema;
use pim_data::signals::DataSignals;
use pim_events::signals::{EventSignals, Watch, WatchSettings};
use pim_events::{
    BusSettings, ConsumerSettings, EmbeddedBus, EventsExt as _, Projection, ProjectionRunner, Publisher, ReadStore,
    Registry, Relay, RelaySettings, Retention, RetentionSettings,
};
use pim_telemetry::trace::TraceStore;
use tokio::sync::watch;

use crate::loan::{Loan, LoanMoved};
use crate::shelf::AtHome;
use crate::upkeep::Upkeep;

/// Everything that the desk needs. Clones share it.
#[derive(Clone, Debug)]
pub struct House {
    /// The shards.
    pub cluster: Cluster,
    /// The read models.
    pub shelf: ReadStore,
}

/// What works behind the desk.
#[derive(Debug)]
pub struct Works {
    relay: Relay,
    projections: ProjectionRunner,
    upkeep: Upkeep,
}

/// What the crates tell of themselves, bound once in a program.
#[derive(Debug)]
pub struct Signals {
    data: DataSignals,
    events: EventSignals,
    traces: TraceStore,
}

impl Signals {
    /// Binds them; spans go to `traces`.
    ///
    /// # Errors
    /// [`SignalError`] when they are bound already.
    pub fn bind(registry: &mut SignalRegistry, traces: &TraceStore) -> Result<Self, SignalError> {
        let (data, events) = (DataSignals::bind(registry)?, EventSignals::bind(registry)?);
        Ok(Self { data, events, traces: traces.clone() })
    }
}

impl House {
    /// Opens the library in a folder, or makes it there: two shards, a bus and a read store, each a file.
    ///
    /// With `secrets` shards and read store are databases of PostgreSQL servers, feature `postgres`; nothing else changes. They
    /// are asked for the connection strings `shard-0`, `shard-1` and `control` of a login that owns nothing, for
    /// `shard-0-owner` and so on of the one that owns the tables, and for `read-owner`. The bus stays a file.
    ///
    /// # Errors
    /// What cannot be opened, with its place and the fix.
    pub async fn open(
        folder: &Path,
        secrets: Option<Arc<dyn Secrets>>,
        signals: &Signals,
    ) -> Result<(Self, Works), Box<dyn Error + Send + Sync>> {
        let registry = Registry::builder().event::<LoanMoved>().build()?;
        // The number is that of the table's migration; those below 10,000 belong to the crates.
        let schema = Schema::builder().events(&registry).entity::<Loan>(10_000).build()?;
        let mut settings = ClusterSettings::at(folder).with_map(ShardMap::even(2)?);
        settings.signals = signals.data.clone();
        settings.servers = secrets.clone().map(Servers::new);
        let cluster = Cluster::open(settings, schema).await?;
        let bus = EmbeddedBus::open(&folder.join("bus.db"), BusSettings::default(), Clock::system()).await?;
        let shelf = match secrets {
            Some(secrets) => {
                ReadStore::connect("read-owner", secrets, ServerSettings::default(), Clock::system()).await?
            }
            None => ReadStore::open(&folder.join("read.db"), Clock::system()).await?,
        };
        let shelf = shelf.with_signals(&signals.events);

        let publisher: Arc<dyn Publisher> = Arc::new(bus.clone());
        let spans = signals.traces.spans("lending");
        let relaying = RelaySettings { spans: spans.clone(), ..RelaySettings::default() };
        let relay = Relay::new(&cluster, &publisher, &relaying)?.with_signals(&signals.events);
        let consuming = ConsumerSettings { spans, ..ConsumerSettings::default() };
        let models: Vec<Arc<dyn Projection>> = vec![Arc::new(AtHome)];
        let subscriber = Arc::new(bus.clone());
        let projections = ProjectionRunner::open(&shelf, subscriber.clone(), &registry, models, &consuming).await?;
        let (looks, keeps, clock) = (WatchSettings::default(), RetentionSettings::default(), Clock::system());
        let upkeep = Upkeep {
            cluster: cluster.clone(),
            watches: [
                Watch::of_outboxes(&cluster, clock.clone(), &signals.events, &looks),
                Watch::of_consumers(&shelf, subscriber, &signals.events, &looks),
            ],
            retentions: [
                Retention::of_outboxes(&cluster, clock, &keeps)?.with_signals(&signals.events),
                Retention::of_log(&bus, &shelf, &keeps)?,
            ],
        };
        Ok((Self { cluster, shelf }, Works { relay, projections, upkeep }))
    }
}

impl Works {
    /// Brings facts to the bus until `relay` is ready, and from there into the read models until `projections` is. Upkeep ends with
    /// the last of them.
    pub async fn run(self, relay: impl Future<Output = ()>, projections: impl Future<Output = ()>) {
        let (over, is_over) = watch::channel(false);
        let facts = async {
            tokio::join!(self.relay.run(relay), self.projections.run(projections));
            over.send_replace(true);
        };
        tokio::join!(facts, self.upkeep.run(is_over));
    }
}
