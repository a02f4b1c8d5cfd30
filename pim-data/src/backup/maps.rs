//! Maps that were published after a backup: the shards of a later instant follow them, so a restore needs them too.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use pim_core::shard::{Bucket, Epoch, ShardMap};

use super::BackupError;
use crate::backend::{DbError, Statement};
use crate::cluster::{Cluster, is_asked_for};
use crate::fence::PublishError;

/// Restores in a row that were broken off before anybody had what they published.
const RAISES_MAX: u64 = 64;
/// What a shard says that it owns, and under which epoch.
const OWNED: &str = "SELECT bucket, epoch FROM pim_bucket_owned WHERE state = 'owned'";

/// Makes that map the one in force which the restored shards follow, before anybody goes on with what was interrupted. Maps
/// that the backup lacks come from the directory that was backed up; one by which a restore has raised every epoch before it
/// failed went with its directory, and is made again.
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
        let next = match known.into_iter().flatten().find(is_next) {
            Some(next) => next,
            None => raised(cluster, &current, newest).await?.ok_or(BackupError::Map { version })?,
        };
        directory.keep_map(&next)?;
        if version == newest && !is_followed(cluster, &next, &next).await? {
            return Ok(());
        }
        directory.publish_map(&next)?;
        cluster.refresh_map().await?;
        current = cluster.map();
    }
}

/// The map that raises every epoch, when that is all that has happened since the present one: the shards show it bucket by bucket,
/// also where a publication was broken off half way.
async fn raised(cluster: &Cluster, current: &ShardMap, newest: u64) -> Result<Option<ShardMap>, BackupError> {
    if newest - current.version().0 > RAISES_MAX {
        return Ok(None);
    }
    let raise = |map: &ShardMap| map.fenced().map_err(PublishError::Map);
    let next = raise(current)?;
    let (mut before, mut last) = (current.clone(), next.clone());
    while last.version().0 < newest {
        let then = raise(&last)?;
        before = std::mem::replace(&mut last, then);
    }
    Ok(is_followed(cluster, &before, &last).await?.then_some(next))
}

fn found_in(origin: Option<&Path>, version: u64) -> Option<ShardMap> {
    let text = fs::read_to_string(origin?.join("maps").join(format!("{version}.toml"))).ok()?;
    ShardMap::parse(&text).ok()
}

/// Whether each shard owns what two maps say that it owns, and nothing else, at the epoch of one or the other.
async fn is_followed(cluster: &Cluster, before: &ShardMap, map: &ShardMap) -> Result<bool, BackupError> {
    for described in map.shards().iter().filter(|described| is_asked_for(described)) {
        let Some(db) = cluster.database(described.id) else { return Ok(false) };
        let failed = |source: DbError| BackupError::Database { name: db.name(), source };
        let rows = db.query(Statement::same(OWNED)).await.map_err(failed)?;
        let owned =
            rows.iter().map(|row| Ok((row.count(0)?, row.count(1)?))).collect::<Result<BTreeMap<_, _>, DbError>>();
        let owned = owned.map_err(failed)?;
        let mut told = map.buckets_of(described.id);
        let is_at_either = |(bucket, epoch): (Bucket, Epoch)| {
            let at = owned.get(&u64::from(bucket.get()));
            at.is_some_and(|at| [epoch, before.owner(bucket).1].iter().any(|epoch| *at == u64::from(epoch.0)))
        };
        if owned.len() != map.buckets_of(described.id).count() || !told.all(is_at_either) {
            return Ok(false);
        }
    }
    Ok(true)
}
