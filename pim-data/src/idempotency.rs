//! The same submission twice has one effect and one answer.

use std::time::Duration;

use futures_util::future::join_all;
use pim_core::clock::Timestamp;
use pim_core::context::RequestContext;
use pim_core::shard::{Bucket, HomeKey, ShardId};
use serde_json::Value as Json;

use crate::backend::{Db, DbError, Engine, Row, SqlPair, Statement, Value};
use crate::cluster::Cluster;
use crate::consistency::ConsistencyToken;
use crate::unit::UnitError;

/// How long an answer is kept.
pub const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);
const SWEPT_MAX: i64 = 1_000;
/// Longest time of a shard: one that does not answer is left for the next sweep.
const SWEEP_MAX: Duration = Duration::from_secs(5);

/// The answer to a finished submission.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StoredAnswer {
    /// HTTP status.
    pub status: u16,
    /// JSON body.
    pub body: Json,
    /// Lets a later read see at least what the submission wrote, as the first answer's token did.
    pub token: ConsistencyToken,
}

/// A sweep that some shards have failed.
#[derive(Debug, thiserror::Error)]
#[error("{} shards could not be swept of old records; {swept} went on the others", .failed.len())]
#[non_exhaustive]
pub struct SweepError {
    /// How many records went on the shards that answered.
    pub swept: u64,
    /// The others, each with why; the control database is [`CONTROL`](crate::cluster::CONTROL).
    pub failed: Vec<(ShardId, DbError)>,
}

/// The columns and the join by which a statement also looks the request's record up; one bind, [`scope_bind`].
pub(crate) const COLUMNS: &str = "i.body, i.status, i.answer, i.n AS answered";
/// How many they are.
pub(crate) const WIDTH: usize = 4;
pub(crate) const JOIN: &str = "LEFT JOIN idempotency i ON i.scope = ?";

const RECORD: SqlPair = SqlPair::sqlite(
    "INSERT INTO idempotency (scope, bucket, body, status, answer, n, request_id, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
);

/// Finds nothing for a request without a key.
pub(crate) fn scope_bind(cx: &RequestContext) -> Value {
    cx.idempotency().map(|scope| scope.scope().to_vec()).into()
}

/// Ends a unit on a home key whose request was answered before; [`COLUMNS`] begin at `from`.
pub(crate) fn check(cx: &RequestContext, home: HomeKey, row: &Row, from: usize) -> Result<(), UnitError> {
    let Some(scope) = cx.idempotency() else { return Ok(()) };
    if *row.get(from) == Value::Null {
        return Ok(());
    }
    if row.digest(from)? != *scope.body() {
        return Err(UnitError::IdempotencyMismatch);
    }
    let status = u16::try_from(row.int(from + 1)?).unwrap_or(500);
    let body = serde_json::from_str(row.text(from + 2)?).unwrap_or(Json::Null);
    let token = ConsistencyToken::of(home.uuid(), row.count(from + 3)?);
    Err(UnitError::Replay(StoredAnswer { status, body, token }))
}

/// The record of this request, when it has a key and an answer; `n` is the home key's number after the unit.
pub(crate) fn record(
    cx: &RequestContext,
    bucket: Bucket,
    answer: Option<&(u16, Json)>,
    n: u64,
    at: Timestamp,
) -> Option<Statement> {
    let (scope, (status, body)) = (cx.idempotency()?, answer?);
    let insert = Statement::of(RECORD).bind(scope.scope()).bind(bucket.get()).bind(scope.body());
    let insert = insert.bind(*status).bind(body.to_string()).bind(n);
    Some(insert.bind(cx.request_id().uuid()).bind(at))
}

impl Cluster {
    /// Removes records older than [`KEPT_FOR`], a bounded number a shard, on all of them at once. Returns how many went: while some
    /// do, there may be more.
    ///
    /// # Errors
    /// [`SweepError`] when a shard fails, or does not answer within 5 s. It says how many went on the others, where there may be
    /// more just so.
    pub async fn sweep_idempotency(&self) -> Result<u64, SweepError> {
        let before = self.clock().now().minus(KEPT_FOR);
        let open = self.sources().filter_map(|source| Some((source, self.database(source)?)));
        let all = open.map(async |(shard, db)| {
            let swept = tokio::time::timeout(SWEEP_MAX, sweep_one(&db, before)).await;
            (shard, swept.unwrap_or(Err(DbError::Unanswered)))
        });
        let (mut swept, mut failed) = (0, Vec::new());
        for (shard, outcome) in join_all(all).await {
            match outcome {
                Ok(count) => swept += count,
                Err(error) => failed.push((shard, error)),
            }
        }
        if failed.is_empty() { Ok(swept) } else { Err(SweepError { swept, failed }) }
    }
}

async fn sweep_one(db: &Db, before: Timestamp) -> Result<u64, DbError> {
    let (tx, answers) = db.begin_with(&sweep(db.engine(), before)).await?;
    tx.commit().await?;
    answers.last().and_then(|rows| rows.first()).map_or(Ok(0), |row| Ok(row.count(0)?))
}

/// Every statement of this room.
pub(crate) fn pairs() -> Vec<SqlPair> {
    let sweeps = [Engine::Postgres, Engine::Sqlite].map(|engine| sweep(engine, Timestamp::from_micros(0)));
    [RECORD].into_iter().chain(sweeps.into_iter().flatten().map(Statement::into_pair)).collect()
}

/// Removes a bounded number of records; the last statement answers how many went.
fn sweep(engine: Engine, before: Timestamp) -> Vec<Statement> {
    const OLD: &str = "(SELECT scope FROM idempotency WHERE created_at < ? ORDER BY created_at LIMIT ?)";
    match engine {
        Engine::Sqlite => {
            let sweep = SqlPair::generated_sqlite(format!("DELETE FROM idempotency WHERE scope IN {OLD}"));
            vec![Statement::of(sweep).bind(before).bind(SWEPT_MAX), Statement::sqlite("SELECT changes()")]
        }
        Engine::Postgres => {
            let text = format!(
                "WITH gone AS (DELETE FROM idempotency WHERE scope IN {OLD} RETURNING 1) SELECT count(*) FROM gone"
            );
            vec![Statement::of(SqlPair::generated_postgres(text)).bind(before).bind(SWEPT_MAX)]
        }
    }
}
