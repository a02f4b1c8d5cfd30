//! Sending a unit: one hop that enters and looks, one that writes everything; the commit is shared by all who wait.

use std::panic::resume_unwind;
use std::time::Duration;

use pim_core::clock::Timestamp;
use pim_core::shard::{MapVersion, ShardId};
use tokio::time::Instant;

use super::{CommitFacts, Pending, Unit, UnitError, in_time};
use crate::audit::{LaneHead, Record};
use crate::backend::{Db, DbError, End, Engine, Member, Row, SqlPair, Statement, Value};
use crate::cluster::{CONTROL, Shard};
use crate::consistency::{Consistency, ConsistencyToken};
use crate::entity::Table;
use crate::retry::Backoff;
use crate::{idempotency, scope};

/// A unit that has been committed. Where a token or a consistency is asked for, it is one: `&committed.into()`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Committed {
    /// Lets a later read see at least this.
    pub token: ConsistencyToken,
    /// The home key's number after this unit.
    pub n: u64,
    /// The instant of the unit.
    pub at: Timestamp,
    /// How often the fence refused a stale route before a newer map was taken over.
    pub fenced: u32,
}

impl From<Committed> for ConsistencyToken {
    fn from(committed: Committed) -> Self {
        committed.token
    }
}

impl From<Committed> for Consistency {
    fn from(committed: Committed) -> Self {
        committed.token.into()
    }
}

/// How patiently a refused unit waits for the map that refused it: a publication fences first and publishes last.
const FENCED: Backoff =
    Backoff { pause_first: Duration::from_millis(2), pause_max: Duration::from_millis(100), attempts_max: 16 };

const ADVANCE: SqlPair = SqlPair::sqlite(
    "INSERT INTO key_head (key, bucket, n) VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET n = excluded.n",
);
const GUARD: SqlPair = SqlPair::sqlite("INSERT INTO pim_guard (broken) SELECT ? WHERE changes() <> 1");
/// And how patiently for the end of a move, which is worth a longer wait: the outbox has to drain first.
const DRAINING: Backoff =
    Backoff { pause_first: Duration::from_millis(2), pause_max: Duration::from_millis(40), attempts_max: 200 };

/// What the database says when others were faster: the next run finds what they have written.
const CONFLICTS: [&str; 5] = [
    "pim:conflict",
    // Two submissions of one request at once.
    "idempotency_pkey",
    "idempotency.scope",
    // A bulk, which holds no single key.
    "key_head_pkey",
    "pim:key-head-must-rise",
];

/// What a transaction found when it entered: the state that its writes continue.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) head: u64,
    pub(super) lane: LaneHead,
}

/// A unit on its way through a transaction.
struct Sent {
    unit: Unit,
    /// What it found and will have written, or why it writes nothing.
    verdict: Option<Result<Entered, UnitError>>,
}

impl Sent {
    const fn new(unit: Unit) -> Self {
        Self { unit, verdict: None }
    }
}

impl Member for Sent {
    fn look(&self) -> Statement {
        self.unit.look()
    }

    fn decide(&mut self, rows: &[Row]) -> Option<Vec<Statement>> {
        // It may have waited for a writer in another process, which no timer cuts short.
        let decided = in_time(&self.unit.cx).and_then(|_| {
            let mut entered = self.unit.check_entered(rows)?;
            let statements = self.unit.compose(&mut entered)?;
            Ok((entered, statements))
        });
        let (verdict, statements) = match decided {
            Ok((entered, statements)) => (Ok(entered), Some(statements)),
            Err(refusal) => (Err(refusal), None),
        };
        self.verdict = Some(verdict);
        statements
    }

    fn committed(&self) {
        self.unit.tell_committed();
    }
}

