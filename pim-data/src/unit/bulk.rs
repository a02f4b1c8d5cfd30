//! Many units of new home keys in one transaction of one shard: for seeding.

use std::collections::{BTreeMap, BTreeSet};

use pim_core::shard::{Lane, ShardId};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::commit::Entered;
use super::{Unit, UnitError, in_time};
use crate::audit::LaneHead;
use crate::backend::{Db, DbError, Engine, Row, SqlPair, Statement, Transaction};
use crate::cluster::{Cluster, Need};

/// Most units in one bulk commit.
pub const BULK_MAX: usize = 100_000;

/// Most units that are looked for together in a file: what they find is held until they are written.
const LOOKS_MAX: usize = 512;

/// Every statement of a bulk commit that a single unit does not have.
pub(super) fn pairs() -> impl Iterator<Item = SqlPair> {
    ALONE.into_iter()
}

impl Cluster {
    /// Commits units of one shard together: all of them or none, with history, audit and events as ever.
    ///
    /// Home keys must be new to the shard, unless a unit has loaded what is there; a key's units keep their order. Nothing is
    /// begun for a request whose time is over; what has begun is finished, for many rows take their time.
    ///
    /// # Errors
    /// [`UnitError`] of the first unit that cannot be written; [`UnitError::WrongHome`] when a unit belongs elsewhere;
    /// [`UnitError::AlreadyExists`] when its home key was written before; [`UnitError::Unknown`] when the commit was not
    /// answered, so that all of it may be there or nothing.
    pub async fn commit_bulk(&self, shard: ShardId, units: Vec<Unit>) -> Result<usize, UnitError> {
        if units.len() > BULK_MAX {
            return Err(UnitError::TooLarge { most: BULK_MAX });
        }
        let open = self.shard(shard).ok_or(UnitError::UnknownShard(shard))?;
        let count = units.len();
        let until = units.iter().map(|unit| in_time(&unit.cx)).collect::<Result<Vec<_>, _>>()?;
        let Some(until) = until.into_iter().min() else { return Ok(0) };
        open.ready(until, Need::Write).await?;
        let written = match open.db().engine() {
            Engine::Postgres => bulk_on_server(open.db(), until, shard, units).await?,
            Engine::Sqlite => bulk_in_file(open.db(), until, shard, units).await?,
        };
        written.commit().await.map_err(unknown)?;
        self.0.commits.send_modify(|commits| *commits += 1);
        Ok(count)
    }
}

/// Whoever runs all of it again where it was done would do it twice.
fn unknown(error: DbError) -> UnitError {
    if error.is_ambiguous() { UnitError::Unknown(error) } else { error.into() }
}

impl Unit {
    /// What every unit of a bulk must be.
    fn check_in_bulk(&self, shard: ShardId) -> Result<(), UnitError> {
        if self.route.shard != shard {
            return Err(UnitError::WrongHome { entity: "unit" });
        }
        self.check_events()
    }

    /// A key that was written before is not new.
    fn is_known(&self, error: UnitError) -> UnitError {
        match (error, self.writes.first()) {
            (UnitError::Conflict, Some(pending)) => UnitError::AlreadyExists { entity: pending.table.name },
            (error, _) => error,
        }
    }
}

/// What a bulk has written so far is not looked up again: how far its keys and its lanes are.
#[derive(Default)]
struct Reached {
    heads: BTreeMap<Uuid, u64>,
    lanes: BTreeMap<Lane, LaneHead>,
}

impl Reached {
    /// What a unit goes on from; `rows` is what was looked up for it, by now or before others wrote.
    fn enter(&self, unit: &mut Unit, rows: &[Row]) -> Result<Entered, UnitError> {
        let known = self.heads.get(&unit.home.uuid()).copied();
        if known.is_none() {
            unit.head.get_or_insert(0);
        }
        let entered = unit.check_entered(rows);
        let mut entered = if known.is_none() { entered.map_err(|error| unit.is_known(error))? } else { entered? };
        entered.head = known.unwrap_or(entered.head);
        if unit.head.is_some_and(|seen| seen != entered.head) {
            return Err(UnitError::Conflict);
        }
        if let Some(lane) = self.lanes.get(&unit.route.bucket.lane()) {
            entered.lane = lane.clone();
        }
        Ok(entered)
    }

    fn leave(&mut self, unit: &Unit, entered: Entered) {
        self.heads.insert(unit.home.uuid(), entered.head);
        self.lanes.insert(unit.route.bucket.lane(), entered.lane);
    }
}

/// Whoever writes already is waited for no longer than until `until`; from here on a bulk has the time that it takes.
async fn begin(db: &Db, until: Instant, first: &[Statement]) -> Result<Transaction, UnitError> {
    let begun = timeout_at(until, db.begin_with(first)).await;
    Ok(begun.map_err(|_| UnitError::Deadline)??.0)
}

async fn bulk_in_file(db: &Db, until: Instant, shard: ShardId, mut units: Vec<Unit>) -> Result<Transaction, UnitError> {
    let mut tx = begin(db, until, &[]).await?;
    let mut reached = Reached::default();
    for some in units.chunks_mut(LOOKS_MAX) {
        let looks: Vec<Statement> = some.iter().map(Unit::look).collect();
        let found = tx.hop(&looks).await?;
        for (unit, rows) in some.iter_mut().zip(&found) {
            unit.check_in_bulk(shard)?;
            let mut entered = reached.enter(unit, rows)?;
            let statements = unit.compose(&mut entered)?;
            tx.hop(&statements).await.map_err(|error| unit.explain(error))?;
            reached.leave(unit, entered);
        }
    }
    Ok(tx)
}

/// Locks instead of the many that each unit would take: no fence and no other writer comes in between.
const ALONE: [SqlPair; 2] = [
    SqlPair::postgres("SELECT pg_advisory_xact_lock_shared(7461, 4096), set_config('app.bulk', 'on', true)"),
    SqlPair::postgres("LOCK TABLE key_head IN SHARE ROW EXCLUSIVE MODE"),
];

async fn bulk_on_server(db: &Db, until: Instant, shard: ShardId, units: Vec<Unit>) -> Result<Transaction, UnitError> {
    let term = db.demand().term;
    let mut tx = begin(db, until, &ALONE.map(Statement::of)).await?;
    let mut known = BTreeSet::new();
    for mut unit in units {
        unit.check_in_bulk(shard)?;
        let is_first = known.insert(unit.home.uuid());
        if is_first {
            unit.head.get_or_insert(0);
        }
        let sent = unit.send_in_bulk(&mut tx, term).await;
        sent.map_err(|error| if is_first { unit.is_known(error) } else { error })?;
    }
    Ok(tx)
}
