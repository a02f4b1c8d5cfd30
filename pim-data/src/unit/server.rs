//! Sending a unit to a server: one entity with its events and records is one call of its generated function, in a
//! transaction of its own; several are `BEGIN` with the entry, one call each, and `COMMIT`.

use serde_json::{Map, Value as Json, json};
use tokio::time::Instant;

use super::{CommitFacts, Pending, Unit, UnitError, in_time};
use crate::audit::Record;
use crate::backend::{Db, DbError, Row, SqlPair, Statement, Transaction, Value};
use crate::cluster::{Need, Shard};
use crate::consistency::ConsistencyToken;
use crate::entity::Calls;
use crate::idempotency::StoredAnswer;
use crate::scope;

const ENTER: SqlPair = SqlPair::postgres("SELECT n, replay FROM pim_enter(?)");
const LEAVE: SqlPair = SqlPair::postgres("SELECT pim_leave(?, ?) AS n, NULL::jsonb AS replay");
const OUTCOME: SqlPair = SqlPair::postgres("SELECT request_id, n FROM pim_outcome(?)");

/// An answer that is given again must be as safe as one that is given now: after a crash the record may be there although no
/// standby had it. This commits something of its own behind it, which waits for whomever a commit waits for.
pub(crate) const SETTLE: SqlPair = SqlPair::postgres("SELECT pim_settle()");

/// Every statement of a unit that is sent to a server.
pub(super) fn pairs<'c>(calls: impl Iterator<Item = &'c Calls>) -> Vec<SqlPair> {
    let writes = calls.map(|calls| SqlPair::generated_postgres(calls.write.clone()));
    [ENTER, LEAVE, OUTCOME, SETTLE].into_iter().chain(writes).collect()
}

/// What the database functions get of a unit.
pub(super) struct Message {
    context: Map<String, Json>,
    tail: Json,
}

impl Unit {
    /// Sends the unit; the home key's number after it. What can have done nothing goes to whoever is the primary next.
    pub(super) async fn send_to_server(&mut self, shard: &Shard) -> Result<u64, UnitError> {
        let (until, db) = (in_time(&self.cx)?, shard.db());
        let mut message = self.message()?;
        shard.ready(until, Need::Write).await?;
        // Ends with the deadline.
        loop {
            // Whoever was the primary before this term refuses the unit.
            message.context.insert("term".to_owned(), db.demand().term.into());
            // A shard that is degraded is asked whether it still is; no other one is.
            if db.stands_alone() {
                message.context.insert("alone".to_owned(), true.into());
            } else {
                message.context.remove("alone");
            }
            let outcome = match &self.writes[..] {
                [only] => self.call_alone(db, until, only, &message).await,
                _ => self.call_together(db, until, &message).await,
            };
            match outcome {
                Err(UnitError::Database(error)) if error.is_ambiguous() => {
                    return self.find_out(shard, until, &message, error).await;
                }
                Err(UnitError::Database(error)) if error.is_before_effect() => {
                    shard.recover(until, Need::Write, error).await?;
                }
                outcome => return outcome,
            }
        }
    }

    /// Context and tail: who writes where, and what comes after the rows.
    pub(super) fn message(&mut self) -> Result<Message, UnitError> {
        let actor = self.cx.actor();
        let mut context = json!({
            "bucket": self.route.bucket.get(),
            "epoch": self.route.epoch.0,
            "home": self.home.uuid().as_hyphenated().to_string(),
            "at": self.at.as_micros(),
            "user": actor.subject().as_str(),
            "role": actor.role().name(),
            "request": self.cx.request_id().uuid().as_hyphenated().to_string(),
            "trace": self.cx.trace().to_string(),
        });
        let mut tail = json!({"parts": self.part_calls()?, "audit": self.audit_halves()});
        if let Some(original) = self.cx.actor().original() {
            context["behalf"] = original.as_str().into();
        }
        if let Some(cause) = self.cx.causation() {
            context["cause"] = cause.to_string().into();
        }
        if let Some(head) = self.head {
            context["head"] = head.into();
        }
        if let Some(submission) = self.cx.idempotency() {
            context["idempotency"] = crate::audit::hex(submission.scope()).into();
            if let Some((status, body)) = &self.answer {
                let known = crate::audit::hex(submission.body());
                tail["answer"] = json!({"body": known, "status": status, "answer": body.to_string()});
            }
        }
        let Json::Object(context) = context else { return Err(DbError::Closed.into()) };
        Ok(Message { context, tail })
    }

    fn part_calls(&mut self) -> Result<Vec<Json>, UnitError> {
        let facts = CommitFacts { cx: &self.cx, home: self.home, route: self.route, n_first: 0, at: self.at };
        let mut calls = Vec::with_capacity(self.parts.len());
        for part in &mut self.parts {
            if let Some(call) = part.call(&facts)? {
                calls.push(json!({"part": call.part, "facts": part.facts(), "data": call.data}));
            }
        }
        Ok(calls)
    }

