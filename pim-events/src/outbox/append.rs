//! Facts ride the unit of work: appended to its slot, written by its transaction.

use pim_core::problem::{self, IntoProblem, Problem};
use pim_data::backend::{SqlPair, Statement, Value};
use pim_data::schema::SchemaBuilder;
use pim_data::unit::{CommitFacts, PartCall, PartError, Unit, UnitError, UnitPart};
use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::migrations;
use super::outlet::INBOX;
use crate::event::{DomainEvent, Registry};

/// Most bytes of one event's payload.
pub const EVENT_BYTES_MAX: usize = 64 * 1024;
/// Most events of one unit.
pub const EVENTS_PER_UNIT_MAX: usize = 256;

/// An event that is refused before anything is written. Carries names of types and rules, never content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The cluster's schema was built without events.
    #[error("the schema knows no events: build it with `.events(&registry)`")]
    NoRegistry,
    /// The type is not registered.
    #[error("event type {event_type} is not registered")]
    UnknownType {
        /// Which type.
        event_type: &'static str,
    },
    /// The type is registered in another version.
    #[error("event type {event_type} is registered in version {registered}, not {appended}")]
    Version {
        /// Which type.
        event_type: &'static str,
        /// The registered version.
        registered: u16,
        /// The version of the appended event.
        appended: u16,
    },
    /// The event breaks a rule of its own schema, or is no JSON object.
    #[error("event {event_type} breaks its schema: {rule}")]
    Schema {
        /// Which type.
        event_type: &'static str,
        /// Which rule.
        rule: &'static str,
    },
    /// The payload is too large.
    #[error("event {event_type} has {bytes} bytes, at most {EVENT_BYTES_MAX} are allowed")]
    TooLarge {
        /// Which type.
        event_type: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// The unit has as many events as it may.
    #[error("a unit appends at most {EVENTS_PER_UNIT_MAX} events")]
    TooMany,
}

impl AppendError {
    /// What it is, as one word for logs; stable.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoRegistry => "append.no_registry",
            Self::UnknownType { .. } => "append.unknown_type",
            Self::Version { .. } => "append.version",
            Self::Schema { .. } => "append.schema",
            Self::TooLarge { .. } => "append.too_large",
            Self::TooMany => "append.too_many",
        }
    }
}

/// Events are the program's own, so one that is refused is a defect of it, whatever the caller sent.
impl IntoProblem for AppendError {
    fn into_problem(self) -> Problem {
        Problem::of(problem::INTERNAL).because(self.code())
    }
}

impl From<AppendError> for UnitError {
    fn from(error: AppendError) -> Self {
        Self::given(error.code(), error)
    }
}

/// Appending events to a unit of work.
pub trait AppendExt {
    /// Adds a fact to what this unit commits; answers the event's id.
    ///
    /// # Errors
    /// [`AppendError`]; the unit is as it was, the caller decides.
    fn append<E: DomainEvent>(&mut self, event: &E) -> Result<Uuid, AppendError>;
}

impl AppendExt for Unit {
    fn append<E: DomainEvent>(&mut self, event: &E) -> Result<Uuid, AppendError> {
        let event_type = E::TYPE;
        let registry = self.schema().extension::<Registry>().ok_or(AppendError::NoRegistry)?;
        let registered = registry.version_of(event_type).ok_or(AppendError::UnknownType { event_type })?;
        if registered != E::VERSION {
            return Err(AppendError::Version { event_type, registered, appended: E::VERSION });
        }
        let broken = |rule| AppendError::Schema { event_type, rule };
        event.check().map_err(broken)?;
        let payload = serde_json::to_string(event).map_err(|_| broken("it cannot be written as json"))?;
        if !payload.starts_with('{') {
            return Err(broken("its payload is no json object"));
        }
        if payload.len() > EVENT_BYTES_MAX {
            return Err(AppendError::TooLarge { event_type, bytes: payload.len() });
        }
        let part = self.part::<OutboxPart>();
        if part.events.len() >= EVENTS_PER_UNIT_MAX {
            return Err(AppendError::TooMany);
        }
        let id = Uuid::now_v7();
        part.events.push(Appended {
            id,
            topic: E::TOPIC,
            event_type,
            schema_version: E::VERSION,
            aggregate: E::AGGREGATE,
            aggregate_id: event.aggregate_id(),
            aggregate_version: event.aggregate_version(),
            payload,
        });
        Ok(id)
    }
}

