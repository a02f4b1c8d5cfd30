//! The shards of a data directory, the control database, and the router between them, as one handle.

mod directory;
mod endpoint;
mod group;
mod lag;
mod open;
mod shard;

pub use directory::{Access, DirectoryError};
pub(crate) use directory::{HALF_RESTORED, PreparedMap};
pub use endpoint::{EndpointFinding, EndpointHealth};
pub use group::PrimaryState;
pub use open::OpenError;
pub(crate) use open::open_as_it_is;
pub use shard::{CONTROL, ShardHealth};

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pim_core::clock::Clock;
use pim_core::context::RequestContext;
use pim_core::shard::{Bucket, Epoch, HomeKey, MapVersion, Route, ShardId, ShardMap, ShardRouter};
use tokio::sync::watch;

use self::directory::Directory;
pub(crate) use self::endpoint::Endpoint;
pub(crate) use self::group::{Group, Need};
pub(crate) use self::shard::Shard;
use crate::backend::{Resolver, Secrets, ServerSettings, SqlPair, SystemResolver};
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
    /// The map of a new data directory. An existing one keeps its own and must have as many shards.
    pub map: Option<ShardMap>,
    /// How far behind the replica connections of each shard are; zero reads the newest commit. At most ten seconds.
    pub replica_delay: Duration,
    /// Most reading connections a shard.
    pub readers_max: usize,
    /// How long a writer waits for one in another process.
    pub busy_timeout: Duration,
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
/// schema is brought up to date and maps can be published; without it the schema is only checked.
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
    pub(crate) shards: Vec<Shard>,
    pub(crate) control: Shard,
    pub(crate) directory: Directory,
    pub(crate) schema: Schema,
    pub(crate) clock: Clock,
    pub(crate) signals: DataSignals,
    /// Counts commits, so that a relay in the same process can wake up at once.
    pub(crate) commits: watch::Sender<u64>,
}

impl Cluster {
    /// Opens or creates the data directory and brings every database up to date.
    ///
    /// Every database is looked at before the first is changed: a schema that is newer or was edited, another shard's
    /// identity, another engine, or an empty database where there has been one is refused with all of them as they were.
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
        &self.0.clock
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

    /// The numbers of all shards, the control database last.
    pub fn sources(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.0.shards.iter().chain([&self.0.control]).map(Shard::id)
    }

    /// The database of a shard, or the control database by [`CONTROL`]. For other crates of a unit's parts, and for operations.
    #[must_use]
    pub fn database(&self, shard: ShardId) -> Option<&crate::backend::Db> {
        self.shard(shard).map(Shard::db)
    }

    /// Changes whenever a unit of this process commits.
    #[must_use]
    pub fn commits(&self) -> watch::Receiver<u64> {
        self.0.commits.subscribe()
    }

    /// How each shard is, the control database last.
    pub async fn health(&self) -> Vec<ShardHealth> {
        let mut all = Vec::with_capacity(self.0.shards.len() + 1);
        for shard in self.0.shards.iter().chain([&self.0.control]) {
            all.push(shard.health().await);
        }
        all
    }

    pub(crate) fn shard(&self, id: ShardId) -> Option<&Shard> {
        if id == CONTROL { Some(&self.0.control) } else { self.0.shards.iter().find(|shard| shard.id() == id) }
    }

    /// Whether this program may do in every shard what only the owner may.
    pub(crate) fn is_governed(&self) -> bool {
        self.0.shards.iter().all(Shard::is_governed)
    }

    /// Takes over a newer map that another process, or this one, has published. Returns whether there was one.
    ///
    /// # Errors
    /// [`DirectoryError`] when the map file cannot be read.
    pub fn refresh_map(&self) -> Result<bool, DirectoryError> {
        let newest = self.0.directory.newest_map()?;
        Ok(self.0.router.catch_up(newest))
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
