//! Records and the chain that ties them: hash = SHA-256(previous ‖ body).

use pim_core::clock::Timestamp;
use pim_core::context::RequestContext;
use pim_core::shard::Lane;
use serde::Serialize;
use serde_json::{Map, Value as Json, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::backend::{ColumnError, Engine, Row, SqlPair, Statement, Value};
use crate::unit::{Pending, Unit};

/// The hash before the first record of a lane.
pub(super) const GENESIS: [u8; 32] = [0; 32];

/// One change of one row, as it will stand in the trail.
#[derive(Debug)]
pub(crate) struct Record {
    body: String,
    at: Timestamp,
    request_id: Uuid,
    user: String,
    home: Uuid,
    entity: &'static str,
    entity_id: Uuid,
    lane: Lane,
}

impl Record {
    /// What a unit leaves in the trail: a record for each row, or one for its events when it writes none. So the number of a
    /// home key, `n` after the unit, is always that of its newest record.
    pub(crate) fn all(unit: &Unit, n: u64) -> Vec<Self> {
        if unit.writes.is_empty() && unit.facts() > 0 {
            return vec![Self::of_events(unit, n)];
        }
        unit.writes.iter().map(|pending| Self::of(unit, pending, n)).collect()
    }

    fn of_events(unit: &Unit, n: u64) -> Self {
        Self::written(unit, ("key", unit.home.uuid()), n, json!({"action": "tell"}))
    }

    fn of(unit: &Unit, pending: &Pending, n: u64) -> Self {
        let mut told = json!({
            "action": pending.action,
            "after": pending.table.shown(&pending.after),
            "after_digest": hex(&pending.table.digest(&pending.after)),
            "before": pending.before.as_ref().map(|stored| &stored.shown),
            "version": pending.version,
        });
        if let Json::Object(members) = &mut told {
            add_optional(members, "system", pending.system.map(str::to_owned));
        }
        Self::written(unit, (pending.table.name, pending.id), n, told)
    }

    /// A record of a unit: what each says of who, when and for which request, beside what it tells of its own.
    fn written(unit: &Unit, (entity, entity_id): (&'static str, Uuid), n: u64, told: Json) -> Self {
        let actor = unit.cx.actor();
        let mut body = json!({
            "at": unit.at.as_micros(),
            "entity": entity,
            "home": unit.home.to_string(),
            "id": entity_id.to_string(),
            "n": n,
            "request": unit.cx.request_id().to_string(),
            "role": actor.role().name(),
            "trace": unit.cx.trace().trace_id().to_string(),
            "user": actor.subject().as_str(),
        });
        if let (Json::Object(members), Json::Object(told)) = (&mut body, told) {
            members.extend(told);
            add_optional(members, "behalf", actor.original().map(|subject| subject.as_str().to_owned()));
            add_optional(members, "cause", unit.cx.causation().map(|event| event.to_string()));
        }
        Self {
            // Members are sorted and numbers are whole, which makes this text canonical (RFC 8785).
            body: serde_json::to_string(&body).unwrap_or_default(),
            at: unit.at,
            request_id: unit.cx.request_id().uuid(),
            user: actor.subject().as_str().to_owned(),
            home: unit.home.uuid(),
            entity,
            entity_id,
            lane: unit.route.bucket.lane(),
        }
    }
}

impl Record {
    /// The record of something that happened to a bucket as a whole, under the id of the operation that did it.
    pub(crate) fn of_bucket(
        cx: &RequestContext,
        at: Timestamp,
        lane: Lane,
        told: (&'static str, Uuid),
        facts: Json,
    ) -> Self {
        Self::of_whole(cx, at, lane, "bucket", told, facts)
    }

    /// The record of something that happened to a shard, under the id of the request that did it.
    pub(crate) fn of_shard(cx: &RequestContext, at: Timestamp, lane: Lane, action: &'static str, facts: Json) -> Self {
        Self::of_whole(cx, at, lane, "shard", (action, cx.request_id().uuid()), facts)
    }

    fn of_whole(
        cx: &RequestContext,
        at: Timestamp,
        lane: Lane,
        entity: &'static str,
        (action, id): (&'static str, Uuid),
        facts: Json,
    ) -> Self {
        let actor = cx.actor();
        let body = json!({
            "action": action,
            "after": facts,
            "at": at.as_micros(),
            "entity": entity,
            "home": id.to_string(),
            "id": id.to_string(),
            "request": cx.request_id().to_string(),
            "role": actor.role().name(),
            "trace": cx.trace().trace_id().to_string(),
            "user": actor.subject().as_str(),
        });
        let user = actor.subject().as_str().to_owned();
        let request_id = cx.request_id().uuid();
        Self { body: body.to_string(), at, request_id, user, home: id, entity, entity_id: id, lane }
    }
}

/// A record without its number.
#[derive(Debug, Serialize)]
pub(crate) struct Halves<'r> {
    head: &'r str,
    tail: &'r str,
    entity: &'static str,
    id: Uuid,
}

/// What stands around the home key's number in a record's text.
const NUMBER: &str = ",\"n\":0,\"request\":";

impl Record {
    /// The record as a server takes it, made with number 0: the text before and behind the number, which only the database
    /// knows.
    pub(crate) fn halves(&self) -> Halves<'_> {
        // The last one is the record's own: behind it stand texts only, in which a quotation mark is escaped.
        let at = self.body.rfind(NUMBER).unwrap_or_default() + ",\"n\":".len();
        let (head, tail) = self.body.split_at(at);
        Halves { head, tail: &tail[1..], entity: self.entity, id: self.entity_id }
    }
}

fn add_optional(members: &mut Map<String, Json>, name: &str, value: Option<String>) {
    if let Some(value) = value {
        members.insert(name.to_owned(), Json::from(value));
    }
}

pub(super) const END: SqlPair = SqlPair::same("SELECT seq, hash FROM audit WHERE lane = ? ORDER BY seq DESC LIMIT 1");
pub(super) const APPEND: SqlPair = SqlPair::same(
    "INSERT INTO audit (lane, seq, previous, hash, body, at, request_id, user_id, home_key, entity, entity_id) \
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
);

pub(super) const NO_BULK: SqlPair = SqlPair::postgres("LOCK TABLE key_head IN ROW EXCLUSIVE MODE");
pub(super) const HOLD: SqlPair = SqlPair::postgres("SELECT pg_advisory_xact_lock(7462, ?::int)");

/// The end of a lane's chain.
#[derive(Clone, Debug)]
pub(crate) struct LaneHead {
    seq: u64,
    hash: [u8; 32],
}

impl LaneHead {
    /// Keeps every other writer off a lane until the transaction ends; nothing to do on the embedded engine, which has one
    /// writer. In the order of a unit: whoever has all lanes, for a bulk commit, has the heads first.
    pub(crate) fn hold(engine: Engine, lane: Lane) -> Vec<Statement> {
        match engine {
            Engine::Sqlite => Vec::new(),
            Engine::Postgres => vec![Statement::of(NO_BULK), Statement::of(HOLD).bind(lane.get())],
        }
    }

    /// Finds the end of a lane.
    pub(crate) fn look_up(lane: Lane) -> Statement {
        Statement::of(END).bind(lane.get())
    }

    /// From the row that [`LaneHead::look_up`] finds.
    pub(crate) fn of(row: Option<&Row>) -> Result<Self, ColumnError> {
        row.map_or(Ok(Self { seq: 0, hash: GENESIS }), |row| Self::at(row, 0))
    }

    /// From the two columns of a joined row that begin at `from`.
    pub(crate) fn at(row: &Row, from: usize) -> Result<Self, ColumnError> {
        if *row.get(from) == Value::Null {
            return Ok(Self { seq: 0, hash: GENESIS });
        }
        Ok(Self { seq: row.count(from)?, hash: row.digest(from + 1)? })
    }

    /// Number and hash, as a record at another end quotes them.
    pub(crate) fn text(&self) -> String {
        format!("{}:{}", self.seq, hex(&self.hash))
    }

    /// The statement that appends a record, and the new end.
    pub(crate) fn append(&mut self, record: &Record) -> Statement {
        let previous = self.hash;
        self.hash = link(&previous, &record.body);
        self.seq += 1;
        let insert = Statement::of(APPEND).bind(record.lane.get()).bind(self.seq).bind(&previous).bind(&self.hash);
        let insert = insert.bind(record.body.as_str()).bind(record.at).bind(record.request_id);
        insert.bind(record.user.as_str()).bind(record.home).bind(record.entity).bind(record.entity_id)
    }
}

/// The hash of a record behind `previous`.
pub(super) fn link(previous: &[u8; 32], body: &str) -> [u8; 32] {
    Sha256::new().chain_update(previous).chain_update(body.as_bytes()).finalize().into()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let halves = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    halves.map(|half| char::from(DIGITS[usize::from(half)])).collect()
}

/// A hash from its text; of anything else, one that no record has.
pub(crate) fn unhex(text: &str) -> [u8; 32] {
    let byte = |at: usize| text.get(2 * at..2 * at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    std::array::from_fn(|at| byte(at).unwrap_or(0xff))
}