/// Giving a schema its events.
pub trait EventsExt {
    /// Adds the tables of the outbox to every database, and the events that units may append.
    fn events(self, registry: &Registry) -> Self;
}

impl EventsExt for SchemaBuilder {
    fn events(self, registry: &Registry) -> Self {
        self.everywhere(migrations()).moved(INBOX).extension(registry.clone())
    }
}

struct Appended {
    id: Uuid,
    topic: &'static str,
    event_type: &'static str,
    schema_version: u16,
    aggregate: &'static str,
    aggregate_id: Uuid,
    aggregate_version: u64,
    payload: String,
}

/// The events of one unit.
#[derive(Default)]
struct OutboxPart {
    events: Vec<Appended>,
}

impl std::fmt::Debug for OutboxPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutboxPart").field("events", &self.events.len()).finish()
    }
}

const INSERT: &str = "INSERT INTO outbox_event (bucket, lane, owner_epoch, home_key, n, event_id, topic, event_type, \
                      schema_version, aggregate, aggregate_id, aggregate_version, correlation, causation, \
                      traceparent, actor, role, at, payload) VALUES ";
const ROW: &str = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

impl UnitPart for OutboxPart {
    fn facts(&self) -> u64 {
        self.events.len() as u64
    }

    fn statements(&mut self, facts: &CommitFacts<'_>) -> Result<Vec<Statement>, PartError> {
        if self.events.is_empty() {
            return Ok(Vec::new());
        }
        let text = format!("{INSERT}{}", vec![ROW; self.events.len()].join(", "));
        let mut statement = Statement::of(SqlPair::generated(text));
        for (n, event) in (facts.n_first..).zip(&self.events) {
            statement = statement.bind_all(event.values(facts, n));
        }
        Ok(vec![statement])
    }

    fn call(&mut self, _facts: &CommitFacts<'_>) -> Result<Option<PartCall>, PartError> {
        let data = self.events.iter().map(Appended::data).collect();
        Ok((!self.events.is_empty()).then_some(PartCall { part: "outbox", data: Json::Array(data) }))
    }
}

impl Appended {
    /// What the database's function needs beside the unit's context.
    fn data(&self) -> Json {
        json!({
            "id": self.id,
            "topic": self.topic,
            "type": self.event_type,
            "version": self.schema_version,
            "aggregate": self.aggregate,
            "aggregate_id": self.aggregate_id,
            "aggregate_version": self.aggregate_version,
            "payload": self.payload,
        })
    }

    fn values(&self, facts: &CommitFacts<'_>, n: u64) -> [Value; 19] {
        let actor = facts.cx.actor();
        let route = facts.route;
        [
            route.bucket.get().into(),
            route.bucket.lane().get().into(),
            route.epoch.0.into(),
            facts.home.uuid().into(),
            n.into(),
            self.id.into(),
            self.topic.into(),
            self.event_type.into(),
            self.schema_version.into(),
            self.aggregate.into(),
            self.aggregate_id.into(),
            self.aggregate_version.into(),
            facts.cx.request_id().uuid().into(),
            facts.cx.causation().into(),
            facts.cx.trace().to_string().into(),
            actor.original().unwrap_or(actor.subject()).as_str().into(),
            actor.role().name().into(),
            facts.at.into(),
            self.payload.as_str().into(),
        ]
    }
}
