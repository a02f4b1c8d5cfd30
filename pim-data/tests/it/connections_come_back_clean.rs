//! Whoever gets a connection gets it outside of any transaction, whatever became of the one who had it before.

use std::sync::Arc;
use std::time::Duration;

use pim_core::shard::ShardId;
use pim_data::backend::{Db, DbError, ServerSettings, SqlPair, Statement};
use tokio::time::{sleep, timeout};

use super::queueing::number;
use super::world::World;

/// What is slow takes twice as long as a call may.
const CALL_MAX: Duration = Duration::from_millis(1_500);
const SLOW: &str = "SELECT pg_sleep(3)";
/// What somebody else can hold, and lets go before that.
const LOCK: &str = "SELECT count(pg_advisory_xact_lock(1))";

/// A database whose one connection is lent to one after the other, and somebody who looks on.
async fn one_connection() -> (World, Db, Db) {
    let world = World::new(1).await;
    let onlooker = world.powerful(ShardId(0)).await;
    let mut tx = onlooker.begin().await.expect("begins");
    tx.script("CREATE TABLE seen (n bigint)").await.expect("creates");
    tx.commit().await.expect("commits");
    let settings = ServerSettings { connections_max: 1, call_max: CALL_MAX, ..ServerSettings::default() };
    let secrets = Arc::new(crate::server::secrets(world.folder.path()));
    let db = Db::connect("shard-0-super", secrets, settings).await.expect("connects");
    (world, db, onlooker)
}

/// Lets whoever comes next write, once the server has ended what it was at.
async fn the_next_one_writes(db: &Db, onlooker: &Db) {
    sleep(CALL_MAX * 3).await;
    db.query(Statement::of(SqlPair::postgres("INSERT INTO seen VALUES (1)"))).await.expect("writes");
    assert_eq!(number(onlooker, "SELECT count(*) FROM seen").await, 1, "it was told that it has written");
}

/// Guard: a call that ran out of time leaves its transaction open on the server.
#[tokio::test]
async fn behind_a_call_that_was_not_answered_in_time() {
    let (_world, db, onlooker) = one_connection().await;
    let mut tx = db.begin().await.expect("begins");
    let late = tx.script(SLOW).await;
    assert!(matches!(late, Err(DbError::Late)), "{late:?}");
    tx.commit().await.expect_err("a part of it was not done");
    the_next_one_writes(&db, &onlooker).await;
}

/// Guard: so does one that its caller has dropped, and what it would have done is not known to be done.
#[tokio::test]
async fn behind_a_call_that_was_dropped() {
    let (_world, db, onlooker) = one_connection().await;
    let mut tx = db.begin().await.expect("begins");
    let mut holder = onlooker.begin().await.expect("begins");
    holder.script(LOCK).await.expect("holds it");
    timeout(CALL_MAX / 15, tx.script(LOCK)).await.expect_err("is dropped");
    holder.rollback().await.expect("lets go");
    let refused = tx.commit().await;
    assert!(matches!(refused, Err(DbError::Closed)), "{refused:?}");
    the_next_one_writes(&db, &onlooker).await;
}
