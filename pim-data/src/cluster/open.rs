//! Opening a cluster: directory, map, databases, identity and ownership.

mod server;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pim_core::shard::{Bucket, Epoch, ShardId, ShardMap, ShardRouter};
use tokio::sync::watch;

use super::directory::Directory;
use super::shard::Shard;
use super::{CONTROL, Cluster, ClusterSettings, DirectoryError, Inner};
use crate::backend::{Db, DbError, DbSettings, Row, SqlPair, Statement};
use crate::migration::{MigrateError, migrate};
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

pub(super) async fn open(settings: ClusterSettings, schema: Schema) -> Result<Cluster, OpenError> {
    if settings.replica_delay > REPLICA_DELAY_MAX {
        return Err(OpenError::Setting { setting: "replica_delay", most: "10 s" });
    }
    let directory = Directory::open(&settings.data_dir, settings.access, settings.map.as_ref())?;
    let map = directory.newest_map()?;
    let mut shards = Vec::with_capacity(map.shards().len());
    for described in map.shards() {
        shards.push(match &settings.servers {
            Some(servers) => server::open_shard(described, servers, &map, &settings, &schema).await?,
            None => {
                let path = settings.data_dir.join("shards").join(format!("{}.db", described.name));
                open_shard(described.id, &path, &map, &settings, &schema).await?
            }
        });
    }
    let control = match &settings.servers {
        Some(servers) => server::open_control(servers, &map, &settings, &schema).await?,
        None => open_shard(CONTROL, &settings.data_dir.join("control.db"), &map, &settings, &schema).await?,
    };
    let (commits, _) = watch::channel(0);
    let router = ShardRouter::new(map);
    let cluster = Cluster(Arc::new(Inner {
        router,
        shards,
        control,
        directory,
        schema,
        clock: settings.clock,
        signals: settings.signals,
        commits,
    }));
    crate::fence::finish_interrupted(&cluster).await?;
    Ok(cluster)
}

async fn open_shard(
    id: ShardId,
    path: &Path,
    map: &ShardMap,
    settings: &ClusterSettings,
    schema: &Schema,
) -> Result<Shard, OpenError> {
    let is_control = id == CONTROL;
    let name = || name_of(id);
    let database = |source| OpenError::Database { shard: name(), source };
    let db_settings = DbSettings {
        readers_max: settings.readers_max,
        busy_timeout: settings.busy_timeout,
        on_connect: Some(schema.on_connect(is_control).into()),
    };
    let db = Db::open(path, db_settings).await.map_err(database)?;
    let steps = if is_control { schema.control_migrations() } else { schema.shard_migrations() };
    migrate(&db, steps).await.map_err(|source| OpenError::Schema { shard: name(), source })?;
    let found = introduce(&db, id, map).await.map_err(database)?;
    if let Some(found) = found {
        return Err(OpenError::Identity { shard: name(), found });
    }
    Ok(Shard::new(id, db, settings.replica_delay))
}

fn name_of(id: ShardId) -> String {
    if id == CONTROL { "the control database".to_owned() } else { format!("shard {id}") }
}

/// Writes identity and ownership into a new database; says who it is when it is somebody else's.
async fn introduce(db: &Db, id: ShardId, map: &ShardMap) -> Result<Option<String>, DbError> {
    let asked = [Statement::of(IDENTITY)];
    let (mut tx, answers) = db.begin_with(&asked).await?;
    if let Some(row) = answers.first().and_then(|rows| rows.first()) {
        return somebody_else(row, id, map);
    }
    let identity = Statement::of(INTRODUCE).bind(map.keyspace()).bind(id.0);
    let mut statements = vec![identity];
    let owned: Vec<(Bucket, Epoch)> = if id == CONTROL {
        (0..4096).filter_map(|number| Some((Bucket::new(number).ok()?, Epoch(1)))).collect()
    } else {
        map.buckets_of(id).collect()
    };
    let version = if id == CONTROL { 0 } else { map.version().0 };
    for run in owned.chunks(256) {
        let insert = Statement::of(own(run.len()));
        let values = run.iter().flat_map(|(bucket, epoch)| [bucket.get().into(), epoch.0.into(), version.into()]);
        statements.push(insert.bind_all(values));
    }
    tx.hop(&statements).await?;
    tx.commit().await?;
    Ok(None)
}

const IDENTITY: SqlPair = SqlPair::same("SELECT keyspace, shard FROM pim_identity");
const INTRODUCE: SqlPair = SqlPair::same("INSERT INTO pim_identity VALUES (1, ?, ?)");

fn own(buckets: usize) -> SqlPair {
    let mut text = String::from("INSERT INTO pim_bucket_owned (bucket, epoch, state, map_version) VALUES ");
    text.push_str(&vec!["(?, ?, 'owned', ?)"; buckets].join(", "));
    SqlPair::generated(text)
}

/// Every statement of this room.
pub(super) fn pairs() -> [SqlPair; 4] {
    [IDENTITY, INTRODUCE, own(1), server::ROLE]
}

/// Who a database says that it is, unless it is the one that was meant.
fn somebody_else(row: &Row, id: ShardId, map: &ShardMap) -> Result<Option<String>, DbError> {
    let (keyspace, shard) = (row.text(0)?, row.int(1)?);
    let is_right = keyspace == map.keyspace() && shard == i64::from(id.0);
    Ok((!is_right).then(|| format!("shard {shard} of key space {keyspace}")))
}
