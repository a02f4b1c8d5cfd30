//! Shards in files of the data directory.

use std::path::Path;

use pim_core::shard::{ShardId, ShardMap};

use super::{OpenError, bring_up_to_date, identity};
use crate::backend::{Db, DbSettings};
use crate::cluster::directory::Directory;
use crate::cluster::{CONTROL, ClusterSettings, Shard, name_of};
use crate::migration::survey;
use crate::schema::Schema;

/// A file that was looked at and may be used.
pub(super) struct Fit {
    id: ShardId,
    pub(super) db: Db,
}

/// Opens a file and looks whether it is the one that is meant, and of a schema that this program can bring up to date.
pub(super) async fn look(
    id: ShardId,
    path: &Path,
    (map, directory): (&ShardMap, &Directory),
    settings: &ClusterSettings,
    schema: &Schema,
) -> Result<Fit, OpenError> {
    let db_settings = DbSettings {
        readers_max: settings.readers_max,
        busy_timeout: settings.busy_timeout,
        on_connect: Some(schema.on_connect(id == CONTROL).into()),
    };
    // Opening would make it.
    if directory.has_had(id) && !path.exists() {
        return Err(OpenError::Empty { shard: name_of(id), place: path.display().to_string() });
    }
    let opened = Db::open(path, db_settings).await;
    let db = opened.map_err(|source| OpenError::Database { shard: name_of(id), source })?;
    identity::look(&db, id, map, directory).await?;
    let surveyed = survey(&db, schema.migrations_of(id == CONTROL)).await;
    surveyed.map_err(|source| OpenError::Schema { shard: name_of(id), source })?;
    Ok(Fit { id, db })
}

impl Fit {
    /// Brings the schema up to date and makes a new database known to itself.
    pub(super) async fn open(
        self,
        map: &ShardMap,
        settings: &ClusterSettings,
        schema: &Schema,
    ) -> Result<Shard, OpenError> {
        let Self { id, db } = self;
        let brought = bring_up_to_date(id, &db, schema.migrations_of(id == CONTROL)).await;
        brought.map_err(|source| OpenError::Schema { shard: name_of(id), source })?;
        identity::introduce(&db, id, map).await?;
        Ok(Shard::new(id, db, settings.replica_delay))
    }
}
