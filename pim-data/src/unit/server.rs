//! Sending a unit to a server: one entity with its events and records is one call of its generated function, in a
//! transaction of its own or of those who wait as well; several are `BEGIN` with the entry, one call each, and `COMMIT`.

use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value as Json;
use tokio::time::Instant;

use super::batch::{Place, Ready, Ticket, Turn};
use super::message::{Context, Message, Tail};
use super::{Pending, Unit, UnitError, in_time};
use crate::backend::{DbError, ReadGuard, Row, SqlPair, Statement, Transaction, Value};
use crate::cluster::{Group, Need, Shard};
use crate::consistency::ConsistencyToken;
use crate::entity::{CONTEXT, Calls};
use crate::idempotency::StoredAnswer;

static ENTER: LazyLock<SqlPair> = LazyLock::new(|| of_context("SELECT n, replay FROM public.pim_enter({context})"));
static LEAVE: LazyLock<SqlPair> =
    LazyLock::new(|| of_context("SELECT public.pim_leave({context}, ?, ?, ?, ?) AS n, NULL::jsonb AS replay"));
static OUTCOME: LazyLock<SqlPair> =
    LazyLock::new(|| of_context("SELECT request_id, n FROM public.pim_outcome({context})"));

/// An answer that is given again must be as safe as one that is given now: after a crash the record may be there although no
/// standby had it. This commits something of its own behind it, which waits for whomever a commit waits for.
pub(crate) const SETTLE: SqlPair = SqlPair::postgres("SELECT pim_settle()");

/// The same behind an answer that was read: in one statement, for the server that is asked now may not have it.
pub(super) const SETTLE_ANSWER: SqlPair = SqlPair::postgres("SELECT pim_settle() FROM idempotency WHERE scope = ?");

/// Between two questions what became of a commit; each waits for its locks as well.
const ASKED_AGAIN_AFTER: Duration = Duration::from_millis(20);

fn of_context(call: &str) -> SqlPair {
    SqlPair::generated_postgres(call.replace("{context}", CONTEXT))
}

/// Every statement of a unit that is sent to a server.
pub(super) fn pairs<'c>(calls: impl Iterator<Item = &'c Calls>) -> Vec<SqlPair> {
    let writes = calls.flat_map(|calls| calls.together.iter().chain([&calls.write]).cloned());
    [ENTER.clone(), LEAVE.clone(), OUTCOME.clone(), SETTLE, SETTLE_ANSWER].into_iter().chain(writes).collect()
}

impl Unit {
    /// Sends the unit, with those who wait as well unless it is to go alone; the home key's number after it.
    pub(super) async fn send_to_server(
        mut self,
        shard: &Shard,
        alone: bool,
    ) -> Result<(Self, Result<u64, UnitError>), UnitError> {
        let until = in_time(&self.cx)?;
        let parts = self.part_calls()?;
        if let Err(error) = shard.ready(until, Need::Write).await {
            // Nothing was sent: another one may have taken the shard's place meanwhile.
            return Ok((self, Err(error.into())));
        }
        let mut ready = Ready { unit: self, parts, until, since: Instant::now() };
        let Some(batches) = shard.group().map(Group::batches).filter(|_| ready.unit.goes_together()) else {
            // Nobody need wait for it.
            ready.unit.ticket = None;
            return Self::go_alone(Box::new(ready), None, shard).await;
        };
        let (ready, outcome) = match batches.join(ready, alone).await {
            Ok(Turn::Alone(ready, place)) => return Self::go_alone(ready, Some(place), shard).await,
            Ok(Turn::Sent(ready, outcome)) => (ready, outcome),
            Err(UnitError::Deadline) => {
                // Whoever waited behind calls that a lost server keeps hanging is told of the server.
                shard.ready(until, Need::Write).await?;
                return Err(UnitError::Deadline);
            }
            Err(error) => return Err(error),
        };
        let Ready { mut unit, parts, .. } = *ready;
        let outcome = match outcome {
            Err(UnitError::Database(error)) if error.is_ambiguous() => {
                unit.ticket = None;
                let found = unit.find_out(shard, until, &unit.message(&parts), error).await;
                found.inspect(|_| unit.tell_committed())
            }
            outcome => outcome,
        };
        Ok((unit, outcome))
    }

