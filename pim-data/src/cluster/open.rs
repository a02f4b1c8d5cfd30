//! Opening a cluster: directory, map, databases, identity and ownership.

mod file;
mod identity;
mod server;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use pim_core::shard::{Bucket, Shard as Described, ShardId, ShardMap, ShardRouter};
use tokio::sync::watch;
use tokio::time::Instant;

use super::directory::{Directory, check_restored};
use super::fleet::{Fleet, is_asked_for};
use super::shard::Shard;
use super::takeover::follow;
use super::{CONTROL, Cluster, ClusterSettings, DirectoryError, Inner, name_of};
use crate::backend::{Db, DbError, Engine, SqlPair};
use crate::migration::{MigrateError, Migration, Progress, migrate_telling};
use crate::retry::Budget;
use crate::schema::Schema;

const REPLICA_DELAY_MAX: Duration = Duration::from_secs(10);

/// A cluster that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The data directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A database of it.
    #[error("cannot open the database of {shard}")]
    Database {
        /// Which shard.
        shard: String,
        /// Why.
        #[source]
        source: DbError,
    },
    /// A schema of it.
    #[error("cannot bring the schema of {shard} up to date")]
    Schema {
        /// Which shard.
        shard: String,
        /// Why.
        #[source]
        source: MigrateError,
    },
    /// A database that belongs to another shard or system.
    #[error(
        "the database of {shard}, {place}, says that it is {found}: files or connection strings have been swapped; put them right"
    )]
    Identity {
        /// Which shard.
        shard: String,
        /// The file, or the endpoint's name.
        place: String,
        /// What it says.
        found: String,
    },
    /// A database without anything in it, where there has been one.
    #[error(
        "the database of {shard} is empty, and this data directory has had one there: {place} was removed, or a connection \
         string leads elsewhere; put it right, or restore a backup"
    )]
    Empty {
        /// Which shard.
        shard: String,
        /// The file, or the endpoint's name.
        place: String,
    },
    /// An endpoint that is not what the map says.
    #[error(
        "endpoint {endpoint} of {shard} is {found}, the map says {told}: promote it if the primary is lost, or put its connection \
         string or the map right"
    )]
    Role {
        /// Which shard.
        shard: String,
        /// Which endpoint.
        endpoint: String,
        /// What it is.
        found: &'static str,
        /// What it should be.
        told: &'static str,
    },
    /// A shard without a primary.
    #[error("{shard} has no primary endpoint in the map: name one")]
    NoPrimary {
        /// Which shard.
        shard: String,
    },
    /// Servers whose primary is of a term that is over.
    #[error(
        "the primary of {} is of term {found} and the shard is at term {known}: it is a former primary, or a copy of one; name \
         the servers that follow the present one", name_of(*shard)
    )]
    Term {
        /// Which shard.
        shard: ShardId,
        /// Its term.
        found: u64,
        /// The newest that is known.
        known: u64,
    },
    /// A database that takes a shard's place and does not own what the shard owns.
    #[error(
        "the database that is to take the place of {} owns other buckets, bucket {bucket} for one: it is a copy of another \
         time; name servers that follow the present one", name_of(*shard)
    )]
    Ownership {
        /// Which shard.
        shard: ShardId,
        /// The first bucket that differs.
        bucket: Bucket,
    },
    /// Servers whose primary is not the one that is written to.
    #[error(
        "writes of {} go to another server than the primary of those that the map names: name these beside the ones in use, \
         promote one, and leave the others out then", name_of(*shard)
    )]
    Elsewhere {
        /// Which shard.
        shard: ShardId,
    },
    /// A publication of a map that was interrupted cannot be finished.
    #[error("an interrupted publication of a shard map cannot be finished")]
    Publish(#[source] Box<crate::fence::PublishError>),
    /// A setting out of its bounds.
    #[error("setting {setting} must be at most {most}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// Its bound.
        most: &'static str,
    },
}

/// With what a cluster opens databases.
#[derive(Clone, Copy)]
pub(super) struct Opener<'a> {
    pub(super) directory: &'a Directory,
    pub(super) settings: &'a ClusterSettings,
    pub(super) schema: &'a Schema,
    /// Whether a database that nobody has introduced yet is made the shard's. Once a map names the shard somebody has.
    pub(super) introduces: bool,
}

