//! The shards of a data directory, the control database, and the router between them, as one handle.

mod complaint;
mod directory;
mod endpoint;
mod fleet;
mod group;
mod lag;
mod open;
mod shard;
mod takeover;

pub use directory::{Access, DirectoryError};
pub(crate) use directory::{HALF_RESTORED, PreparedMap};
pub use endpoint::{EndpointFinding, EndpointHealth};
pub use group::PrimaryState;
pub use open::OpenError;
pub(crate) use open::open_as_it_is;
pub use shard::{CONTROL, ShardHealth};

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use pim_core::clock::Clock;
use pim_core::context::RequestContext;
use pim_core::shard::{Bucket, Epoch, HomeKey, MapVersion, Route, ShardId, ShardMap, ShardRouter};
use tokio::sync::watch;
use tokio::time::Instant;

use self::directory::Directory;
pub(crate) use self::endpoint::Endpoint;
use self::fleet::Fleet;
pub(crate) use self::fleet::is_asked_for;
pub(crate) use self::group::{Group, Need};
pub(crate) use self::shard::Shard;
pub(crate) use self::takeover::Publishing;
use crate::backend::{Db, Resolver, Secrets, ServerSettings, SqlPair, SystemResolver};
use crate::retry::Budget;
use crate::schema::Schema;
use crate::signals::DataSignals;
use crate::unit::Unit;

/// How a cluster is opened.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// The folder of databases, maps and keys.
    pub data_dir: PathBuf,
    /// Whether other processes may have it open at the same time.
    pub access: Access,
    /// The map of a new data directory. An existing one keeps its own and must have been made with as many shards.
    pub map: Option<ShardMap>,
    /// How far behind the replica connections of each shard are; zero reads the newest commit. At most ten seconds.
    pub replica_delay: Duration,
    /// Most reading connections a shard in a file; servers have [`ServerSettings::connections_max`].
    pub readers_max: usize,
    /// How long a writer of a file waits for one in another process.
    pub busy_timeout: Duration,
    /// How often it is looked for a map that another process has published; at least every ten milliseconds. A fence that
    /// refuses a unit makes it look at once.
    pub maps_every: Duration,
    /// Where time comes from.
    pub clock: Clock,
    /// Whom the cluster tells of itself.
    pub signals: DataSignals,
    /// PostgreSQL servers instead of files. The data directory then holds maps, keys and checkpoints alone.
    pub servers: Option<Servers>,
}

/// Shards and control database on PostgreSQL, feature `postgres`.
///
/// Each endpoint of the map names a secret, `dsn_ref`: the connection string of a login role that is a member of `pim_app`
/// and owns nothing. The secret `<dsn_ref>-owner`, if this program is given it, is that of the database's owner: with it the
/// schema is brought up to date and maps can be published; without it the schema is only checked. Sessions are called `pim-data`
/// on the server unless the connection string has an `application_name`.
#[derive(Clone, Debug)]
pub struct Servers {
    /// Where connection strings come from.
    pub secrets: Arc<dyn Secrets>,
    /// Name of the control database's secret.
    pub control: String,
    /// How each endpoint is used.
    pub settings: ServerSettings,
    /// Where the host names of connection strings lead.
    pub resolver: Arc<dyn Resolver>,
}

impl Servers {
    /// With default settings and the control database's secret called `control`.
    #[must_use]
    pub fn new(secrets: Arc<dyn Secrets>) -> Self {
        let settings = ServerSettings::default();
        Self { secrets, control: "control".to_owned(), settings, resolver: Arc::new(SystemResolver) }
    }
}

impl ClusterSettings {
    /// The defaults, on a data directory.
    #[must_use]
    pub fn at(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            access: Access::Exclusive,
            map: None,
            replica_delay: Duration::ZERO,
            readers_max: 4,
            busy_timeout: Duration::from_secs(5),
            maps_every: Duration::from_millis(500),
            clock: Clock::system(),
            signals: DataSignals::unbound(),
            servers: None,
        }
    }

    /// Makes a new data directory with this map.
    #[must_use]
    pub fn with_map(mut self, map: ShardMap) -> Self {
        self.map = Some(map);
        self
    }

    /// Keeps the rows on servers.
    #[must_use]
    pub fn with_servers(mut self, servers: Servers) -> Self {
        self.servers = Some(servers);
        self
    }

    /// Says whether other processes may have it open too.
    #[must_use]
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }
}

/// Every shard behind one handle. Clones share it.
#[derive(Clone)]
pub struct Cluster(pub(crate) Arc<Inner>);

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let map = self.0.router.version();
        f.debug_struct("Cluster").field("data_dir", &self.data_dir()).field("map", &map).finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) router: ShardRouter,
    /// When this program took its map over; none for the first map of a data directory.
    pub(crate) mapped_at: Mutex<Option<Instant>>,
    pub(crate) fleet: Fleet,
    pub(crate) control: Shard,
    pub(crate) directory: Directory,
    pub(crate) schema: Schema,
    /// As it was opened: what comes later is opened so, too.
    pub(crate) settings: ClusterSettings,
    /// Counts commits, so that a relay in the same process can wake up at once.
    pub(crate) commits: watch::Sender<u64>,
    /// How many requests may be run again because of a server.
    pub(crate) repeats: Budget,
    /// Whether a publication or a move may be interrupted that whoever follows the maps is to finish.
    pub(crate) is_unfinished: AtomicBool,
}

