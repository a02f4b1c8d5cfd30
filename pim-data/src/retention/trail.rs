//! Audit records that go: the old end of each chain, up to a tombstone.

use pim_core::clock::Timestamp;
use pim_core::shard::ShardId;

use super::{Budget, retain};
use crate::audit::{Heads, hex, unhex};
use crate::backend::{Db, DbError, SqlPair, Statement, Value};
use crate::cluster::CONTROL;

/// The old end of one chain.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    pub(super) source: ShardId,
    lane: u64,
    /// The first record that is there.
    first: u64,
    /// The last one that goes, and its hash.
    end: u64,
    hash: String,
    /// Whether no tombstone says so yet.
    pub(super) is_new: bool,
}

const SPANS: SqlPair = SqlPair::same(
    "SELECT lane, MIN(seq), MAX(seq), MIN(CASE WHEN at >= ? THEN seq END) FROM audit GROUP BY lane ORDER BY lane",
);
const HASH: SqlPair = SqlPair::same("SELECT hash FROM audit WHERE lane = ? AND seq = ?");
const TOMBSTONE: SqlPair = SqlPair::same(
    "INSERT INTO audit_tombstone AS t (lane, seq, hash) VALUES (?, ?, ?) \
     ON CONFLICT (lane) DO UPDATE SET seq = excluded.seq, hash = excluded.hash WHERE excluded.seq > t.seq",
);
const PURGE: SqlPair = SqlPair::same("DELETE FROM audit WHERE lane = ? AND seq <= ?");

/// Every statement of this room.
pub(super) fn pairs() -> [SqlPair; 4] {
    [SPANS, HASH, TOMBSTONE, PURGE]
}

/// The chains of a database that have records to go.
pub(super) async fn lanes(
    db: &Db,
    source: ShardId,
    before: Timestamp,
    tombstones: &Heads,
) -> Result<Vec<Lane>, DbError> {
    let shard = (source != CONTROL).then_some(source.0);
    let mut lanes = Vec::new();
    for row in db.query(Statement::of(SPANS).bind(before)).await? {
        let (lane, first, last) = (row.count(0)?, row.count(1)?, row.count(2)?);
        // Everything before the first record that is young enough; the last one stays, the next will be tied to it.
        let kept = if *row.get(3) == Value::Null { last } else { row.count(3)?.min(last) };
        let aged = kept.saturating_sub(1);
        let signed = tombstones.get(&(shard, lane)).filter(|(end, _)| *end >= aged);
        let (end, hash) = match signed {
            Some((end, hash)) => (*end, hash.clone()),
            None if aged >= first => {
                let found = db.query(Statement::of(HASH).bind(lane).bind(aged)).await?;
                let Some(record) = found.first() else { continue };
                (aged, hex(&record.digest(0)?))
            }
            None => continue,
        };
        if end >= first {
            lanes.push(Lane { source, lane, first, end, hash, is_new: signed.is_none() });
        }
    }
    Ok(lanes)
}

impl Lane {
    /// How many records go.
    pub(super) fn rows(&self) -> u64 {
        self.end - self.first + 1
    }

    /// `shard/lane:seq:hash`, as it is signed.
    pub(super) fn text(&self) -> String {
        format!("{}/{}:{}:{}", self.source.0, self.lane, self.end, self.hash)
    }

    /// Removes them, the oldest first; answers how many have gone.
    pub(super) async fn purge(&self, db: &Db, before: Timestamp, budget: &mut Budget) -> Result<u64, DbError> {
        let mut next = self.first;
        while next <= self.end && budget.batch() > 0 {
            let to = self.end.min(next + budget.batch() - 1);
            let tombstone = Statement::of(TOMBSTONE).bind(self.lane).bind(self.end).bind(&unhex(&self.hash));
            let purge = Statement::of(PURGE).bind(self.lane).bind(to);
            db.begin().await?.commit_with(vec![retain("audit", before), tombstone, purge]).await?;
            budget.spend(to - next + 1);
            next = to + 1;
        }
        Ok(next - self.first)
    }
}