    fn audit_halves(&self) -> Vec<Json> {
        Record::all(self, 0).iter().map(Record::halves).collect()
    }

    async fn call_alone(&self, db: &Db, until: Instant, only: &Pending, message: &Message) -> Result<u64, UnitError> {
        let write = self.write_call(only, &message.context, Some(&message.tail))?;
        let mut conn = db.read_until(until).await?;
        let rows = conn.query(write).await.map_err(|error| self.explain(error))?;
        self.reached(&rows)
    }

    async fn call_together(&self, db: &Db, until: Instant, message: &Message) -> Result<u64, UnitError> {
        let context = Json::Object(message.context.clone());
        let (mut tx, rows) =
            db.begin_calling(until, "pim_enter", &context).await.map_err(|error| self.explain(error))?;
        self.reached(&rows)?;
        let rows = self.run_in(&mut tx, message).await?;
        let head = self.reached(&rows)?;
        tx.commit().await.map_err(|error| self.explain(error))?;
        Ok(head)
    }

    /// Calls a function for each row, and the last one with the tail; the unit has been entered.
    async fn run_in(&self, tx: &mut Transaction, message: &Message) -> Result<Vec<Row>, UnitError> {
        let mut entered = message.context.clone();
        entered.insert("entered".to_owned(), Json::Bool(true));
        let Some((last, others)) = self.writes.split_last() else {
            // Parts alone, such as an event without a row.
            let leave = Statement::of(LEAVE).bind(Value::Json(Json::Object(entered).to_string()));
            let leave = leave.bind(Value::Json(message.tail.to_string()));
            return tx.query(leave).await.map_err(|error| self.explain(error));
        };
        for pending in others {
            let write = self.write_call(pending, &entered, None)?;
            tx.query(write).await.map_err(|error| self.explain(error))?;
        }
        let write = self.write_call(last, &entered, Some(&message.tail))?;
        tx.query(write).await.map_err(|error| self.explain(error))
    }

    /// Sends the unit inside a transaction that keeps everybody else out.
    pub(super) async fn send_in_bulk(&mut self, tx: &mut Transaction) -> Result<(), UnitError> {
        let mut message = self.message()?;
        message.context.insert("bulk".to_owned(), Json::Bool(true));
        let rows = match &self.writes[..] {
            [only] => {
                let write = self.write_call(only, &message.context, Some(&message.tail))?;
                tx.query(write).await.map_err(|error| self.explain(error))?
            }
            _ => {
                let context = Value::Json(Json::Object(message.context.clone()).to_string());
                let enter = Statement::of(ENTER).bind(context);
                self.reached(&tx.query(enter).await.map_err(|error| self.explain(error))?)?;
                self.run_in(tx, &message).await?
            }
        };
        self.reached(&rows).map(drop)
    }

    fn write_call(
        &self,
        pending: &Pending,
        context: &Map<String, Json>,
        tail: Option<&Json>,
    ) -> Result<Statement, UnitError> {
        let calls = self.cluster.schema().calls(pending.table);
        let calls = calls.ok_or(UnitError::NotLoaded { entity: pending.table.name })?;
        let mut record = scope::members(&pending.scope);
        record.insert("id".to_owned(), pending.id.as_hyphenated().to_string().into());
        record.insert("version".to_owned(), pending.version.into());
        record.insert("facility".to_owned(), pending.facility.map(|it| it.as_hyphenated().to_string()).into());
        let row = pending.table.columns.iter().zip(&pending.values);
        let row = row.map(|(column, value)| (column.name().to_owned(), json_of(value)));
        record.insert("row".to_owned(), Json::Object(row.collect()));
        let write = Statement::of(SqlPair::generated_postgres(calls.write.clone()));
        let json = |text: String| Value::Json(text);
        let write = write.bind(json(serde_json::to_string(context).unwrap_or_default()));
        Ok(write.bind(json(Json::Object(record).to_string())).bind(tail.map(|tail| json(tail.to_string()))))
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
        message: &Message,
        error: DbError,
    ) -> Result<u64, UnitError> {
        if self.cx.idempotency().is_none() || self.answer.is_none() {
            return Err(UnitError::Unknown(error));
        }
        let context = Value::Json(Json::Object(message.context.clone()).to_string());
        let ask =
            async || shard.db().read_until(until).await?.query(Statement::of(OUTCOME).bind(context.clone())).await;
        // Ends with the deadline. Asking does nothing, so it may be done of whoever is the primary by now.
        let rows = loop {
            match ask().await {
                Ok(rows) => break rows,
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

fn json_of(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Int(number) => Json::from(*number),
        Value::Bool(flag) => Json::from(*flag),
        Value::Text(text) => Json::from(text.as_str()),
        Value::Json(text) => serde_json::from_str(text).unwrap_or_default(),
        Value::Uuid(uuid) => Json::from(uuid.as_hyphenated().to_string()),
        Value::Bytes(bytes) => Json::from(format!("\\x{}", crate::audit::hex(bytes))),
    }
}
