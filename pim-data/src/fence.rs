//! Publishing a new map: keep it, fence every shard, then let everybody read it.

mod error;
mod rollback;
mod standby;
mod undertaking;

pub use error::PublishError;
pub(crate) use undertaking::finish_interrupted;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use pim_core::deadline::Deadline;
use pim_core::shard::{Bucket, HANDOVERS_MAX, Handover, MapVersion, Route, ShardId, ShardMap};

use serde_json::{Value as Json, json};
use tokio::time::{Instant, timeout_at};

use crate::backend::{Db, DbError, Engine, Row, SqlPair, Statement, Value};
use crate::cluster::{CONTROL, Cluster, PreparedMap, Publishing, Shard};

use crate::retry::Backoff;

/// How long somebody who publishes waits for a primary that takes no writes.
const READY_MAX: Duration = Duration::from_secs(2);

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

/// Whether there is anything to verify.
const TRAIL: SqlPair = SqlPair::same("SELECT seq FROM audit LIMIT 1");
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
pub(crate) fn pairs() -> [SqlPair; 12] {
    [TRAIL, HELD, UNFENCED, HERE, GIVE, RETIRE, OWN, NEWEST, GIVE_SERVER, RETIRE_SERVER, PENDING, TAKE_SERVER]
}

/// How patiently a reader that found nothing waits for the map of a bucket that has left.
const LEFT: Backoff =
    Backoff { pause_first: Duration::from_millis(2), pause_max: Duration::from_millis(50), attempts_max: 12 };

/// A bucket, and the shard that has its rows already.
type Copied = (Bucket, ShardId);

/// Which database is asked of a shard; `None` to ask none.
type Instead = (ShardId, Option<Db>);

/// From the map in force to the next one.
struct Step<'a> {
    current: Arc<ShardMap>,
    next: &'a ShardMap,
    handovers: Vec<Handover>,
}

impl Step<'_> {
    /// The shards that are told what the next map says of them: those that serve, and those that have until now.
    fn takers(&self) -> impl Iterator<Item = ShardId> + '_ {
        let serves = |map: &ShardMap, id| map.serving().any(|described| described.id == id);
        let all = self.next.shards().iter().map(|described| described.id);
        all.filter(move |id| serves(self.next, *id) || serves(&self.current, *id))
    }
}

impl Cluster {
    /// Whether nothing was found by this route because its bucket lives elsewhere by now. Takes over the newer map then, and
    /// waits a little when there is none yet.
    pub(crate) async fn has_left(&self, route: Route, deadline: Deadline, tries: u32) -> Result<bool, DbError> {
        let Some(shard) = self.shard(route.shard) else {
            // It is on its way, or has gone.
            return Ok(self.is_found(route, deadline).await);
        };
        let is_here = match shard.has(route.bucket, deadline.instant()).await {
            // Another one has taken its place: it is looked for there.
            Err(DbError::Closed) if self.is_replaced(&shard) => false,
            found => found?,
        };
        if is_here || tries >= LEFT.attempts_max {
            return Ok(false);
        }
        // A map that cannot be read now is read at the next try.
        let _unreadable = self.refresh_map_until(deadline.instant()).await;
        let is_newer = self.router().map().owner(route.bucket).0 != route.shard;
        Ok(is_newer || LEFT.wait(tries, deadline).await)
    }

    /// Waits until a shard that a route leads to is open here, or the route leads elsewhere. Whether that came in time.
    pub(crate) async fn is_found(&self, route: Route, deadline: Deadline) -> bool {
        let _unreadable = self.refresh_map_until(deadline.instant()).await;
        let is_there = || self.router().map().owner(route.bucket).0 != route.shard || self.shard(route.shard).is_some();
        let mut changes = self.changes();
        timeout_at(deadline.instant(), changes.wait_for(|_| is_there())).await.is_ok()
    }

