//! Maps that were published after a backup: the shards of a later instant follow them, so a restore needs them too.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use pim_core::shard::{Bucket, ShardMap};

use super::BackupError;
use crate::backend::{DbError, Statement};
use crate::cluster::{Cluster, is_asked_for};

/// What a shard says that it owns, and under which epoch.
const OWNED: &str = "SELECT bucket, epoch FROM pim_bucket_owned WHERE state = 'owned'";

/// Makes that map the one in force which the restored shards follow, before anybody goes on with what was interrupted. Maps
/// that the backup lacks come from the directory that was backed up.
///
/// A publication that was at it at the instant is left for whoever opens the cluster: the map before it is in force then.
pub(super) async fn catch_up(cluster: &Cluster, origin: Option<&Path>) -> Result<(), BackupError> {
    let mut current = cluster.map();
    let directory = &cluster.0.directory;
    // Asked each time: shards that come with a map may follow newer ones.
    loop {
        let newest = cluster.newest_fenced().await?.0;
        if current.version().0 >= newest {
            return Ok(());
        }
        let version = current.version().0 + 1;
        // Where the backup was taken from is the map that came into force; what was kept in it may have come to nothing.
        let known = [found_in(origin, version), directory.map(version).ok()];
        let is_next = |next: &ShardMap| current.check_successor(next, Bucket::COUNT).is_ok();
        let next = known.into_iter().flatten().find(is_next).ok_or(BackupError::Map { version })?;
        directory.keep_map(&next)?;
        if version == newest && !is_followed(cluster, &next).await? {
            return Ok(());
        }
        directory.publish_map(&next)?;
        cluster.refresh_map().await?;
        current = cluster.map();
    }
}

fn found_in(origin: Option<&Path>, version: u64) -> Option<ShardMap> {
    let text = fs::read_to_string(origin?.join("maps").join(format!("{version}.toml"))).ok()?;
    ShardMap::parse(&text).ok()
}

/// Whether each shard owns what a map says that it owns, and nothing else.
async fn is_followed(cluster: &Cluster, map: &ShardMap) -> Result<bool, BackupError> {
    for described in map.shards().iter().filter(|described| is_asked_for(described)) {
        let Some(db) = cluster.database(described.id) else { return Ok(false) };
        let failed = |source: DbError| BackupError::Database { name: db.name(), source };
        let rows = db.query(Statement::same(OWNED)).await.map_err(failed)?;
        let owned = rows.iter().map(|row| Ok((row.count(0)?, row.count(1)?))).collect::<Result<BTreeSet<_>, DbError>>();
        let told: BTreeSet<_> =
            map.buckets_of(described.id).map(|(bucket, epoch)| (u64::from(bucket.get()), u64::from(epoch.0))).collect();
        if owned.map_err(failed)? != told {
            return Ok(false);
        }
    }
    Ok(true)
}
