//! Publishing a new map: keep it, fence every shard, then let everybody read it.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use pim_core::deadline::Deadline;
use pim_core::shard::{Bucket, HANDOVERS_MAX, Handover, MapError, MapVersion, Route, ShardId, ShardMap};

use serde_json::{Value as Json, json};

use crate::backend::{Db, DbError, Engine, Row, SqlPair, Statement, Value};
use crate::cluster::{CONTROL, Cluster, DirectoryError, OpenError, Shard};

use crate::retry::Backoff;

/// Most buckets that one transaction of a server locks: its lock table is shared by everybody.
const LOCKED_MAX: usize = 256;

const HELD: SqlPair = SqlPair::of(
    "SELECT bucket FROM key_head WHERE bucket IN (SELECT (value ->> 0)::bigint FROM jsonb_array_elements(?)) LIMIT 1",
    "SELECT bucket FROM key_head WHERE bucket IN (SELECT value ->> 0 FROM json_each(?)) LIMIT 1",
);
/// Whether a bucket's rows are to be read here.
pub(crate) const HERE: SqlPair =
    SqlPair::same("SELECT 1 FROM pim_bucket_owned WHERE bucket = ? AND state IN ('owned', 'draining')");
/// A copy is whole only as long as nobody could write at the source since.
const UNFENCED: SqlPair = SqlPair::of(
    "SELECT bucket FROM pim_bucket_owned WHERE state NOT IN ('draining', 'moved') \
     AND bucket IN (SELECT (value ->> 0)::bigint FROM jsonb_array_elements(?)) LIMIT 1",
    "SELECT bucket FROM pim_bucket_owned WHERE state NOT IN ('draining', 'moved') \
     AND bucket IN (SELECT value ->> 0 FROM json_each(?)) LIMIT 1",
);
const GIVE: SqlPair = SqlPair::sqlite(
    "UPDATE pim_bucket_owned SET state = 'moved', map_version = ?, moved_to = \
     (SELECT value ->> 1 FROM json_each(?) WHERE value ->> 0 = bucket) \
     WHERE bucket IN (SELECT value ->> 0 FROM json_each(?))",
);
const RETIRE: SqlPair = SqlPair::sqlite(
    "UPDATE pim_bucket_owned SET state = 'moved', map_version = ? WHERE state = 'owned' \
     AND bucket NOT IN (SELECT value ->> 0 FROM json_each(?))",
);
const OWN: SqlPair = SqlPair::sqlite(
    "INSERT INTO pim_bucket_owned (bucket, epoch, state, map_version) \
     SELECT value ->> 0, value ->> 1, 'owned', ? FROM json_each(?) WHERE true \
     ON CONFLICT (bucket) DO UPDATE SET epoch = excluded.epoch, state = 'owned', moved_to = NULL, \
     map_version = excluded.map_version \
     WHERE epoch <> excluded.epoch OR state <> 'owned'",
);

const NEWEST: SqlPair = SqlPair::same("SELECT COALESCE(MAX(map_version), 0) FROM pim_bucket_owned");
const LOCK: SqlPair = SqlPair::postgres("SELECT pim_fence(?)");
const GIVE_SERVER: SqlPair = SqlPair::postgres("SELECT pim_give(?, ?)");
const RETIRE_SERVER: SqlPair = SqlPair::postgres("SELECT pim_retire(?, ?)");
/// Of buckets and epochs, those that the database does not say so.
const PENDING: SqlPair = SqlPair::postgres(
    "SELECT (taken.value ->> 0)::bigint, (taken.value ->> 1)::bigint FROM jsonb_array_elements(?) AS taken(value) \
     WHERE NOT EXISTS (SELECT FROM pim_bucket_owned o WHERE o.bucket = (taken.value ->> 0)::bigint \
     AND o.epoch = (taken.value ->> 1)::bigint AND o.state = 'owned')",
);
const TAKE_SERVER: SqlPair = SqlPair::postgres("SELECT pim_take(?, ?)");

/// Every statement of this room.
pub(crate) fn pairs() -> [SqlPair; 12] {
    [HELD, UNFENCED, HERE, GIVE, RETIRE, OWN, NEWEST, LOCK, GIVE_SERVER, RETIRE_SERVER, PENDING, TAKE_SERVER]
}

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

/// How patiently a reader that found nothing waits for the map of a bucket that has left.
const LEFT: Backoff =
    Backoff { pause_first: Duration::from_millis(2), pause_max: Duration::from_millis(50), attempts_max: 12 };