impl OpenError {
    /// A short name, for logs: what a message says of places stays out of them.
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::Directory(_) => "directory",
            Self::Database { source, .. } => source.code(),
            Self::Schema { .. } => "schema",
            Self::Identity { .. } => "identity",
            Self::Empty { .. } => "empty",
            Self::Role { .. } => "role",
            Self::NoPrimary { .. } => "no_primary",
            Self::Term { .. } => "term",
            Self::Ownership { .. } => "ownership",
            Self::Elsewhere { .. } => "elsewhere",
            Self::Publish(_) => "publish",
            Self::Setting { .. } => "setting",
        }
    }
}

/// Which database is to be opened.
pub(super) enum Place<'m> {
    Shard(&'m Described),
    Control,
}

impl Place<'_> {
    const fn id(&self) -> ShardId {
        match self {
            Self::Shard(described) => described.id,
            Self::Control => CONTROL,
        }
    }
}

/// A database that may be used as it is, or be brought up to date.
enum Fit<'a> {
    File(file::Fit),
    Server(Box<server::Fit<'a>>),
}

impl Fit<'_> {
    const fn db(&self) -> &Db {
        match self {
            Self::File(fit) => &fit.db,
            Self::Server(fit) => &fit.writer,
        }
    }
}

pub(super) async fn open(settings: ClusterSettings, schema: Schema) -> Result<Cluster, OpenError> {
    check_restored(&settings.data_dir)?;
    let cluster = open_as(settings, schema, Absent::Awaited).await?;
    // Nobody knows what a shard follows that is not there: it is looked at when it comes.
    if !cluster.0.is_unfinished.load(Ordering::Relaxed) {
        match crate::fence::finish_interrupted(&cluster).await {
            // Writers wait for the same standby, readers need not.
            Err(OpenError::Publish(error)) if error.awaits_a_standby() => {
                cluster.leave_unfinished();
            }
            finished => finished?,
        }
    }
    Ok(cluster)
}

/// As [`open`], but leaves a publication as it was interrupted, and does without no shard; for whoever restores.
pub(crate) async fn open_as_it_is(settings: ClusterSettings, schema: Schema) -> Result<Cluster, OpenError> {
    open_as(settings, schema, Absent::Refused).await
}

/// What becomes of a shard that this data directory has had, and whose primary is not there now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Absent {
    /// Nothing is opened without it.
    Refused,
    /// The others are opened; it is tried again until it comes.
    Awaited,
}

async fn open_as(settings: ClusterSettings, schema: Schema, absent: Absent) -> Result<Cluster, OpenError> {
    if settings.replica_delay > REPLICA_DELAY_MAX {
        return Err(OpenError::Setting { setting: "replica_delay", most: "10 s" });
    }
    let engine = if settings.servers.is_some() { Engine::Postgres } else { Engine::Sqlite };
    let directory = Directory::open(&settings.data_dir, settings.access, engine, settings.map.as_ref())?;
    let map = directory.newest_map()?;
    let shards = map.shards().iter().filter(|described| is_asked_for(described)).map(Place::Shard);
    let opener = Opener { directory: &directory, settings: &settings, schema: &schema, introduces: true };
    let (mut shards, awaited) = opener.open_but(shards.chain([Place::Control]).collect(), &map, absent).await?;
    directory.remember(shards.iter().map(Shard::id)).await?;
    let Some(control) = shards.pop() else { return Err(OpenError::NoPrimary { shard: name_of(CONTROL) }) };
    let (commits, _) = watch::channel(0);
    let (router, fleet) = (ShardRouter::new(map.clone()), Fleet::new(shards));
    awaited.iter().for_each(|(described, error)| fleet.report(described, router.version(), error));
    let (repeats, is_unfinished) = (Budget::new(std::time::Instant::now()), AtomicBool::new(!awaited.is_empty()));
    let mapped_at = Mutex::new((router.version().0 > 1).then(Instant::now));
    let inner =
        Inner { router, mapped_at, fleet, control, directory, schema, settings, commits, repeats, is_unfinished };
    let inner = Arc::new(inner);
    follow(&inner);
    Ok(Cluster(inner))
}

