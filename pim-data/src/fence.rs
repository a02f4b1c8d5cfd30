//! Publishing a new map: keep it, fence every shard, then let everybody read it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use pim_core::deadline::Deadline;
use pim_core::shard::{Bucket, HANDOVERS_MAX, Handover, MapError, MapVersion, Route, ShardId, ShardMap};

use serde_json::{Value as Json, json};

use crate::backend::{Db, DbError, Engine, Row, SqlPair, Statement, Value};
use crate::cluster::{CONTROL, Cluster, DirectoryError, OpenError, PreparedMap, Shard};

use crate::retry::Backoff;

/// Most buckets that one transaction of a server locks: its lock table is shared by everybody.
const LOCKED_MAX: usize = 256;

const HELD: SqlPair =
    SqlPair::sqlite("SELECT bucket FROM key_head WHERE bucket IN (SELECT value ->> 0 FROM json_each(?)) LIMIT 1");
/// Whether a bucket's rows are to be read here.
pub(crate) const HERE: SqlPair =
    SqlPair::same("SELECT 1 FROM pim_bucket_owned WHERE bucket = ? AND state IN ('owned', 'draining')");
/// A copy is whole only as long as nobody could write at the source since.
const UNFENCED: SqlPair = SqlPair::sqlite(
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
const GIVE_SERVER: SqlPair = SqlPair::postgres("SELECT pim_hand_over(?, ?)");
const RETIRE_SERVER: SqlPair = SqlPair::postgres("SELECT pim_retire(?, ?)");
/// Of buckets and epochs, those that the database does not say so.
const PENDING: SqlPair = SqlPair::postgres(
    "SELECT (taken.value ->> 0)::bigint, (taken.value ->> 1)::bigint FROM jsonb_array_elements(?) AS taken(value) \
     WHERE NOT EXISTS (SELECT FROM pim_bucket_owned o WHERE o.bucket = (taken.value ->> 0)::bigint \
     AND o.epoch = (taken.value ->> 1)::bigint AND o.state = 'owned')",
);
const TAKE_SERVER: SqlPair = SqlPair::postgres("SELECT pim_take(?, ?)");

/// Every statement of this room.
pub(crate) fn pairs() -> [SqlPair; 11] {
    [HELD, UNFENCED, HERE, GIVE, RETIRE, OWN, NEWEST, GIVE_SERVER, RETIRE_SERVER, PENDING, TAKE_SERVER]
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

/// From the map in force to the next one.
struct Step<'a> {
    current: Arc<ShardMap>,
    next: &'a ShardMap,
    handovers: Vec<Handover>,
}

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
        self.publish(next).await
    }

    /// As [`Cluster::publish_map`], by whoever holds the place of the publisher.
    async fn publish(&self, next: &ShardMap) -> Result<Vec<Handover>, PublishError> {
        let step = self.step_to(next)?;
        self.0.directory.keep_map(next)?;
        self.fence_all(&step, &BTreeSet::new()).await?;
        self.0.directory.publish_map(next)?;
        self.0.router.catch_up(next.clone());
        Ok(step.handovers)
    }

    /// Publishes a map that gives buckets away whose rows a move has brought to their new owners, by whoever holds the place of
    /// the publisher. Writers wait meanwhile, so the map has been prepared, and has yet to settle afterwards.
    pub(crate) async fn publish_moved(&self, next: ShardMap, prepared: PreparedMap) -> Result<(), PublishError> {
        self.fence_moved(&self.step_to(&next)?).await?;
        prepared.publish()?;
        self.0.router.catch_up(next);
        Ok(())
    }

    /// Has some shards follow all of the map in force, whatever they said before, and waits until the map outlives a power
    /// loss. By whoever holds the place of the publisher.
    pub(crate) async fn settle_map(&self, shards: [ShardId; 2]) -> Result<(), PublishError> {
        self.0.directory.settle_map()?;
        let map = self.map();
        for shard in shards {
            self.take(shard, &map).await.map_err(|source| PublishError::Shard { shard, source })?;
        }
        Ok(())
    }

    /// Forgets a map that was kept to come next, and did not. By whoever holds the place of the publisher.
    pub(crate) async fn forget_prepared(&self) -> Result<(), PublishError> {
        self.refresh_map()?;
        let version = self.map().version();
        // Shards that follow it have begun to: whoever publishes next goes on with that.
        if self.newest_fenced().await? <= version {
            self.0.directory.forget_map(version.0 + 1)?;
        }
        Ok(())
    }

    /// A step to the next map, checked.
    fn step_to<'a>(&self, next: &'a ShardMap) -> Result<Step<'a>, PublishError> {
        let current = self.map();
        current.check_successor(next, HANDOVERS_MAX)?;
        if let Some(shard) = next.shards().iter().find(|shard| self.shard(shard.id).is_none()) {
            return Err(PublishError::UnknownShard(shard.id));
        }
        Ok(Step { handovers: current.handovers_to(next), current, next })
    }

    /// Givers first, so that no bucket has two owners at any instant. Each shard follows all of the map then, whatever it said
    /// before. The rows of `copied` are at their new owner.
    async fn fence_all(&self, step: &Step<'_>, copied: &BTreeSet<Bucket>) -> Result<(), PublishError> {
        self.give_all(step, copied).await?;
        let take =
            async |shard| self.take(shard, step.next).await.map_err(|source| PublishError::Shard { shard, source });
        join_all(step.next.shards().iter().map(|described| take(described.id))).await.into_iter().collect()
    }

    /// As far as a move needs it whose rows are at their new owner, while writers wait: nobody but its buckets' owners is asked.
    async fn fence_moved(&self, step: &Step<'_>) -> Result<(), PublishError> {
        let moved = step.handovers.iter().map(|handover| handover.bucket).collect();
        self.give_all(step, &moved).await?;
        let takers: BTreeSet<ShardId> = step.handovers.iter().map(|handover| handover.to).collect();
        let version = step.next.version().0;
        for shard in takers {
            let gained = step.next.buckets_of(shard).filter(|(bucket, _)| moved.contains(bucket));
            let gained: Vec<_> = gained.map(|(bucket, epoch)| json!([bucket.get(), epoch.0])).collect();
            let db = self.shard(shard).ok_or(PublishError::UnknownShard(shard))?.governed();
            let took = match db.engine() {
                Engine::Postgres => own_on_server(db, &gained, version).await,
                Engine::Sqlite => db.change(Statement::of(OWN).bind(version).bind(list_of(gained))).await.map(drop),
            };
            took.map_err(|source| PublishError::Shard { shard, source })?;
        }
        Ok(())
    }

    /// What was given before somebody could not give goes back: nobody has taken it yet.
    async fn give_all(&self, step: &Step<'_>, copied: &BTreeSet<Bucket>) -> Result<(), PublishError> {
        let mut given = Vec::new();
        for described in step.current.shards() {
            let leaving: Vec<_> =
                step.handovers.iter().filter(|handover| handover.from == described.id).copied().collect();
            if leaving.is_empty() {
                continue;
            }
            if let Err(error) = self.give(described.id, &leaving, step.next.version(), copied).await {
                for shard in given {
                    let taken = self.take(shard, &step.current).await;
                    taken.map_err(|source| PublishError::Shard { shard, source })?;
                }
                return Err(error);
            }
            given.push(described.id);
        }
        Ok(())
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
        let hindered = match db.engine() {
            Engine::Postgres => give_on_server(db, leaving, version, copied).await,
            Engine::Sqlite => give_in_file(db, leaving, version, copied).await,
        };
        let Some(number) = hindered.map_err(failed)? else { return Ok(()) };
        let handover = leaving.iter().find(|handover| i64::from(handover.bucket.get()) == number);
        Err(PublishError::NotEmpty(*handover.unwrap_or(&leaving[0])))
    }

    /// Writes what a map says of one shard's buckets; waits for the writer in flight and refuses the old epochs after it.
    async fn take(&self, shard: ShardId, map: &ShardMap) -> Result<(), DbError> {
        let Some(db) = self.shard(shard).map(Shard::governed) else { return Ok(()) };
        let list: Vec<_> = map.buckets_of(shard).map(|(bucket, epoch)| json!([bucket.get(), epoch.0])).collect();
        let version = map.version().0;
        if db.engine() == Engine::Postgres {
            return take_on_server(db, list, version).await;
        }
        let list = list_of(list);
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
        let step = Step { handovers: current.handovers_to(&next), current, next: &next };
        let copied = crate::relocation::copied_by(self.0.control.db(), newest).await;
        let copied = copied.map_err(|source| PublishError::Shard { shard: CONTROL, source })?;
        match self.fence_all(&step, &copied).await {
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

fn list_of(elements: Vec<Json>) -> Value {
    Value::Json(Json::from(elements).to_string())
}

/// The bucket that may not go, if there is one. One trip: writers wait meanwhile.
async fn give_on_server(
    db: &Db,
    leaving: &[Handover],
    version: MapVersion,
    copied: &BTreeSet<Bucket>,
) -> Result<Option<i64>, DbError> {
    let element = |it: &Handover| json!([it.bucket.get(), it.to.0, copied.contains(&it.bucket)]);
    let list = list_of(leaving.iter().map(element).collect());
    let rows = db.change(Statement::of(GIVE_SERVER).bind(list).bind(version.0)).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    if matches!(row.get(0), Value::Null) { Ok(None) } else { Ok(Some(row.int(0)?)) }
}

/// As on a server. The embedded engine has one writer, so nothing is locked.
async fn give_in_file(
    db: &Db,
    leaving: &[Handover],
    version: MapVersion,
    copied: &BTreeSet<Bucket>,
) -> Result<Option<i64>, DbError> {
    let (must_be_fenced, must_be_empty): (Vec<_>, Vec<_>) =
        leaving.iter().map(|handover| handover.bucket).partition(|bucket| copied.contains(bucket));
    let mut look = Vec::new();
    for (question, buckets) in [(HELD, must_be_empty), (UNFENCED, must_be_fenced)] {
        if !buckets.is_empty() {
            let buckets = buckets.iter().map(|bucket| json!([bucket.get()])).collect();
            look.push(Statement::of(question).bind(list_of(buckets)));
        }
    }
    let (tx, rows) = db.begin_with(&look).await?;
    if let Some(row) = rows.iter().find_map(|rows| rows.first()) {
        return Ok(Some(row.int(0)?));
    }
    let list = list_of(leaving.iter().map(|it| json!([it.bucket.get(), it.to.0])).collect());
    tx.commit_with(vec![Statement::of(GIVE).bind(version.0).bind(list.clone()).bind(list)]).await?;
    Ok(None)
}

/// In steps that may be interrupted: each says what the map says, and saying it again changes nothing.
async fn take_on_server(db: &Db, list: Vec<Json>, version: u64) -> Result<(), DbError> {
    let all = list_of(list);
    db.change(Statement::of(RETIRE_SERVER).bind(all.clone()).bind(version)).await?;
    let pending = db.query(Statement::of(PENDING).bind(all)).await?;
    let pending: Result<Vec<_>, DbError> =
        pending.iter().map(|row| Ok(json!([row.count(0)?, row.count(1)?]))).collect();
    own_on_server(db, &pending?, version).await
}

/// Each call is a transaction, and a trip.
async fn own_on_server(db: &Db, list: &[Json], version: u64) -> Result<(), DbError> {
    for some in list.chunks(LOCKED_MAX) {
        db.change(Statement::of(TAKE_SERVER).bind(list_of(some.to_vec())).bind(version)).await?;
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