impl Cluster {
    /// Whether nothing was found by this route because its bucket lives elsewhere by now. Takes over the newer map then, and
    /// waits a little when there is none yet.
    pub(crate) async fn has_left(&self, route: Route, deadline: Deadline, tries: u32) -> Result<bool, DbError> {
        let Some(db) = self.database(route.shard) else { return Ok(false) };
        if !db.query(Statement::of(HERE).bind(route.bucket.get())).await?.is_empty() || tries >= LEFT.attempts_max {
            return Ok(false);
        }
        // A map that cannot be read now is read at the next try.
        let _unreadable = self.refresh_map();
        let is_newer = self.router().map().owner(route.bucket).0 != route.shard;
        Ok(is_newer || LEFT.wait(tries, deadline).await)
    }

    /// Publishes a map while writes run. Writers that still hold the old one are refused by the fence, take over the new
    /// one and go on. Returns the buckets that changed hands.
    ///
    /// The order makes an interruption harmless: the map is kept first, each shard is fenced in a transaction of its own,
    /// the map is published last; [`Cluster::open`] finishes what was begun.
    ///
    /// # Errors
    /// [`PublishError`]; the running map stays.
    pub async fn publish_map(&self, next: &ShardMap) -> Result<Vec<Handover>, PublishError> {
        let _one_at_a_time = self.0.directory.publishing().await?;
        // Another process may have published since this one looked, or begun to.
        self.refresh_map()?;
        self.finish_begun().await?;
        self.publish_copied(next, &BTreeSet::new()).await
    }

    /// As [`Cluster::publish_map`], by whoever holds the place of the publisher. The rows of `copied` are at their new owner.
    pub(crate) async fn publish_copied(
        &self,
        next: &ShardMap,
        copied: &BTreeSet<Bucket>,
    ) -> Result<Vec<Handover>, PublishError> {
        let current = self.map();
        current.check_successor(next, HANDOVERS_MAX)?;
        let handovers = current.handovers_to(next);
        if let Some(shard) = next.shards().iter().find(|shard| self.shard(shard.id).is_none()) {
            return Err(PublishError::UnknownShard(shard.id));
        }
        self.0.directory.keep_map(next)?;
        self.fence_all(&current, next, &handovers, copied).await?;
        self.0.directory.publish_map(next)?;
        self.0.router.catch_up(next.clone());
        Ok(handovers)
    }

    /// Givers first, so that no bucket has two owners at any instant.
    async fn fence_all(
        &self,
        current: &ShardMap,
        next: &ShardMap,
        handovers: &[Handover],
        copied: &BTreeSet<Bucket>,
    ) -> Result<(), PublishError> {
        let mut given = Vec::new();
        for described in current.shards() {
            let leaving: Vec<_> = handovers.iter().filter(|handover| handover.from == described.id).copied().collect();
            if leaving.is_empty() {
                continue;
            }
            if let Err(error) = self.give(described.id, &leaving, next.version(), copied).await {
                // What was given before goes back: nobody has taken it yet.
                for shard in given {
                    self.take(shard, current).await.map_err(|source| PublishError::Shard { shard, source })?;
                }
                return Err(error);
            }
            given.push(described.id);
        }
        let take = async |shard| self.take(shard, next).await.map_err(|source| PublishError::Shard { shard, source });
        join_all(next.shards().iter().map(|described| take(described.id))).await.into_iter().collect()
    }

    /// Gives buckets away, unless one has rows that were not copied. The transaction keeps a first row from slipping in.
    async fn give(
        &self,
        shard: ShardId,
        leaving: &[Handover],
        version: MapVersion,
        copied: &BTreeSet<Bucket>,
    ) -> Result<(), PublishError> {
        let failed = |source| PublishError::Shard { shard, source };
        let db = self.shard(shard).ok_or(PublishError::UnknownShard(shard))?.governed();
        let list: Vec<_> = leaving.iter().map(|handover| json!([handover.bucket.get(), handover.to.0])).collect();
        let list = Value::Json(Json::from(list).to_string());
        let (must_be_fenced, must_be_empty): (Vec<_>, Vec<_>) =
            leaving.iter().map(|handover| handover.bucket).partition(|bucket| copied.contains(bucket));
        let mut look = Vec::new();
        for (question, buckets) in [(HELD, must_be_empty), (UNFENCED, must_be_fenced)] {
            // Writers wait, so nothing is asked of no bucket.
            if !buckets.is_empty() {
                let buckets: Vec<_> = buckets.iter().map(|bucket| json!([bucket.get()])).collect();
                look.push(Statement::of(question).bind(Value::Json(Json::from(buckets).to_string())));
            }
        }
        let looks = look.len();
        if db.engine() == Engine::Postgres {
            // The embedded engine has one writer. Here the lock comes first and the look in a statement of its own.
            look.insert(0, Statement::of(LOCK).bind(list.clone()));
        }
        let (tx, rows) = db.begin_with(&look).await.map_err(failed)?;
        if let Some(row) = rows.iter().rev().take(looks).find_map(|rows| rows.first()) {
            let number = row.int(0).map_err(|error| failed(error.into()))?;
            let handover = leaving.iter().find(|handover| i64::from(handover.bucket.get()) == number);
            return Err(PublishError::NotEmpty(*handover.unwrap_or(&leaving[0])));
        }
        let give = match db.engine() {
            Engine::Postgres => Statement::of(GIVE_SERVER).bind(list).bind(version.0),
            Engine::Sqlite => Statement::of(GIVE).bind(version.0).bind(list.clone()).bind(list),
        };
        tx.commit_with(vec![give]).await.map(drop).map_err(failed)
    }

