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

/// Records of a chain that one statement looks at: it has the time of a transaction, however long the trail has become.
const PAGE: i64 = 1_000;

/// Of each chain the first record, when that was written, and the last one; looked up lane by lane.
const SPANS: SqlPair = SqlPair::of(
    "SELECT l.lane, f.seq, f.at, e.seq FROM generate_series(0::bigint, 63) AS l(lane) \
     CROSS JOIN LATERAL (SELECT a.seq, a.at FROM audit a WHERE a.lane = l.lane ORDER BY a.seq LIMIT 1) f \
     CROSS JOIN LATERAL (SELECT a.seq FROM audit a WHERE a.lane = l.lane ORDER BY a.seq DESC LIMIT 1) e ORDER BY l.lane",
    "WITH RECURSIVE l(lane) AS (SELECT 0 UNION ALL SELECT lane + 1 FROM l WHERE lane < 63) \
     SELECT f.lane, f.seq, f.at, e.seq FROM l \
     CROSS JOIN audit f ON f.lane = l.lane AND f.seq = (SELECT MIN(a.seq) FROM audit a WHERE a.lane = l.lane) \
     CROSS JOIN audit e ON e.lane = l.lane AND e.seq = (SELECT MAX(a.seq) FROM audit a WHERE a.lane = l.lane) ORDER BY f.lane",
);
/// Of the next records of a chain the last one, and the first that is young enough.
const LOOK: SqlPair = SqlPair::same(
    "SELECT MAX(page.seq), MIN(CASE WHEN page.at >= ? THEN page.seq END) FROM \
     (SELECT seq, at FROM audit WHERE lane = ? AND seq >= ? ORDER BY seq LIMIT ?) AS page",
);
const HASH: SqlPair = SqlPair::same("SELECT hash FROM audit WHERE lane = ? AND seq = ?");
const TOMBSTONE: SqlPair = SqlPair::same(
    "INSERT INTO audit_tombstone AS t (lane, seq, hash) VALUES (?, ?, ?) \
     ON CONFLICT (lane) DO UPDATE SET seq = excluded.seq, hash = excluded.hash WHERE excluded.seq > t.seq",
);
const PURGE: SqlPair = SqlPair::same("DELETE FROM audit WHERE lane = ? AND seq <= ?");

/// Every statement of this room.
pub(super) fn pairs() -> [SqlPair; 5] {
    [SPANS, LOOK, HASH, TOMBSTONE, PURGE]
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
    for row in db.query(Statement::of(SPANS)).await? {
        let (lane, first, last) = (row.count(0)?, row.count(1)?, row.count(3)?);
        let kept = if row.time(2)? >= before { first } else { kept_from(db, lane, (first, last), before).await? };
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

/// Everything goes that is before the first record which is young enough; the last one stays, the next will be tied to it.
async fn kept_from(db: &Db, lane: u64, (mut next, last): (u64, u64), before: Timestamp) -> Result<u64, DbError> {
    // Ends: each page has at least the record that it begins with, or nothing is behind it.
    loop {
        let look = Statement::of(LOOK).bind(before).bind(lane).bind(next).bind(PAGE);
        let rows = db.query(look).await?;
        let Some(row) = rows.first().filter(|row| *row.get(0) != Value::Null) else { return Ok(last) };
        if *row.get(1) != Value::Null {
            return Ok(row.count(1)?.min(last));
        }
        let seen = row.count(0)?;
        if seen >= last {
            return Ok(last);
        }
        next = seen + 1;
    }
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
