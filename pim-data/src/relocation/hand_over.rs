//! Who owns the buckets while they move: receiving, fencing, lifting the fence, and the map that gives them away.

use std::collections::BTreeSet;

use pim_core::shard::{Bucket, Epoch, MapVersion, ShardId};

use super::MoveError;
use super::copy::End;
use super::journal::{self, MoveStep};
use super::layout::list_of;
use crate::backend::{Db, DbError, Engine, SqlPair, Statement, Value};
use crate::cluster::Cluster;

fn generated(text: String) -> Statement {
    Statement::of(SqlPair::generated(text))
}

fn failed(end: &End) -> impl FnOnce(DbError) -> MoveError + use<> {
    let shard = end.shard;
    move |source| MoveError::Shard { shard, source }
}

/// Lets the target take copies of rows that it does not own.
pub(super) async fn receive(target: &End, buckets: &[(Bucket, Epoch)], version: MapVersion) -> Result<(), MoveError> {
    let upsert = |(bucket, epoch): &(Bucket, Epoch)| {
        let text = "INSERT INTO pim_bucket_owned AS o (bucket, epoch, state, map_version) VALUES (?, ?, 'incoming', ?) \
                    ON CONFLICT (bucket) DO UPDATE SET state = 'incoming', moved_to = NULL WHERE o.state = 'moved'";
        Statement::same(text).bind(bucket.get()).bind(epoch.0).bind(version.0)
    };
    let marked = async {
        let tx = target.db.begin().await?;
        tx.commit_with(buckets.iter().map(upsert).collect()).await.map(drop)
    };
    marked.await.map_err(failed(target))
}

/// Those of the buckets that the target is to receive.
pub(super) async fn incoming(target: &End, buckets: &[Bucket]) -> Result<Vec<Bucket>, MoveError> {
    let list = list_of(buckets);
    let text = format!("SELECT bucket FROM pim_bucket_owned WHERE bucket IN ({list}) AND state = 'incoming'");
    let rows = target.db.query(generated(text)).await.map_err(failed(target))?;
    let found: BTreeSet<i64> = rows.iter().map(|row| row.int(0)).collect::<Result<_, _>>()?;
    Ok(buckets.iter().filter(|bucket| found.contains(&i64::from(bucket.get()))).copied().collect())
}

/// The target forgets that it was to receive.
pub(super) async fn decline(target: &End, buckets: &[Bucket]) -> Result<(), MoveError> {
    let list = list_of(buckets);
    let forget = format!("DELETE FROM pim_bucket_owned WHERE bucket IN ({list}) AND state = 'incoming'");
    target.db.change(generated(forget)).await.map(drop).map_err(failed(target))
}

/// From here on the source refuses writes of the buckets; whoever writes now has committed or is refused.
pub(super) async fn fence(source: &End, buckets: &[Bucket]) -> Result<(), MoveError> {
    let fenced = match source.db.engine() {
        Engine::Postgres => fence_on_server(&source.db, buckets).await,
        Engine::Sqlite => fence_in_file(&source.db, buckets).await,
    };
    if fenced.map_err(failed(source))? == buckets.len() as u64 {
        return Ok(());
    }
    Err(MoveError::Elsewhere { bucket: buckets[0], owner: source.shard })
}

/// How many of the buckets are owned there, all of which are fenced then. One trip: writers wait from its first lock on.
async fn fence_on_server(db: &Db, buckets: &[Bucket]) -> Result<u64, DbError> {
    let rows = db.change(Statement::of(SqlPair::postgres("SELECT pim_drain(?)")).bind(numbers(buckets))).await?;
    rows.first().map_or(Ok(0), |row| Ok(row.count(0)?))
}

/// The embedded engine has one writer, so nobody is in the middle of a write.
async fn fence_in_file(db: &Db, buckets: &[Bucket]) -> Result<u64, DbError> {
    let list = list_of(buckets);
    let text = format!(
        "UPDATE pim_bucket_owned SET state = 'draining' WHERE bucket IN ({list}) AND state IN ('owned', 'draining') \
         RETURNING bucket"
    );
    let (tx, answers) = db.begin_with(&[generated(text)]).await?;
    let count = answers.first().map_or(0, Vec::len);
    if count == buckets.len() {
        tx.commit().await?;
    } else {
        tx.rollback().await?;
    }
    Ok(count as u64)
}

/// The source takes writes again.
pub(super) async fn lift(source: &Db, buckets: &[Bucket]) -> Result<(), DbError> {
    if source.engine() == Engine::Postgres {
        let lift = Statement::of(SqlPair::postgres("SELECT pim_lift(?)")).bind(numbers(buckets));
        return source.change(lift).await.map(drop);
    }
    let list = list_of(buckets);
    let text = format!("UPDATE pim_bucket_owned SET state = 'owned' WHERE bucket IN ({list}) AND state = 'draining'");
    source.change(generated(text)).await.map(drop)
}

/// Buckets as functions of the database take them.
fn numbers(buckets: &[Bucket]) -> Value {
    let list: Vec<_> = buckets.iter().map(|bucket| serde_json::json!([bucket.get()])).collect();
    Value::Json(serde_json::Value::from(list).to_string())
}

/// Buckets whose rows a move has brought to a new owner, and to which: the map of this version may give them to nobody else.
pub(crate) async fn copied_by(control: &Db, version: MapVersion) -> Result<BTreeSet<(Bucket, ShardId)>, DbError> {
    let moves = journal::open(control).await?;
    // Also where the map had its name already, and a power loss took that back.
    let is_there = |step| matches!(step, MoveStep::Activating | MoveStep::Activated);
    let ready = |it: &super::MoveRecord| is_there(it.step) && it.map_version == version.0;
    let to = |it: super::MoveRecord| it.buckets.into_iter().map(move |bucket| (bucket, it.target));
    Ok(moves.into_iter().filter(ready).flat_map(to).collect())
}

/// Lifts the fences of moves that nobody carries out any more, so that their buckets take writes until one is resumed. What the
/// source has given away by then is not its own any more: that is no fence. Whether any source was told so.
pub(crate) async fn lift_abandoned(cluster: &Cluster) -> Result<bool, DbError> {
    let control = cluster.0.control.db();
    let fenced: Vec<_> = journal::open(control).await?.into_iter().filter(|it| it.step.is_shut()).collect();
    if fenced.is_empty() {
        return Ok(false);
    }
    let Ok(Some(_moving)) = cluster.0.directory.moving() else {
        // A mover that is alive lifts its own. A backup or a retention run holds that place as well, and lifts nothing.
        cluster.leave_unfinished();
        return Ok(false);
    };
    for it in fenced {
        if let Some(source) = cluster.shard(it.source) {
            lift(source.governed(), &it.buckets).await?;
        }
    }
    Ok(true)
}
