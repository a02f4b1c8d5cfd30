//! A migration waits for whoever reads, and nobody waits long for a migration.

use std::time::Duration;

use pim_data::backend::{Db, SqlPair, Statement};
use pim_data::migration::{Migration, migrate};

use super::world::Folder;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn step(version: u32, sql: &str) -> Migration {
    Migration::new(version, "step", sql).with_postgres(sql)
}

async fn is_waiting(db: &Db) -> bool {
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock' \
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    db.query(Statement::of(SqlPair::postgres(waiting))).await.expect("reads")[0].count(0).expect("a number") > 0
}

/// Guard: a step takes its lock within seconds or lets the others by, and tries again.
#[tokio::test]
async fn who_writes_gets_by_while_a_step_waits_for_a_reader() {
    let folder = Folder::new();
    crate::server::add(folder.path(), "shard-9");
    let (owner, reader, writer) = tokio::join!(
        crate::server::superuser(folder.path(), 9),
        crate::server::superuser(folder.path(), 9),
        crate::server::superuser(folder.path(), 9),
    );
    let before = step(1, "CREATE TABLE fact (x bigint)");
    migrate(&owner, std::slice::from_ref(&before)).await.expect("applies");
    let mut reading = reader.begin().await.expect("begins");
    reading.script("SELECT x FROM fact").await.expect("reads");
    let steps = [before, step(2, "ALTER TABLE fact ADD COLUMN y bigint")];
    let migrating = tokio::spawn(async move { migrate(&owner, &steps).await });
    let waits = async {
        while !is_waiting(&writer).await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, waits).await.expect("it waits for the reader");
    let mut writing = writer.begin().await.expect("begins");
    writing.script("SET LOCAL lock_timeout = '8s'; INSERT INTO fact VALUES (1)").await.expect("gets by");
    writing.commit().await.expect("commits");
    assert!(!migrating.is_finished(), "the reader still reads");
    reading.commit().await.expect("ends");
    assert_eq!(migrating.await.expect("runs").expect("applies"), 1);
}