impl Unit {
    /// Sends everything that was collected, in one transaction. Units that wait for the same shard share its commit.
    ///
    /// # Errors
    /// [`UnitError`]; nothing was written then, unless the database failed during the commit itself, which a retry
    /// under the same idempotency key resolves.
    ///
    /// # Panics
    /// When a part panics; nothing was written then.
    pub async fn commit(self) -> Result<Committed, UnitError> {
        let (begun, cluster, cx, mut shard) = (Instant::now(), self.cluster.clone(), self.cx.clone(), self.route.shard);
        let outcome = self.send(&mut shard).await;
        cluster.0.settings.signals.unit(shard, &outcome, begun.elapsed());
        if let Err(UnitError::Database(error) | UnitError::Unknown(error)) = &outcome {
            cluster.complain(shard, error, &cx);
        }
        outcome
    }

    async fn send(mut self, to: &mut ShardId) -> Result<Committed, UnitError> {
        self.check_events()?;
        let (mut fenced, mut draining) = (0, false);
        loop {
            let open = self.find_shard().await?;
            *to = self.route.shard;
            let (unit, outcome) = self.attempt(open.clone(), fenced > 0).await?;
            self = unit;
            match outcome {
                Err(UnitError::Fence { shard, newest, draining: leaves }) if shard != CONTROL => {
                    draining |= leaves;
                    self.cluster.0.settings.signals.fenced();
                    // Nothing is sent yet, and commit compares the key's n: the same unit may enter by the newer map.
                    // It will be a while.
                    self.ticket = None;
                    self.cluster.refresh_map_until(self.cx.deadline().instant()).await?;
                    // Or when a map is known that nobody has published yet: whoever was about to may have died.
                    draining |= newest > self.cluster.map().version();
                    let route = self.cluster.router().route(&self.home);
                    let patience = if draining { DRAINING } else { FENCED };
                    if route == self.route && !patience.wait(fenced, self.cx.deadline()).await {
                        return Err(UnitError::Fence { shard, newest, draining });
                    }
                    self.turn_to(route);
                    fenced += 1;
                    if fenced >= patience.attempts_max {
                        return Err(UnitError::Fence { shard, newest, draining });
                    }
                }
                // Nothing was written, and another one has taken its place. Ends: each time it has.
                Err(UnitError::Database(DbError::Closed)) if self.cluster.is_replaced(&open) => self.ticket = None,
                head => {
                    let head = head?;
                    let token = ConsistencyToken::of(self.home.uuid(), head);
                    return Ok(Committed { token, n: head, at: self.at, fenced });
                }
            }
        }
    }

    /// Sends the unit by its present route, to a server alone where others would be refused with it: the home key's number after it, or what refused it.
    async fn attempt(self, shard: Shard, alone: bool) -> Result<(Self, Result<u64, UnitError>), UnitError> {
        if shard.db().engine() == Engine::Sqlite {
            return self.share(shard.db()).await;
        }
        self.send_to_server(&shard, alone).await
    }

    async fn share(self, db: &Db) -> Result<(Self, Result<u64, UnitError>), UnitError> {
        let (mut sent, end) = db.share(in_time(&self.cx)?, Sent::new(self)).await?;
        let outcome = match (end, sent.verdict.take()) {
            (End::Committed, Some(Ok(entered))) => Ok(entered.head),
            (End::Failed(error), _) => Err(sent.unit.explain(error)),
            (End::Panicked(panic), _) => resume_unwind(panic),
            (_, Some(Err(refusal))) => Err(refusal),
            (_, _) => Err(DbError::Closed.into()),
        };
        Ok((sent.unit, outcome))
    }

    /// Wakes whoever waits for something new.
    pub(super) fn tell_committed(&self) {
        self.cluster.0.commits.send_modify(|count| *count += 1);
    }

    pub(super) fn check_events(&self) -> Result<(), UnitError> {
        let facts = self.facts();
        if facts == 0 && !self.writes.is_empty() { Err(UnitError::NoEvent) } else { Ok(()) }
    }

    /// How many events it will number.
    pub(crate) fn facts(&self) -> u64 {
        self.parts.iter().map(|part| part.facts()).sum()
    }

    /// Fence, idempotency record, the key's number and the lane's end, in one row.
    pub(super) fn look(&self) -> Statement {
        let lane = self.route.bucket.lane().get();
        let look = Statement::of(look_up()).bind(self.route.bucket.get());
        look.bind(idempotency::scope_bind(&self.cx)).bind(self.home.uuid()).bind(lane).bind(lane)
    }