    /// Publishes a map while writes run. Writers that still hold the old one are refused by the fence, take over the new
    /// one and go on. Returns the buckets that changed hands.
    ///
    /// Shards and servers that the map in force does not name are opened first, beside those in use, and may be refused: then
    /// nothing has changed. They take their places before anybody is sent there; what had these is closed when nobody uses it
    /// any more, at the latest when the longest call is over. Other processes follow within a second.
    ///
    /// The order makes an interruption harmless: the map is kept first, each shard is fenced in a transaction of its own,
    /// the map is published last; [`Cluster::open`] finishes what was begun. Once it has begun to fence, it goes on although
    /// the future is dropped, and what fails is tried again at every look for maps: a shard that is fenced by a map that
    /// nobody can read refuses its writers. The map in force may be published again; nothing changes then.
    ///
    /// # Errors
    /// [`PublishError`]; the running map stays, or the new one comes a little later where [`PublishError::Shard`] says so.
    pub async fn publish_map(&self, next: &ShardMap) -> Result<Vec<Handover>, PublishError> {
        let before = self.map();
        // Servers that are left may be lost: what they know is asked of those that take their places.
        let left: Vec<_> = self.0.fleet.lacks(next).into_iter().map(|described| (described.id, None)).collect();
        let publishing = self.publishing().await?;
        self.go_on(&publishing, &left).await?;
        drop(publishing);
        let current = self.map();
        if current.digest() == next.digest() {
            // Somebody had begun to publish this very map, or it has come into force since it was tried.
            return Ok(before.handovers_to(next));
        }
        let current = self.step_to(next)?.current;
        // This takes its time, in which others may publish: it is looked again afterwards.
        let green = self.open_green(&current, next).await.map_err(Box::new)?;
        let publishing = self.publishing().await?;
        let instead: Vec<_> = green.iter().map(|shard| (shard.id(), Some(shard.db().clone()))).collect();
        self.go_on(&publishing, &instead).await?;
        let step = self.step_to(next)?;
        self.may_follow(&step, &green).await?;
        self.0.directory.remember(green.iter().map(Shard::id)).await?;
        let (cluster, next, handovers) = (self.clone(), next.clone(), step.handovers);
        let published = async move {
            let step = cluster.step_to(&next)?;
            cluster.0.directory.keep_map(&next)?;
            cluster.come_into_force(&publishing, &step, green, &BTreeSet::new()).await?;
            pim_core::info!("map.published", map_version = next.version().0, handovers = step.handovers.len());
            Ok(())
        };
        self.see_through(published).await?;
        Ok(handovers)
    }

    /// Refuses a map for what can be known before anything is changed for it.
    async fn may_follow(&self, step: &Step<'_>, green: &[Shard]) -> Result<(), PublishError> {
        let (fleet, next) = (&self.0.fleet, step.next);
        self.may_take_places(green).await.map_err(Box::new)?;
        let is_green = |id: ShardId| green.iter().any(|shard| shard.id() == id);
        let lacking = fleet.lacks(next).into_iter().map(|described| described.id).find(|id| !is_green(*id));
        // Where one is missing nobody knows what would be left behind.
        let missing = fleet.misses(&step.current).into_iter().find(|id| !is_green(*id));
        if let Some(id) = lacking.or(missing) {
            return Err(PublishError::UnknownShard(id));
        }
        let found = |id: ShardId| green.iter().find(|shard| shard.id() == id).cloned().or_else(|| self.shard(id));
        let is_governed = |id: &ShardId| found(*id).is_some_and(|shard| shard.is_governed());
        if let Some(id) = step.takers().find(|id| !is_governed(id)) {
            return Err(PublishError::NotOwner(id));
        }
        self.takes_writes(step, green, Instant::now() + READY_MAX).await?;
        for shard in fleet.left_by(next) {
            let id = shard.id();
            let asked = shard.db().query(Statement::of(TRAIL)).await;
            if !asked.map_err(|source| PublishError::Shard { shard: id, source })?.is_empty() {
                return Err(PublishError::StillNeeded(id));
            }
        }
        Ok(())
    }

    /// Opened shards take their places, every shard is fenced, and the map is published; else all is as it was.
    async fn come_into_force(
        &self,
        publishing: &Publishing,
        step: &Step<'_>,
        green: Vec<Shard>,
        copied: &BTreeSet<Copied>,
    ) -> Result<(), PublishError> {
        let blue = self.turn_green(publishing, green);
        let published = async {
            self.fence_all(step, copied).await?;
            self.0.directory.publish_map(step.next)?;
            Ok(())
        };
        match published.await {
            Ok(()) => {
                self.route_by(publishing, step.next, blue);
                Ok(())
            }
            Err(error) => {
                self.turn_back(publishing, blue);
                Err(error)
            }
        }
    }

    /// Publishes a map that gives buckets away whose rows a move has brought to their new owners, by whoever holds the place of
    /// the publisher. Writers wait meanwhile, so the map has been prepared, and has yet to settle afterwards.
    pub(crate) async fn publish_moved(&self, next: ShardMap, prepared: PreparedMap) -> Result<(), PublishError> {
        self.fence_moved(&self.step_to(&next)?).await?;
        prepared.publish()?;
        self.route_on(next);
        Ok(())
    }

    /// Has some shards follow all of the map in force, whatever they said before, and waits until the map outlives a power
    /// loss. By whoever holds the place of the publisher.
    pub(crate) async fn settle_map(&self, shards: [ShardId; 2]) -> Result<(), PublishError> {
        self.0.directory.settle_map()?;
        let map = self.map();
        for shard in shards {
            self.take(shard, &map).await?;
        }
        Ok(())
    }

