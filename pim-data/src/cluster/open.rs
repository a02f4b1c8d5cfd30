//! Opening a cluster: directory, map, databases, identity and ownership.

mod file;
mod identity;
mod server;

use std::sync::Arc;
use std::time::Duration;

use pim_core::shard::{Shard as Described, ShardId, ShardMap, ShardRouter};
use tokio::sync::watch;

use super::directory::{Directory, check_restored};
use super::shard::Shard;
use super::{CONTROL, Cluster, ClusterSettings, DirectoryError, Inner, name_of};
use crate::backend::{Db, DbError, Engine, SqlPair};
use crate::migration::{MigrateError, Migration, Progress, migrate_telling};
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
    #[error("the database of {shard} says that it is {found}: files or connection strings have been swapped")]
    Identity {
        /// Which shard.
        shard: String,
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
    #[error("endpoint {endpoint} of {shard} is {found}, the map says {told}")]
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
    #[error("{shard} has no primary endpoint in the map")]
    NoPrimary {
        /// Which shard.
        shard: String,
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

/// Which database is to be opened.
enum Place<'m> {
    Shard(&'m Described),
    Control,
}

/// A database that may be used as it is, or be brought up to date.
enum Fit<'a> {
    File(file::Fit),
    Server(Box<server::Fit<'a>>),
}

pub(super) async fn open(settings: ClusterSettings, schema: Schema) -> Result<Cluster, OpenError> {
    check_restored(&settings.data_dir)?;
    let cluster = open_as_it_is(settings, schema).await?;
    crate::fence::finish_interrupted(&cluster).await?;
    Ok(cluster)
}

/// As [`open`], but leaves a publication as it was interrupted; for whoever restores.
pub(crate) async fn open_as_it_is(settings: ClusterSettings, schema: Schema) -> Result<Cluster, OpenError> {
    if settings.replica_delay > REPLICA_DELAY_MAX {
        return Err(OpenError::Setting { setting: "replica_delay", most: "10 s" });
    }
    let engine = if settings.servers.is_some() { Engine::Postgres } else { Engine::Sqlite };
    let directory = Directory::open(&settings.data_dir, settings.access, engine, settings.map.as_ref())?;
    let map = directory.newest_map()?;
    // Every database before the first is changed: of what one refuses, no other may bear traces.
    let mut fit = Vec::with_capacity(map.shards().len() + 1);
    for described in map.shards() {
        let place = Place::Shard(described);
        fit.push(look(&place, (&map, &directory), &settings, &schema).await?);
    }
    fit.push(look(&Place::Control, (&map, &directory), &settings, &schema).await?);
    let mut shards = Vec::with_capacity(fit.len());
    for fit in fit {
        shards.push(match fit {
            Fit::File(fit) => fit.open(&map, &settings, &schema).await?,
            Fit::Server(fit) => fit.open().await?,
        });
    }
    directory.remember(shards.iter().map(Shard::id)).await?;
    let Some(control) = shards.pop() else { return Err(OpenError::NoPrimary { shard: name_of(CONTROL) }) };
    let (commits, _) = watch::channel(0);
    let router = ShardRouter::new(map);
    Ok(Cluster(Arc::new(Inner {
        router,
        shards,
        control,
        directory,
        schema,
        clock: settings.clock,
        signals: settings.signals,
        commits,
    })))
}

/// Looks at one database, and changes nothing.
async fn look<'a>(
    place: &Place<'_>,
    (map, directory): (&'a ShardMap, &'a Directory),
    settings: &'a ClusterSettings,
    schema: &'a Schema,
) -> Result<Fit<'a>, OpenError> {
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