    pub(super) fn check_entered(&self, rows: &[Row]) -> Result<Entered, UnitError> {
        let row = rows.first().ok_or(DbError::Closed)?;
        self.check_fence(row)?;
        idempotency::check(&self.cx, self.home, row, FENCE_WIDTH)?;
        let head = if *row.get(HEAD) == Value::Null { 0 } else { row.count(HEAD)? };
        if self.head.is_some_and(|seen| seen != head) {
            return Err(UnitError::Conflict);
        }
        Ok(Entered { head, lane: LaneHead::at(row, HEAD + 1)? })
    }

    fn check_fence(&self, row: &Row) -> Result<(), UnitError> {
        let shard = self.route.shard;
        if *row.get(0) == Value::Null {
            return Err(UnitError::Fence { shard, newest: MapVersion(0), draining: false });
        }
        let newest = MapVersion(row.count(2)?);
        if row.count(0)? != u64::from(self.route.epoch.0) || row.text(1)? != "owned" {
            return Err(UnitError::Fence { shard, newest, draining: row.text(1)? == "draining" });
        }
        Ok(())
    }

    /// Every write of this unit, in the order of the design: rows, outbox, idempotency, audit lane last.
    pub(super) fn compose(&mut self, entered: &mut Entered) -> Result<Vec<Statement>, UnitError> {
        let mut statements = Vec::with_capacity(self.writes.len() * 3 + 8);
        for pending in &self.writes {
            self.push_row(pending, &mut statements);
        }
        let n_before = entered.head;
        for part in &mut self.parts {
            let n_first = entered.head + 1;
            entered.head += part.facts();
            let facts = CommitFacts { cx: &self.cx, home: self.home, route: self.route, n_first, at: self.at };
            statements.extend(part.statements(&facts)?);
        }
        if entered.head > n_before {
            let upsert = Statement::of(ADVANCE).bind(self.home.uuid()).bind(self.route.bucket.get());
            statements.push(upsert.bind(entered.head));
        }
        statements.extend(idempotency::record(
            &self.cx,
            self.route.bucket,
            self.answer.as_ref(),
            entered.head,
            self.at,
        ));
        for record in Record::all(self, entered.head) {
            statements.push(entered.lane.append(&record));
        }
        Ok(statements)
    }

    fn push_row(&self, pending: &Pending, statements: &mut Vec<Statement>) {
        let table = pending.table;
        if pending.version == 1 {
            let insert = Statement::of(insert_row(table)).bind(pending.id).bind(self.home.uuid());
            let insert = insert.bind(self.route.bucket.get()).bind(pending.facility).bind(self.at).bind(self.at);
            statements.push(insert.bind_all(pending.values.iter().cloned()));
            return;
        }
        let (reach, reach_binds) = scope::predicate(&pending.scope);
        let update = Statement::of(update_row(table, reach)).bind(pending.version).bind(self.at).bind(pending.facility);
        let update = update.bind_all(pending.values.iter().cloned()).bind(pending.id).bind(self.home.uuid());
        statements.push(update.bind(pending.version - 1).bind_all(reach_binds));
        // An update that touches no row raises nothing by itself; without this its event would be committed alone.
        statements.push(Statement::of(GUARD).bind(Value::from(table.name)));
    }

    /// Says in our words what the database refused.
    pub(super) fn explain(&self, error: DbError) -> UnitError {
        let shard = self.route.shard;
        let (rule, unique) = match &error {
            DbError::Fence { newest, draining, .. } => {
                return UnitError::Fence { shard, newest: MapVersion(*newest), draining: *draining };
            }
            DbError::Refused { rule, unique } => (rule, *unique),
            _ => return error.into(),
        };
        if rule.contains("pim_guard_stale") {
            return UnitError::Stale { entity: self.refused(rule).unwrap_or("row") };
        }
        if rule.contains("pim:bucket-not-owned") {
            return UnitError::Fence { shard, newest: MapVersion(0), draining: false };
        }
        if CONFLICTS.iter().any(|it| rule.contains(it)) {
            return UnitError::Conflict;
        }
        if rule.contains("FOREIGN KEY") {
            return UnitError::MissingReference;
        }
        match self.refused(rule) {
            Some(entity) if unique => UnitError::AlreadyExists { entity },
            _ => error.into(),
        }
    }