    /// Forgets a map that was kept to come next, and did not. By whoever holds the place of the publisher.
    pub(crate) async fn forget_prepared(&self, publishing: &Publishing) -> Result<(), PublishError> {
        self.read_map(publishing).await?;
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
        Ok(Step { handovers: current.handovers_to(next), current, next })
    }

    /// Givers first, so that no bucket has two owners at any instant. Each shard follows all of the map then, whatever it said
    /// before. The rows of `copied` are at their new owner.
    async fn fence_all(&self, step: &Step<'_>, copied: &BTreeSet<Copied>) -> Result<(), PublishError> {
        self.give_all(step, copied).await?;
        join_all(step.takers().map(|id| self.take(id, step.next))).await.into_iter().collect()
    }

    /// As far as a move needs it whose rows are at their new owner, while writers wait: nobody but its buckets' owners is asked.
    async fn fence_moved(&self, step: &Step<'_>) -> Result<(), PublishError> {
        let moved = step.handovers.iter().map(|handover| (handover.bucket, handover.to)).collect();
        self.give_all(step, &moved).await?;
        let takers: BTreeSet<ShardId> = step.handovers.iter().map(|handover| handover.to).collect();
        let version = step.next.version().0;
        for shard in takers {
            let gained = step.next.buckets_of(shard).filter(|(bucket, _)| moved.contains(&(*bucket, shard)));
            let gained: Vec<_> = gained.map(|(bucket, epoch)| json!([bucket.get(), epoch.0])).collect();
            let open = self.shard(shard).ok_or(PublishError::UnknownShard(shard))?;
            let db = open.governed();
            let took = match db.engine() {
                Engine::Postgres => standby::told(db, own_on_server(db, &gained, version)).await,
                Engine::Sqlite => db.change(Statement::of(OWN).bind(version).bind(list_of(gained))).await.map(drop),
            };
            took.map_err(|source| PublishError::Shard { shard, source })?;
        }
        Ok(())
    }