impl<'a> Opener<'a> {
    /// Opens shards of a map, all of them or none.
    pub(super) async fn open(&self, places: Vec<Place<'_>>, map: &'a ShardMap) -> Result<Vec<Shard>, OpenError> {
        Ok(self.open_but(places, map, Absent::Refused).await?.0)
    }

    /// Opens shards of a map. All are looked at, at once, before the first is changed: of what one refuses, no other may bear
    /// traces. Those that are awaited are not among them.
    async fn open_but<'p>(
        &self,
        places: Vec<Place<'p>>,
        map: &'a ShardMap,
        absent: Absent,
    ) -> Result<(Vec<Shard>, Vec<(&'p Described, OpenError)>), OpenError> {
        let found = join_all(places.iter().map(|place| self.look_and_check(place, map))).await;
        let (mut fit, mut awaited) = (Vec::with_capacity(places.len()), Vec::new());
        for (place, found) in places.into_iter().zip(found) {
            match (place, found) {
                (_, Ok(found)) => fit.push(found),
                (Place::Shard(it), Err(error)) if absent == Absent::Awaited && self.may_come_later(it, &error) => {
                    awaited.push((it, error));
                }
                (_, Err(error)) => return Err(error),
            }
        }
        if fit.len() == 1 && !awaited.is_empty() {
            // Only the control database: a program without any shard says why instead of waiting for one.
            return Err(awaited.swap_remove(0).1);
        }
        let mut shards = Vec::with_capacity(fit.len());
        for fit in fit {
            shards.push(match fit {
                Fit::File(fit) => fit.open(map, self.settings, self.schema).await?,
                Fit::Server(fit) => fit.open().await?,
            });
        }
        Ok((shards, awaited))
    }

    /// Whether a shard is only not there now: its primary cannot be reached or is not named yet, and it has been there before.
    fn may_come_later(&self, described: &Described, error: &OpenError) -> bool {
        let is_away = match error {
            OpenError::Database { source, .. } => source.is_of_an_absent_server(),
            OpenError::Role { .. } => true,
            _ => false,
        };
        is_away && self.settings.servers.is_some() && self.directory.has_had(described.id)
    }

    async fn look_and_check(&self, place: &Place<'_>, map: &'a ShardMap) -> Result<Fit<'a>, OpenError> {
        let found = self.look(place, map).await?;
        if !self.introduces {
            identity::check(found.db(), place.id(), map).await?;
        }
        Ok(found)
    }

    /// Looks at one database, and changes nothing.
    async fn look(&self, place: &Place<'_>, map: &'a ShardMap) -> Result<Fit<'a>, OpenError> {
        let Self { directory, settings, schema, .. } = *self;
        if let Some(servers) = &settings.servers {
            let found = match place {
                Place::Shard(described) => server::look(described, servers, (map, directory), settings, schema).await?,
                Place::Control => server::look_at_control(servers, (map, directory), settings, schema).await?,
            };
            return Ok(Fit::Server(Box::new(found)));
        }
        let (id, path) = match place {
            Place::Shard(it) => (it.id, settings.data_dir.join("shards").join(format!("{}.db", it.name))),
            Place::Control => (CONTROL, settings.data_dir.join("control.db")),
        };
        Ok(Fit::File(file::look(id, &path, (map, directory), settings, schema).await?))
    }
}

/// Brings a database up to date, and says how that goes: a step over many rows takes its time.
async fn bring_up_to_date(id: ShardId, db: &Db, steps: &[Migration]) -> Result<(), MigrateError> {
    let shard = (id != CONTROL).then_some(id);
    let tell = |Progress { version, name, step, steps }: Progress| {
        pim_core::info!("shard.migrates", shard_id = shard, version = version, name = name, step = step, steps = steps);
    };
    let applied = migrate_telling(db, steps, tell).await?;
    if applied > 0 {
        pim_core::info!("shard.migrated", shard_id = shard, steps = applied);
    }
    Ok(())
}

/// Every statement of this room.
pub(super) fn pairs() -> Vec<SqlPair> {
    identity::pairs().into_iter().chain([server::ROLE]).collect()
}