    /// Whether others may be in its transaction: a unit of several rows makes several trips.
    const fn goes_together(&self) -> bool {
        self.writes.len() == 1
    }

    async fn go_alone(
        mut ready: Box<Ready>,
        place: Option<Place>,
        shard: &Shard,
    ) -> Result<(Self, Result<u64, UnitError>), UnitError> {
        let ticket = ready.unit.ticket.take();
        let outcome = ready.unit.send_alone(shard, &ready, (place, ticket)).await;
        if outcome.is_ok() {
            ready.unit.tell_committed();
        }
        Ok((ready.unit, outcome))
    }

    /// What can have done nothing goes to whoever is the primary next. Whoever waits for that, or for what became of it, keeps
    /// neither a place nor others waiting.
    async fn send_alone(
        &self,
        shard: &Shard,
        Ready { parts, until, since, .. }: &Ready,
        mut turn: (Option<Place>, Option<Ticket>),
    ) -> Result<u64, UnitError> {
        let (this, until, db) = (self, *until, shard.db());
        let mut message = this.message(parts);
        let serves = || shard.group().is_none_or(|group| group.serves(Need::Write));
        if !serves() {
            turn = (None, None);
        }
        shard.ready(until, Need::Write).await?;
        // Ends with the deadline.
        loop {
            message.context.term = Some(db.demand().term);
            // A shard that is degraded is asked whether it still is; no other one is.
            message.context.alone = db.stands_alone();
            if let Some(place) = &mut turn.0 {
                place.call();
            }
            let conn = db.write_until(until).await;
            // It may have been waited for behind commits that a lost standby keeps hanging.
            if !serves() {
                drop(conn);
                turn = (None, None);
                shard.ready(until, Need::Write).await?;
                continue;
            }
            let outcome = match (conn, &this.writes[..]) {
                (Err(error), _) => Err(error.into()),
                (Ok(conn), [only]) => this.call_alone(conn, *since, only, &message).await,
                (Ok(conn), _) => this.call_together(conn, until, &message).await,
            };
            match outcome {
                Err(UnitError::Database(error)) if error.is_ambiguous() => {
                    drop(turn);
                    return this.find_out(shard, until, &message, error).await;
                }
                Err(UnitError::Database(error)) if error.is_before_effect() => {
                    turn = (None, None);
                    shard.recover(until, Need::Write, error).await?;
                }
                outcome => return outcome,
            }
        }
    }

    async fn call_alone(
        &self,
        mut conn: ReadGuard,
        since: Instant,
        only: &Pending,
        message: &Message<'_>,
    ) -> Result<u64, UnitError> {
        let write = self.write_call(only, &message.context, Some(&message.tail))?;
        self.cluster.0.settings.signals.called(std::iter::once(since.elapsed()));
        let rows = conn.query(write).await.map_err(|error| self.explain(error))?;
        self.reached(&rows)
    }

    async fn call_together(&self, conn: ReadGuard, until: Instant, message: &Message<'_>) -> Result<u64, UnitError> {
        let context = message.context.text();
        let (mut tx, rows) =
            conn.begin_calling(until, "pim_enter", &context).await.map_err(|error| self.explain(error))?;
        if let Err(found) = self.reached(&rows) {
            // Its entry has settled a stored answer: what this commits waits for a standby, and so does who is given it again.
            tx.commit().await.map_err(|error| self.explain(error))?;
            return Err(found);
        }
        let rows = self.run_in(&mut tx, message).await?;
        let head = self.reached(&rows)?;
        tx.commit().await.map_err(|error| self.explain(error))?;
        Ok(head)
    }

    /// Calls a function for each row, and the last one with the tail; the unit has been entered.
    async fn run_in(&self, tx: &mut Transaction, message: &Message<'_>) -> Result<Vec<Row>, UnitError> {
        let mut entered = message.context.clone();
        entered.entered = true;
        let Some((last, others)) = self.writes.split_last() else {
            // Parts alone, such as an event without a row.
            let leave = Self::left(LEAVE.clone(), &entered, &message.tail);
            return tx.query(leave).await.map_err(|error| self.explain(error));
        };
        for pending in others {
            let write = self.write_call(pending, &entered, None)?;
            tx.query(write).await.map_err(|error| self.explain(error))?;
        }
        let write = self.write_call(last, &entered, Some(&message.tail))?;
        tx.query(write).await.map_err(|error| self.explain(error))
    }

