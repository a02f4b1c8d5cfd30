//! What the functions of a server get of a unit, as JSON.

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use serde_json::Value as Json;
use uuid::Uuid;

use super::{CommitFacts, Pending, Unit, UnitError};
use crate::audit::{Halves, Record, hex};
use crate::backend::Value;
use crate::entity::Column;
use crate::scope;

/// Who writes where, and what comes after the rows.
pub(super) struct Message<'u> {
    pub(super) context: Context<'u>,
    /// Written once, however often the unit is sent.
    pub(super) tail: String,
}

/// Who writes where, under which conditions.
#[derive(Clone, Serialize)]
pub(super) struct Context<'u> {
    bucket: u16,
    epoch: u32,
    home: Uuid,
    at: i64,
    user: &'u str,
    role: &'u str,
    request: Uuid,
    trace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    behalf: Option<&'u str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    /// The home key's number when the unit began to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency: Option<String>,
    /// Whoever was the primary before this term refuses the unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) term: Option<u64>,
    // The functions look whether these are there, so what is false is left out.
    /// Whether the database is asked if it need wait for no standby.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) alone: bool,
    /// Whether the unit has been entered in this transaction.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) entered: bool,
    /// Whether the transaction keeps everybody else out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) bulk: bool,
}

/// What comes after the rows.
#[derive(Serialize)]
struct Tail<'u> {
    parts: Vec<Part>,
    audit: Vec<Halves<'u>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<Answer>,
}

#[derive(Serialize)]
pub(super) struct Part {
    part: &'static str,
    facts: u64,
    data: Json,
}

#[derive(Serialize)]
struct Answer {
    body: String,
    status: u16,
    answer: String,
}

/// One row to write.
#[derive(Serialize)]
struct Written<'u> {
    id: Uuid,
    version: u64,
    facility: Option<Uuid>,
    scope: String,
    row: Members<'u>,
}

/// A row's own columns with what is written into them.
struct Members<'u>(&'u [Column], &'u [Value]);

struct Member<'u>(&'u Value);

impl Context<'_> {
    pub(super) fn text(&self) -> String {
        text(self)
    }

    pub(super) fn value(&self) -> Value {
        json(self)
    }
}

impl Unit {
    /// What the parts of other crates write; each is asked once.
    pub(super) fn part_calls(&mut self) -> Result<Vec<Part>, UnitError> {
        let facts = CommitFacts { cx: &self.cx, home: self.home, route: self.route, n_first: 0, at: self.at };
        let mut calls = Vec::with_capacity(self.parts.len());
        for part in &mut self.parts {
            if let Some(call) = part.call(&facts)? {
                calls.push(Part { part: call.part, facts: part.facts(), data: call.data });
            }
        }
        Ok(calls)
    }

    pub(super) fn message(&self, parts: Vec<Part>) -> Message<'_> {
        let records = Record::all(self, 0);
        let audit = records.iter().map(Record::halves).collect();
        let tail = Tail { parts, audit, answer: self.answer_to_store() };
        Message { context: self.who_where(), tail: text(&tail) }
    }

    fn who_where(&self) -> Context<'_> {
        let (cx, actor) = (&self.cx, self.cx.actor());
        Context {
            bucket: self.route.bucket.get(),
            epoch: self.route.epoch.0,
            home: self.home.uuid(),
            at: self.at.as_micros(),
            user: actor.subject().as_str(),
            role: actor.role().name(),
            request: cx.request_id().uuid(),
            trace: cx.trace().to_string(),
            behalf: actor.original().map(|original| original.as_str()),
            cause: cx.causation().map(|cause| cause.to_string()),
            head: self.head,
            idempotency: cx.idempotency().map(|submission| hex(submission.scope())),
            term: None,
            alone: false,
            entered: false,
            bulk: false,
        }
    }

    fn answer_to_store(&self) -> Option<Answer> {
        let (submission, (status, body)) = self.cx.idempotency().zip(self.answer.as_ref())?;
        Some(Answer { body: hex(submission.body()), status: *status, answer: text(body) })
    }

    /// One row, as its function takes it.
    pub(super) fn written(pending: &Pending) -> Value {
        json(&Written {
            id: pending.id,
            version: pending.version,
            facility: pending.facility,
            scope: scope::setting(&pending.scope),
            row: Members(pending.table.columns, &pending.values),
        })
    }
}

impl Serialize for Members<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_map(Some(self.0.len()))?;
        for (column, value) in self.0.iter().zip(self.1) {
            members.serialize_entry(column.name(), &Member(value))?;
        }
        members.end()
    }
}

impl Serialize for Member<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Null => serializer.serialize_unit(),
            Value::Int(number) => serializer.serialize_i64(*number),
            Value::Bool(flag) => serializer.serialize_bool(*flag),
            Value::Text(text) => serializer.serialize_str(text),
            Value::Json(text) => serde_json::from_str::<Json>(text).unwrap_or_default().serialize(serializer),
            Value::Uuid(uuid) => uuid.serialize(serializer),
            Value::Bytes(bytes) => serializer.serialize_str(&format!("\\x{}", hex(bytes))),
        }
    }
}

fn json(value: &impl Serialize) -> Value {
    Value::Json(text(value))
}

/// Maps with text keys, numbers and texts: nothing that could not be written.
fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
