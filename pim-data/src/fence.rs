//! Publishing a new map: keep it, fence every shard, then let everybody read it.

use pim_core::shard::{HANDOVERS_MAX, Handover, MapError, MapVersion, ShardId, ShardMap};

use crate::backend::{DbError, Row, Statement};
use crate::cluster::{Cluster, DirectoryError, OpenError};

/// A map that was not published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// It may not follow the map in force.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A bucket that changes hands has rows, and rows are not moved by publishing.
    #[error("bucket {} has rows on shard {} and cannot change hands by publishing", .0.bucket, .0.from)]
    NotEmpty(Handover),
    /// It names a shard that this cluster does not have.
    #[error("shard {0} is not part of this cluster")]
    UnknownShard(ShardId),
    /// The data directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A shard could not be fenced; publishing again goes on from there.
    #[error("shard {shard} could not be fenced")]
    Shard {
        /// Which.
        shard: ShardId,
        /// Why.
        #[source]
        source: DbError,
    },
}

impl Cluster {
    /// Publishes a map while writes run. Writers that still hold the old one are refused by the fence, take over the new
    /// one and go on. Returns the buckets that changed hands.
    ///
    /// The order makes an interruption harmless: the map is kept first, each shard is fenced in a transaction of its own,
    /// the map is published last; [`Cluster::open`] finishes what was begun.
    ///
    /// # Errors
    /// [`PublishError`]; the running map stays.
    pub async fn publish_map(&self, next: &ShardMap) -> Result<Vec<Handover>, PublishError> {
        let current = self.map();
        current.check_successor(next, HANDOVERS_MAX)?;
        let handovers = current.handovers_to(next);
        if let Some(shard) = next.shards().iter().find(|shard| self.shard(shard.id).is_none()) {
            return Err(PublishError::UnknownShard(shard.id));
        }
        self.check_empty(&handovers).await?;
        self.0.directory.keep_map(next)?;
        self.fence_all(next).await?;
        self.0.directory.publish_map(next)?;
        self.0.router.catch_up(next.clone());
        Ok(handovers)
    }

    async fn check_empty(&self, handovers: &[Handover]) -> Result<(), PublishError> {
        for handover in handovers {
            let shard = handover.from;
            let db = self.database(shard).ok_or(PublishError::UnknownShard(shard))?;
            let held = Statement::sqlite("SELECT 1 FROM key_head WHERE bucket = ? LIMIT 1").bind(handover.bucket.get());
            let rows = db.query(held).await.map_err(|source| PublishError::Shard { shard, source })?;
            if !rows.is_empty() {
                return Err(PublishError::NotEmpty(*handover));
            }
        }
        Ok(())
    }

    async fn fence_all(&self, next: &ShardMap) -> Result<(), PublishError> {
        for described in next.shards() {
            let shard = described.id;
            self.fence(shard, next).await.map_err(|source| PublishError::Shard { shard, source })?;
        }
        Ok(())
    }

    /// Writes a map's ownership into one shard. The transaction waits for writers in flight and keeps new ones out.
    async fn fence(&self, shard: ShardId, next: &ShardMap) -> Result<(), DbError> {
        let Some(db) = self.database(shard) else { return Ok(()) };
        let mut tx = db.begin().await?;
        let version = next.version().0;
        let retire = "UPDATE pim_bucket_owned SET state = 'moved', map_version = ? WHERE bucket = ?";
        let own = "INSERT INTO pim_bucket_owned (bucket, epoch, state, map_version) VALUES (?, ?, 'owned', ?) \
                   ON CONFLICT (bucket) DO UPDATE SET epoch = excluded.epoch, state = 'owned', moved_to = NULL, \
                   map_version = excluded.map_version";
        for row in tx.query(Statement::sqlite("SELECT bucket FROM pim_bucket_owned WHERE state = 'owned'")).await? {
            let number = row.int(0)?;
            let stays = next.buckets_of(shard).any(|(bucket, _)| i64::from(bucket.get()) == number);
            if !stays {
                tx.query(Statement::sqlite(retire).bind(version).bind(number)).await?;
            }
        }
        for (bucket, epoch) in next.buckets_of(shard) {
            tx.query(Statement::sqlite(own).bind(bucket.get()).bind(epoch.0).bind(version)).await?;
        }
        tx.commit().await
    }

    async fn newest_fenced(&self) -> Result<MapVersion, OpenError> {
        let mut newest = self.map().version();
        for described in self.map().shards() {
            let Some(db) = self.database(described.id) else { continue };
            let asked = db.query(Statement::sqlite("SELECT COALESCE(MAX(map_version), 0) FROM pim_bucket_owned")).await;
            let version = |rows: Vec<Row>| rows.first().map_or(Ok(0), |row| row.count(0));
            let found = asked.and_then(|rows| version(rows).map_err(DbError::from));
            let failed = |source| OpenError::Database { shard: format!("shard {}", described.id), source };
            newest = newest.max(MapVersion(found.map_err(failed)?));
        }
        Ok(newest)
    }
}

/// Goes on with a publication that was interrupted after some shard had been fenced.
pub(crate) async fn finish_interrupted(cluster: &Cluster) -> Result<(), OpenError> {
    let newest = cluster.newest_fenced().await?;
    if newest <= cluster.map().version() {
        return Ok(());
    }
    let next = cluster.0.directory.map(newest.0)?;
    for described in next.shards() {
        let fenced = cluster.fence(described.id, &next).await;
        fenced.map_err(|source| OpenError::Database { shard: format!("shard {}", described.id), source })?;
    }
    cluster.0.directory.publish_map(&next)?;
    cluster.0.router.catch_up(next);
    Ok(())
}
