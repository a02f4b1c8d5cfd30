//! Who a database says that it is: the row that a new one is given, and that every other one must have.

use pim_core::shard::{Bucket, Epoch, ShardId, ShardMap};

use super::OpenError;
use crate::backend::{Db, DbError, Engine, Row, SqlPair, Statement};
use crate::cluster::directory::Directory;
use crate::cluster::{CONTROL, name_of};
use crate::migration::place;

const IS_NAMED: SqlPair = SqlPair::of(
    "SELECT to_regclass('public.pim_identity') IS NOT NULL",
    "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'pim_identity'",
);
const IDENTITY: SqlPair = SqlPair::same("SELECT keyspace, shard FROM pim_identity");
/// The lock of whoever migrates: of programs that open a new database at once, one introduces it. The writer's is the file's.
const ALONE: SqlPair = SqlPair::postgres("SELECT pg_advisory_xact_lock(7460, 0)");
const INTRODUCE: SqlPair = SqlPair::same("INSERT INTO pim_identity VALUES (1, ?, ?)");

fn own(buckets: usize) -> SqlPair {
    let mut text = String::from("INSERT INTO pim_bucket_owned (bucket, epoch, state, map_version) VALUES ");
    text.push_str(&vec!["(?, ?, 'owned', ?)"; buckets].join(", "));
    SqlPair::generated(text)
}

/// Every statement of this room.
pub(super) fn pairs() -> [SqlPair; 5] {
    [IS_NAMED, IDENTITY, ALONE, INTRODUCE, own(1)]
}

/// Looks who a database says that it is; one that nobody has introduced yet will do where this directory has had none there.
pub(super) async fn look(db: &Db, id: ShardId, map: &ShardMap, directory: &Directory) -> Result<(), OpenError> {
    match said(db, id).await? {
        Some(row) => is_meant(db, &row, id, map),
        None if directory.has_had(id) => Err(OpenError::Empty { shard: name_of(id), place: place(db) }),
        None => Ok(()),
    }
}

/// Refuses a database that is somebody else's, or nobody's yet.
pub(super) async fn check(db: &Db, id: ShardId, map: &ShardMap) -> Result<(), OpenError> {
    match said(db, id).await? {
        Some(row) => is_meant(db, &row, id, map),
        None => Err(OpenError::Identity { shard: name_of(id), place: place(db), found: "nobody yet".to_owned() }),
    }
}

async fn said(db: &Db, id: ShardId) -> Result<Option<Row>, OpenError> {
    let said = async {
        let is_named = db.query(Statement::of(IS_NAMED)).await?;
        if is_named.first().map_or(Ok(0), |row| row.int(0))? == 0 {
            return Ok(None);
        }
        Ok(db.query(Statement::of(IDENTITY)).await?.into_iter().next())
    };
    said.await.map_err(|source| OpenError::Database { shard: name_of(id), source })
}

fn is_meant(db: &Db, row: &Row, id: ShardId, map: &ShardMap) -> Result<(), OpenError> {
    let said = || Ok::<_, DbError>((row.text(0)?.to_owned(), row.int(1)?));
    let (keyspace, shard) = said().map_err(|source| OpenError::Database { shard: name_of(id), source })?;
    if keyspace == map.keyspace() && shard == i64::from(id.0) {
        return Ok(());
    }
    let found = format!("shard {shard} of key space {keyspace}");
    Err(OpenError::Identity { shard: name_of(id), place: place(db), found })
}

/// Writes identity and ownership into a new database; refuses one that has been introduced as somebody else.
pub(super) async fn introduce(db: &Db, id: ShardId, map: &ShardMap) -> Result<(), OpenError> {
    let failed = |source| OpenError::Database { shard: name_of(id), source };
    let lock = (db.engine() == Engine::Postgres).then(|| Statement::of(ALONE));
    let first: Vec<Statement> = lock.into_iter().chain([Statement::of(IDENTITY)]).collect();
    let (mut tx, answers) = db.begin_with(&first).await.map_err(failed)?;
    if let Some(row) = answers.last().and_then(|rows| rows.first()) {
        return is_meant(db, row, id, map);
    }
    let identity = Statement::of(INTRODUCE).bind(map.keyspace()).bind(id.0);
    let mut statements = vec![identity];
    let owned: Vec<(Bucket, Epoch)> = if id == CONTROL {
        (0..4096).filter_map(|number| Some((Bucket::new(number).ok()?, Epoch(1)))).collect()
    } else {
        map.buckets_of(id).collect()
    };
    let version = if id == CONTROL { 0 } else { map.version().0 };
    for run in owned.chunks(256) {
        let insert = Statement::of(own(run.len()));
        let values = run.iter().flat_map(|(bucket, epoch)| [bucket.get().into(), epoch.0.into(), version.into()]);
        statements.push(insert.bind_all(values));
    }
    tx.hop(&statements).await.map_err(failed)?;
    tx.commit().await.map_err(failed)
}