    /// What was given before somebody could not give goes back: nobody has taken it yet.
    async fn give_all(&self, step: &Step<'_>, copied: &BTreeSet<Copied>) -> Result<(), PublishError> {
        let mut given = Vec::new();
        for described in step.current.shards() {
            let leaving: Vec<_> =
                step.handovers.iter().filter(|handover| handover.from == described.id).copied().collect();
            if leaving.is_empty() {
                continue;
            }
            if let Err(error) = self.give(described.id, &leaving, step.next.version(), copied).await {
                for shard in given {
                    self.take(shard, &step.current).await?;
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
        copied: &BTreeSet<Copied>,
    ) -> Result<(), PublishError> {
        let failed = |source| PublishError::Shard { shard, source };
        let open = self.shard(shard).ok_or(PublishError::UnknownShard(shard))?;
        let db = open.governed();
        let hindered = match db.engine() {
            Engine::Postgres => standby::told(db, give_on_server(db, leaving, version, copied)).await,
            Engine::Sqlite => give_in_file(db, leaving, version, copied).await,
        };
        let Some(number) = hindered.map_err(failed)? else { return Ok(()) };
        let handover = leaving.iter().find(|handover| i64::from(handover.bucket.get()) == number);
        Err(PublishError::NotEmpty(*handover.unwrap_or(&leaving[0])))
    }

    /// Writes what a map says of one shard's buckets; waits for the writer in flight and refuses the old epochs after it.
    async fn take(&self, shard: ShardId, map: &ShardMap) -> Result<(), PublishError> {
        let open = self.shard(shard).ok_or(PublishError::UnknownShard(shard))?;
        take(open.governed(), shard, map).await.map_err(|source| PublishError::Shard { shard, source })
    }

    /// Takes over what others have published, and goes on with what they have begun to.
    pub(crate) async fn catch_up(&self, publishing: &Publishing) -> Result<(), PublishError> {
        self.go_on(publishing, &[]).await
    }

    /// As [`Cluster::catch_up`]; of some shards other servers are asked what they follow, or none.
    async fn go_on(&self, publishing: &Publishing, instead: &[Instead]) -> Result<(), PublishError> {
        self.read_map(publishing).await?;
        let newest = self.newest_of(instead).await?;
        self.finish_begun(publishing, newest).await
    }

    /// Goes on with a publication that somebody began, if there is one.
    async fn finish_begun(&self, publishing: &Publishing, newest: MapVersion) -> Result<(), PublishError> {
        if newest <= self.map().version() {
            return Ok(());
        }
        let (cluster, publishing) = (self.clone(), publishing.clone());
        self.see_through(async move { cluster.finish(&publishing, newest).await }).await
    }

    async fn finish(&self, publishing: &Publishing, newest: MapVersion) -> Result<(), PublishError> {
        let current = self.map();
        let next = self.0.directory.map(newest.0)?;
        let step = Step { handovers: current.handovers_to(&next), current, next: &next };
        let copied = crate::relocation::copied_by(self.0.control.db(), newest).await;
        let copied = copied.map_err(|source| PublishError::Shard { shard: CONTROL, source })?;
        let green = match self.open_rest(&next).await {
            Ok(green) => green,
            // Nobody was sent there yet, and nothing was brought there: the map in force holds.
            Err(_lost) if copied.is_empty() => return self.take_back(&step).await,
            Err(error) => return Err(Box::new(error).into()),
        };
        self.takes_writes(&step, &green, Instant::now()).await?;
        match self.come_into_force(publishing, &step, green, &copied).await {
            // A bucket was filled before it could be given away: the old map is in force again everywhere.
            Err(PublishError::NotEmpty(_)) => Ok(()),
            outcome => outcome,
        }
    }

    /// Has every shard follow the map in force again, and forgets the one that was to come: takers first, so that no bucket has two
    /// owners at any instant.
    async fn take_back(&self, step: &Step<'_>) -> Result<(), PublishError> {
        let gains = |id: &ShardId| step.handovers.iter().any(|handover| handover.to == *id);
        let (takers, others): (Vec<_>, Vec<_>) = step.current.serving().map(|described| described.id).partition(gains);
        for shard in takers.into_iter().chain(others) {
            self.take(shard, &step.current).await?;
        }
        self.0.directory.forget_map(step.next.version().0)?;
        pim_core::warn!("map.taken_back", map_version = step.next.version().0);
        Ok(())
    }

    /// The newest map that some shard follows.
    pub(crate) async fn newest_fenced(&self) -> Result<MapVersion, PublishError> {
        self.newest_of(&[]).await
    }

    async fn newest_of(&self, instead: &[Instead]) -> Result<MapVersion, PublishError> {
        let mut newest = self.map().version();
        for described in self.map().serving() {
            let db = match instead.iter().find(|(id, _)| *id == described.id) {
                Some((_, None)) => continue,
                Some((_, Some(db))) => Some(db.clone()),
                None => {
                    self.is_settled(described.id).await?;
                    self.database(described.id)
                }
            };
            // What it follows is not known otherwise.
            let db = db.ok_or(PublishError::UnknownShard(described.id))?;
            let asked = db.query(Statement::of(NEWEST)).await;
            let version = |rows: Vec<Row>| rows.first().map_or(Ok(0), |row| row.count(0));
            let found = asked.and_then(|rows| version(rows).map_err(DbError::from));
            let failed = |source| PublishError::Shard { shard: described.id, source };
            newest = newest.max(MapVersion(found.map_err(failed)?));
        }
        Ok(newest)
    }
}

/// As [`Cluster::take`], at its database.
async fn take(db: &Db, shard: ShardId, map: &ShardMap) -> Result<(), DbError> {
    let list: Vec<_> = map.buckets_of(shard).map(|(bucket, epoch)| json!([bucket.get(), epoch.0])).collect();
    let version = map.version().0;
    if db.engine() == Engine::Postgres {
        return standby::told(db, take_on_server(db, list, version)).await;
    }
    let list = list_of(list);
    let retire = Statement::of(RETIRE).bind(version).bind(list.clone());
    let tx = db.begin().await?;
    tx.commit_with(vec![retire, Statement::of(OWN).bind(version).bind(list)]).await.map(drop)
}

fn list_of(elements: Vec<Json>) -> Value {
    Value::Json(Json::from(elements).to_string())
}

/// The bucket that may not go, if there is one. One trip: writers wait meanwhile.
async fn give_on_server(
    db: &Db,
    leaving: &[Handover],
    version: MapVersion,
    copied: &BTreeSet<Copied>,
) -> Result<Option<i64>, DbError> {
    let element = |it: &Handover| json!([it.bucket.get(), it.to.0, copied.contains(&(it.bucket, it.to))]);
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
    copied: &BTreeSet<Copied>,
) -> Result<Option<i64>, DbError> {
    let (must_be_fenced, must_be_empty): (Vec<_>, Vec<_>) =
        leaving.iter().map(|it| (it.bucket, it.to)).partition(|given| copied.contains(given));
    let mut look = Vec::new();
    for (question, buckets) in [(HELD, must_be_empty), (UNFENCED, must_be_fenced)] {
        if !buckets.is_empty() {
            let buckets = buckets.iter().map(|(bucket, _)| json!([bucket.get()])).collect();
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