impl Cluster {
    /// Opens or creates the data directory and brings every database up to date.
    ///
    /// Every database is looked at before the first is changed: a schema that is newer or was edited, another shard's
    /// identity, another engine, or an empty database where there has been one is refused with all of them as they were.
    ///
    /// A shard on servers that this directory has had, and whose primary is not there now, keeps no other from being opened:
    /// it is [missing](ShardHealth::reachable), tried again every ten seconds at most, and until then its requests end with
    /// [`UnitError::UnknownShard`](crate::unit::UnitError::UnknownShard). At least one shard and the control database must be there.
    ///
    /// # Errors
    /// [`OpenError`] naming the place and the fix; nothing that was there has been changed, unless a migration itself failed:
    /// then those before it, each whole.
    pub async fn open(settings: ClusterSettings, schema: Schema) -> Result<Self, OpenError> {
        open::open(settings, schema).await
    }

    /// Begins a unit of work on the shard of a home key. Nothing is written before it commits.
    pub fn begin(&self, cx: &RequestContext, home: impl Into<HomeKey>) -> Unit {
        let home = home.into();
        let route = self.0.router.route(&home);
        cx.went_to(route.shard);
        Unit::new(self.clone(), cx.clone(), home, route)
    }

    /// Begins a unit of work in the control database; the key is the row's own id.
    pub fn begin_control(&self, cx: &RequestContext, key: impl Into<HomeKey>) -> Unit {
        let home = key.into();
        Unit::new(self.clone(), cx.clone(), home, control_route(home.bucket()))
    }

    /// The router.
    #[must_use]
    pub fn router(&self) -> &ShardRouter {
        &self.0.router
    }

    /// The shard map in force.
    #[must_use]
    pub fn map(&self) -> Arc<ShardMap> {
        self.0.router.map()
    }

    /// Where time comes from.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.0.settings.clock
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.0.directory.path()
    }

    /// What the databases hold.
    #[must_use]
    pub fn schema(&self) -> &Schema {
        &self.0.schema
    }

    /// The numbers of all shards that are open, the control database last.
    pub fn sources(&self) -> impl Iterator<Item = ShardId> + use<> {
        self.everything().into_iter().map(|shard| shard.id())
    }

    /// The shards that the map asks for and that could not be opened here: what is read of all others lacks what they have.
    #[must_use]
    pub fn missing(&self) -> Vec<ShardId> {
        self.0.fleet.misses(&self.map())
    }

    /// The database of a shard, or the control database by [`CONTROL`]. For other crates of a unit's parts, and for operations.
    /// Whoever keeps it asks again when [`Cluster::changes`] tells: a map may name other servers.
    #[must_use]
    pub fn database(&self, shard: ShardId) -> Option<Db> {
        self.shard(shard).map(|shard| shard.db().clone())
    }

    /// Changes whenever a map has brought shards or servers, or has ended them.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.fleet.changes()
    }

    /// Changes whenever a unit of this process commits.
    #[must_use]
    pub fn commits(&self) -> watch::Receiver<u64> {
        self.0.commits.subscribe()
    }

    /// How each shard is, the control database last; one that could not be opened is not reachable.
    pub async fn health(&self) -> Vec<ShardHealth> {
        let everything = self.everything();
        let mut all = join_all(everything.iter().map(Shard::health)).await;
        let missing = self.missing().into_iter().map(ShardHealth::missing);
        // The control database stays last.
        let last = all.len().saturating_sub(1);
        all.splice(last..last, missing);
        all
    }

    /// Every shard that is open, the control database last.
    pub(crate) fn everything(&self) -> Vec<Shard> {
        self.0.fleet.all().iter().chain([&self.0.control]).cloned().collect()
    }

    pub(crate) fn shard(&self, id: ShardId) -> Option<Shard> {
        if id == CONTROL { Some(self.0.control.clone()) } else { self.0.fleet.shard(id) }
    }

    /// How long this program has gone by its map, if buckets can have moved for it. What a replica shows of before that may lack
    /// the rows of one that came, or show them as they were when they were being copied.
    pub(crate) fn mapped_for(&self) -> Option<Duration> {
        self.0.mapped_at.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed())
    }

    /// Whether another one has taken a shard's place.
    pub(crate) fn is_replaced(&self, shard: &Shard) -> bool {
        self.shard(shard.id()).is_none_or(|now| !now.is(shard))
    }

    /// Whether this program may do in every shard what only the owner may.
    pub(crate) fn is_governed(&self) -> bool {
        self.0.fleet.all().iter().all(Shard::is_governed)
    }
}

/// What an error calls a shard.
pub(crate) fn name_of(id: ShardId) -> String {
    if id == CONTROL { "the control database".to_owned() } else { format!("shard {id}") }
}

pub(crate) const fn control_route(bucket: Bucket) -> Route {
    Route { bucket, shard: CONTROL, epoch: Epoch(1), map_version: MapVersion(0) }
}

/// Every statement of this room.
pub(crate) fn pairs() -> Vec<SqlPair> {
    open::pairs().into_iter().chain([shard::PROBE]).collect()
}