    /// Whose row was refused.
    fn refused(&self, rule: &str) -> Option<&'static str> {
        entity_of(rule, self.writes.iter().map(|pending| pending.table.name))
    }
}

/// Which of these entities a rule speaks of. It has a table as a word's beginning, and one table's name may end as another's does.
fn entity_of(rule: &str, mut entities: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let named = || rule.split([' ', ',']).filter_map(|word| word.split_once("_row.").map(|(entity, _)| entity));
    entities.find(|entity| named().any(|it| it == *entity))
}

/// Columns of the fence in an answer of [`look_up`]; the stored answer follows, then the key's number.
const FENCE_WIDTH: usize = 3;
const HEAD: usize = FENCE_WIDTH + idempotency::WIDTH;

/// What an embedded unit finds when it enters; a server's is `pim_enter`.
fn look_up() -> SqlPair {
    SqlPair::generated_sqlite(format!(
        "SELECT o.epoch, o.state, o.map_version, {}, k.n, a.seq, a.hash FROM (SELECT 1) \
         LEFT JOIN pim_bucket_owned o ON o.bucket = ? {} LEFT JOIN key_head k ON k.key = ? \
         LEFT JOIN audit a ON a.lane = ? AND a.seq = (SELECT MAX(seq) FROM audit WHERE lane = ?)",
        idempotency::COLUMNS,
        idempotency::JOIN,
    ))
}

fn insert_row(table: &Table) -> SqlPair {
    let names: String = table.columns.iter().map(|column| format!(", {}", column.name())).collect();
    let marks = ", ?".repeat(table.columns.len());
    SqlPair::generated_sqlite(format!(
        "INSERT INTO {}_row (id, home_key, bucket, facility_id, version, created_at, updated_at{names}) \
         VALUES (?, ?, ?, ?, 1, ?, ?{marks})",
        table.name
    ))
}

fn update_row(table: &Table, reach: &str) -> SqlPair {
    let sets: String = table.columns.iter().map(|column| format!(", {} = ?", column.name())).collect();
    SqlPair::generated_sqlite(format!(
        "UPDATE {}_row SET version = ?, updated_at = ?, facility_id = ?{sets} \
         WHERE id = ? AND home_key = ? AND version = ? AND {reach}",
        table.name,
    ))
}

/// Every statement of an embedded unit; a server's are calls, see `server`.
pub(super) fn pairs(tables: &[&'static Table]) -> Vec<SqlPair> {
    let of_table = |table: &&'static Table| {
        let updates = scope::shapes().into_iter().map(|scope| update_row(table, scope::predicate(&scope).0));
        [insert_row(table)].into_iter().chain(updates).collect::<Vec<_>>()
    };
    [look_up(), ADVANCE, GUARD].into_iter().chain(tables.iter().flat_map(of_table)).collect()
}

#[cfg(test)]
mod tests {
    use super::entity_of;

    /// Guard: whoever is told that something exists already is told what.
    #[test]
    fn an_entity_is_not_taken_for_one_whose_name_ends_alike() {
        let of = |rule: &str| entity_of(rule, ["claim", "sub_claim"].into_iter());
        for (rule, entity) in [
            ("sub_claim_row.sub_claim_row_pkey", Some("sub_claim")),
            ("claim_row.claim_row_pkey", Some("claim")),
            ("UNIQUE constraint failed: sub_claim_row.code, sub_claim_row.part", Some("sub_claim")),
            ("UNIQUE constraint failed: claim_row.id", Some("claim")),
            ("UNIQUE constraint failed: fact.key", None),
        ] {
            assert_eq!(of(rule), entity, "{rule}");
        }
    }
}