    /// Writes what a map says of one shard's buckets; waits for the writer in flight and refuses the old epochs after it.
    async fn take(&self, shard: ShardId, map: &ShardMap) -> Result<(), DbError> {
        let Some(db) = self.shard(shard).map(Shard::governed) else { return Ok(()) };
        let list: Vec<_> = map.buckets_of(shard).map(|(bucket, epoch)| json!([bucket.get(), epoch.0])).collect();
        let version = map.version().0;
        if db.engine() == Engine::Postgres {
            return take_on_server(db, &list, version).await;
        }
        let list = Value::Json(Json::from(list).to_string());
        let retire = Statement::of(RETIRE).bind(version).bind(list.clone());
        let tx = db.begin().await?;
        tx.commit_with(vec![retire, Statement::of(OWN).bind(version).bind(list)]).await.map(drop)
    }

    /// Goes on with a publication that somebody began, by whoever holds the place of the publisher.
    pub(crate) async fn finish_begun(&self) -> Result<(), PublishError> {
        let current = self.map();
        let newest = self.newest_fenced().await?;
        if newest <= current.version() {
            return Ok(());
        }
        let next = self.0.directory.map(newest.0)?;
        let handovers = current.handovers_to(&next);
        let copied = crate::relocation::copied_by(self.0.control.db(), newest).await;
        let copied = copied.map_err(|source| PublishError::Shard { shard: CONTROL, source })?;
        match self.fence_all(&current, &next, &handovers, &copied).await {
            // A bucket was filled before it could be given away: the old map is in force again everywhere.
            Err(PublishError::NotEmpty(_)) => return Ok(()),
            outcome => outcome?,
        }
        self.0.directory.publish_map(&next)?;
        self.0.router.catch_up(next);
        Ok(())
    }

    /// The newest map that some shard follows.
    pub(crate) async fn newest_fenced(&self) -> Result<MapVersion, PublishError> {
        let mut newest = self.map().version();
        for described in self.map().shards() {
            let Some(db) = self.database(described.id) else { continue };
            let asked = db.query(Statement::of(NEWEST)).await;
            let version = |rows: Vec<Row>| rows.first().map_or(Ok(0), |row| row.count(0));
            let found = asked.and_then(|rows| version(rows).map_err(DbError::from));
            let failed = |source| PublishError::Shard { shard: described.id, source };
            newest = newest.max(MapVersion(found.map_err(failed)?));
        }
        Ok(newest)
    }
}

/// In steps that may be interrupted: each says what the map says, and saying it again changes nothing.
async fn take_on_server(db: &Db, list: &[Json], version: u64) -> Result<(), DbError> {
    let all = Value::Json(Json::from(list).to_string());
    // Each call is a transaction, and a trip: writers wait meanwhile.
    db.query(Statement::of(RETIRE_SERVER).bind(all.clone()).bind(version)).await?;
    let pending = db.query(Statement::of(PENDING).bind(all)).await?;
    let pending: Result<Vec<_>, DbError> =
        pending.iter().map(|row| Ok(json!([row.count(0)?, row.count(1)?]))).collect();
    for some in pending?.chunks(LOCKED_MAX) {
        let some = Value::Json(Json::from(some).to_string());
        db.query(Statement::of(TAKE_SERVER).bind(some).bind(version)).await?;
    }
    Ok(())
}

/// Goes on with a publication that was interrupted after some shard had been fenced.
pub(crate) async fn finish_interrupted(cluster: &Cluster) -> Result<(), OpenError> {
    if !cluster.is_governed() {
        // This program may not; one that may has begun it and goes on. Until then the old map is refused by the fence.
        return Ok(());
    }
    let _one_at_a_time = cluster.0.directory.publishing().await?;
    cluster.refresh_map()?;
    let failed = |error| OpenError::Publish(Box::new(error));
    cluster.finish_begun().await.map_err(failed)?;
    let lifted = crate::relocation::lift_abandoned(cluster).await;
    lifted.map_err(|source| failed(PublishError::Shard { shard: CONTROL, source }))
}