    /// Sends the unit inside a transaction that keeps everybody else out, to a primary of this term or a later one.
    pub(super) async fn send_in_bulk(&mut self, tx: &mut Transaction, term: u64) -> Result<(), UnitError> {
        let parts = self.part_calls()?;
        let mut message = self.message(&parts);
        (message.context.bulk, message.context.term) = (true, Some(term));
        let rows = match &self.writes[..] {
            [only] => {
                let write = self.write_call(only, &message.context, Some(&message.tail))?;
                tx.query(write).await.map_err(|error| self.explain(error))?
            }
            _ => {
                let enter = Statement::of(ENTER.clone()).bind_all(message.context.values());
                self.reached(&tx.query(enter).await.map_err(|error| self.explain(error))?)?;
                self.run_in(tx, &message).await?
            }
        };
        self.reached(&rows).map(drop)
    }

    fn write_call(
        &self,
        pending: &Pending,
        context: &Context<'_>,
        tail: Option<&Tail>,
    ) -> Result<Statement, UnitError> {
        let calls = self.cluster.schema().calls(pending.table);
        let calls = calls.ok_or(UnitError::NotLoaded { entity: pending.table.name })?;
        Ok(Self::written(calls.write.clone(), pending, context, tail))
    }

    /// The home key's number, unless the request was answered before.
    pub(super) fn reached(&self, rows: &[Row]) -> Result<u64, UnitError> {
        let row = rows.first().ok_or(DbError::Closed)?;
        if *row.get(1) == Value::Null {
            return Ok(row.count(0)?);
        }
        let stored: Json = serde_json::from_str(row.text(1)?).unwrap_or_default();
        let known = self.cx.idempotency().map(|submission| crate::audit::hex(submission.body()));
        if stored["body"].as_str() != known.as_deref() {
            return Err(UnitError::IdempotencyMismatch);
        }
        let status = stored["status"].as_u64().and_then(|status| u16::try_from(status).ok()).unwrap_or(500);
        let body = stored["answer"].as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let token = ConsistencyToken::of(self.home.uuid(), stored["n"].as_u64().unwrap_or_default());
        Err(UnitError::Replay(StoredAnswer { status, body, token }))
    }

    /// The commit was not answered: asks the idempotency record, once nobody is on the home key any more.
    async fn find_out(
        &self,
        shard: &Shard,
        until: Instant,
        message: &Message<'_>,
        error: DbError,
    ) -> Result<u64, UnitError> {
        if self.cx.idempotency().is_none() || self.answer.is_none() {
            return Err(UnitError::Unknown(error));
        }
        let context = message.context.values();
        let ask = async || {
            shard.db().write_until(until).await?.query(Statement::of(OUTCOME.clone()).bind_all(context.clone())).await
        };
        // Asking settles what it finds: who waits for a standby keeps no connection meanwhile.
        if shard.ready(until, Need::Write).await.is_err() {
            return Err(UnitError::Unknown(error));
        }
        // Ends with the deadline. Asking does nothing, so it may be done of whoever is the primary by now.
        let rows = loop {
            match ask().await {
                Ok(rows) => break rows,
                // Whoever commits is still on the home key, and waits for a standby perhaps.
                Err(DbError::Busy | DbError::Cancelled { .. }) => tokio::time::sleep(ASKED_AGAIN_AFTER).await,
                Err(again) => {
                    if shard.recover(until, Need::Write, again).await.is_err() {
                        return Err(UnitError::Unknown(error));
                    }
                }
            }
        };
        match rows.first() {
            Some(row) if row.uuid(0)? == self.cx.request_id().uuid() => Ok(row.count(1)?),
            // Somebody else's submission of the same, or none at all: running it again finds out.
            _ => Err(UnitError::Conflict),
        }
    }
}
