//! Many units of new home keys in one transaction of one shard: for seeding.

use std::collections::{BTreeMap, BTreeSet};

use pim_core::shard::{Lane, MapVersion, ShardId};
use uuid::Uuid;

use super::commit::Entered;
use super::{Unit, UnitError};
use crate::audit::LaneHead;
use crate::backend::{Db, Engine, SqlPair, Statement};
use crate::cluster::Cluster;

/// Most units in one bulk commit.
pub const BULK_MAX: usize = 100_000;

const OWNED: SqlPair = SqlPair::sqlite("SELECT bucket, epoch, map_version FROM pim_bucket_owned WHERE state = 'owned'");

/// Every statement of a bulk commit that a single unit does not have.
pub(super) fn pairs() -> impl Iterator<Item = SqlPair> {
    ALONE.into_iter().chain([OWNED])
}

impl Cluster {
    /// Commits units of one shard together: all of them or none, with history, audit and events as ever.
    ///
    /// The fence is checked once; home keys must be new to the shard, and a key's units keep their order.
    ///
    /// # Errors
    /// [`UnitError`] of the first unit that cannot be written; [`UnitError::WrongHome`] when a unit belongs elsewhere.
    pub async fn commit_bulk(&self, shard: ShardId, units: Vec<Unit>) -> Result<usize, UnitError> {
        if units.len() > BULK_MAX {
            return Err(UnitError::TooLarge { most: BULK_MAX });
        }
        let open = self.shard(shard).ok_or(UnitError::UnknownShard(shard))?;
        let database = open.db();
        let count = units.len();
        if database.engine() == Engine::Postgres {
            bulk_on_server(database, shard, units).await?;
            self.0.commits.send_modify(|commits| *commits += 1);
            return Ok(count);
        }
        let mut look_ups: Vec<Statement> = Lane::all().map(LaneHead::look_up).collect();
        look_ups.push(Statement::of(OWNED));
        let (mut tx, mut answers) = database.begin_with(&look_ups).await?;
        let mut owned = BTreeMap::new();
        for row in answers.pop().unwrap_or_default() {
            owned.insert(row.count(0)?, (row.count(1)?, MapVersion(row.count(2)?)));
        }
        let mut lanes = Vec::with_capacity(Lane::COUNT);
        for rows in &answers {
            lanes.push(LaneHead::of(rows.first())?);
        }
        let mut heads: BTreeMap<Uuid, u64> = BTreeMap::new();
        for mut unit in units {
            if unit.route.shard != shard {
                return Err(UnitError::WrongHome { entity: "unit" });
            }
            unit.check_events()?;
            let newest = match owned.get(&u64::from(unit.route.bucket.get())) {
                Some((epoch, _)) if *epoch == u64::from(unit.route.epoch.0) => None,
                other => Some(other.map_or(MapVersion(0), |(_, version)| *version)),
            };
            if let Some(newest) = newest {
                return Err(UnitError::Fence { shard, newest, draining: false });
            }
            let lane = &mut lanes[usize::from(unit.route.bucket.lane().get())];
            let head = heads.entry(unit.home.uuid()).or_insert(0);
            let mut entered = Entered { head: *head, lane: lane.clone() };
            let statements = unit.compose(&mut entered)?;
            tx.hop(&statements).await.map_err(|error| unit.explain(error))?;
            *head = entered.head;
            *lane = entered.lane;
        }
        tx.commit().await?;
        self.0.commits.send_modify(|commits| *commits += 1);
        Ok(count)
    }
}

/// Locks instead of the many that each unit would take: no fence and no other writer comes in between.
const ALONE: [SqlPair; 2] = [
    SqlPair::postgres("SELECT pg_advisory_xact_lock_shared(7461, 4096), set_config('app.bulk', 'on', true)"),
    SqlPair::postgres("LOCK TABLE key_head IN SHARE ROW EXCLUSIVE MODE"),
];

async fn bulk_on_server(db: &Db, shard: ShardId, units: Vec<Unit>) -> Result<(), UnitError> {
    let term = db.demand().term;
    let (mut tx, _) = db.begin_with(&ALONE.map(Statement::of)).await?;
    let mut known = BTreeSet::new();
    for mut unit in units {
        if unit.route.shard != shard {
            return Err(UnitError::WrongHome { entity: "unit" });
        }
        unit.check_events()?;
        let is_first = known.insert(unit.home.uuid());
        if is_first {
            unit.head.get_or_insert(0);
        }
        match (unit.send_in_bulk(&mut tx, term).await, unit.writes.first()) {
            // A key that was written before is not new.
            (Err(UnitError::Conflict), Some(pending)) if is_first => {
                return Err(UnitError::AlreadyExists { entity: pending.table.name });
            }
            (sent, _) => sent?,
        }
    }
    tx.commit().await?;
    Ok(())
}
