//! What the functions of a server get of a unit: values, and JSON only for what has no end that is known.

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use super::{CommitFacts, Pending, Unit, UnitError};
use crate::audit::{Halves, Record, hex};
use crate::backend::{SqlPair, Statement, Value};
use crate::scope;

/// Who writes where, and what comes after the rows.
pub(super) struct Message<'u> {
    pub(super) context: Context<'u>,
    pub(super) tail: Tail,
}

/// Who writes where, under which conditions: a `pim_context`.
#[derive(Clone)]
pub(super) struct Context<'u> {
    unit: &'u Unit,
    /// Whoever was the primary before this term refuses the unit.
    pub(super) term: Option<u64>,
    /// Whether the database is asked if it need wait for no standby.
    pub(super) alone: bool,
    /// Whether the unit has been entered in this transaction.
    pub(super) entered: bool,
    /// Whether the transaction keeps everybody else out.
    pub(super) bulk: bool,
}

/// What comes after the rows; written once, however often the unit is sent.
pub(super) struct Tail {
    parts: String,
    status: Option<u16>,
    answer: Option<String>,
    records: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Part {
    part: &'static str,
    facts: u64,
    data: Json,
}

/// What a `pim_context` is made of, in its order.
const MEMBERS: [&str; 17] = [
    "bucket",
    "epoch",
    "home",
    "at",
    "user_id",
    "role",
    "request",
    "trace",
    "behalf",
    "cause",
    "head",
    "submission",
    "body",
    "term",
    "alone",
    "entered",
    "bulk",
];

/// Members with their values, as JSON.
struct Members<'u>(&'u [Value]);

struct Member<'u>(&'u Value);

impl Context<'_> {
    /// In the order of [`MEMBERS`].
    pub(super) fn values(&self) -> [Value; MEMBERS.len()] {
        let (unit, cx) = (self.unit, &self.unit.cx);
        let (actor, submission) = (cx.actor(), cx.idempotency());
        [
            unit.route.bucket.get().into(),
            unit.route.epoch.0.into(),
            unit.home.uuid().into(),
            unit.at.into(),
            actor.subject().as_str().into(),
            actor.role().name().into(),
            cx.request_id().uuid().into(),
            cx.trace().to_string().into(),
            actor.original().map(|original| original.as_str()).into(),
            cx.causation().into(),
            unit.head.into(),
            submission.map(|it| it.scope().as_slice()).into(),
            submission.map(|it| it.body().as_slice()).into(),
            self.term.into(),
            self.alone.into(),
            self.entered.into(),
            self.bulk.into(),
        ]
    }

    /// As JSON, for a call that takes no values.
    pub(super) fn text(&self) -> String {
        text(&Members(&self.values()))
    }
}

impl Tail {
    const NONE: [Value; 4] = [Value::Null, Value::Null, Value::Null, Value::Null];

    fn values(&self) -> [Value; 4] {
        let answer = self.answer.as_deref();
        [Value::Json(self.parts.clone()), self.status.into(), answer.into(), Value::Json(self.records.clone())]
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

    pub(super) fn message(&self, parts: &[Part]) -> Message<'_> {
        let records = Record::all(self, 0);
        let records: Vec<Halves<'_>> = records.iter().map(Record::halves).collect();
        let answer = self.answer.as_ref().filter(|_| self.cx.idempotency().is_some());
        let tail = Tail {
            parts: text(parts),
            status: answer.map(|(status, _)| *status),
            answer: answer.map(|(_, body)| text(body)),
            records: text(&records),
        };
        let context = Context { unit: self, term: None, alone: false, entered: false, bulk: false };
        Message { context, tail }
    }

    /// The call that writes one row, and with a tail also leaves.
    pub(super) fn written(write: SqlPair, pending: &Pending, context: &Context<'_>, tail: Option<&Tail>) -> Statement {
        Statement::of(write).bind_all(context.values()).bind_all(row(pending, tail))
    }

    /// The call that writes one row of each of several units: column by column, as arrays are made of them.
    pub(super) fn bound_together(write: SqlPair, units: Vec<(&Pending, Message<'_>)>) -> Statement {
        let contexts = units.iter().flat_map(|(_, message)| message.context.values());
        let write = Statement::of(write).bind_all(contexts);
        let mut rows: Vec<_> = units.into_iter().map(|(pending, message)| row(pending, Some(&message.tail))).collect();
        let width = rows.iter().map(Vec::len).min().unwrap_or_default();
        (0..width).fold(write, |write, column| {
            write.bind_all(rows.iter_mut().map(|row| std::mem::replace(&mut row[column], Value::Null)))
        })
    }

    /// The call that leaves where no row was written.
    pub(super) fn left(leave: SqlPair, context: &Context<'_>, tail: &Tail) -> Statement {
        Statement::of(leave).bind_all(context.values()).bind_all(tail.values())
    }
}

/// What a row's call takes behind the context.
fn row(pending: &Pending, tail: Option<&Tail>) -> Vec<Value> {
    let scope = scope::setting(&pending.scope);
    let own = [pending.id.into(), pending.version.into(), pending.facility.into(), scope.into()];
    let values = pending.values.iter().cloned();
    own.into_iter().chain(values).chain(tail.map_or(Tail::NONE, Tail::values)).collect()
}

impl Serialize for Members<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_map(Some(MEMBERS.len()))?;
        for (name, value) in MEMBERS.iter().zip(self.0) {
            members.serialize_entry(name, &Member(value))?;
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

/// Maps with text keys, numbers and texts: nothing that could not be written.
pub(super) fn text(value: &(impl Serialize + ?Sized)) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::MEMBERS;
    use crate::entity::CONTEXT;

    /// The call makes the type by place, a transaction of several calls by name.
    #[test]
    fn the_type_has_these_members_in_this_order() {
        let shard = include_str!("../../migrations/postgres/0001_shard.sql");
        let (_, made) = shard.split_once("CREATE TYPE pim_context AS (").expect("is made");
        let (made, _) = made.split_once(");").expect("has an end");
        let lines = made.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("--"));
        let names: Vec<_> = lines.filter_map(|line| line.split_once(' ')).map(|(name, _)| name).collect();
        assert_eq!(names, MEMBERS);
        assert_eq!(CONTEXT.matches('?').count(), MEMBERS.len());
    }
}
