//! What a fact is: the event trait that programs implement, and the envelope that travels.

mod envelope;
mod registry;

pub use envelope::{EnvelopeError, HEADER_BYTES_MAX, Headers};
pub(crate) use registry::is_name;
pub use registry::{Registry, RegistryBuilder, RegistryError, UpcastError};

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use pim_core::clock::Timestamp;
use pim_core::context::{RequestContext, RequestId, TraceContext};
use pim_core::deadline::Deadline;
use pim_core::id::{Id, IdKind};
use pim_core::identity::{Actor, Subject};
use pim_core::shard::{Bucket, Epoch, HomeKey, ShardId, ShardKey};
use pim_core::signal::{Span, SpanKind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use uuid::Uuid;

/// The topic that carries every domain event of every key.
pub const DOMAIN_TOPIC: &str = "domain.v1";

/// A fact of the embedding program's domain, in its newest schema version.
///
/// ```
/// use pim_events::DomainEvent;
/// use serde::{Deserialize, Serialize};
/// use uuid::Uuid;
///
/// #[derive(Serialize, Deserialize)]
/// struct OrderPlaced {
///     order: Uuid,
///     version: u64,
/// }
///
/// impl DomainEvent for OrderPlaced {
///     const TYPE: &'static str = "order.placed";
///     const AGGREGATE: &'static str = "order";
///     fn aggregate_id(&self) -> Uuid {
///         self.order
///     }
///     fn aggregate_version(&self) -> u64 {
///         self.version
///     }
/// }
/// assert_eq!(OrderPlaced::VERSION, 1);
/// ```
pub trait DomainEvent: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Stable name in lower case with dots, such as `encounter.completed`; at most 64 characters.
    const TYPE: &'static str;
    /// Version of the payload's schema; a change that old readers cannot take raises it and adds an upcaster.
    const VERSION: u16 = 1;
    /// What kind of thing the fact tells of: a name of the same form.
    const AGGREGATE: &'static str;
    /// The topic that carries it, a name of the same form. All events of a key go to one topic: a consumer of another would
    /// wait for the numbers that it does not see.
    const TOPIC: &'static str = DOMAIN_TOPIC;

    /// Which thing the fact tells of.
    fn aggregate_id(&self) -> Uuid;

    /// The version of that thing after the fact.
    fn aggregate_version(&self) -> u64;

    /// Rules of the payload that its Rust type cannot say.
    ///
    /// # Errors
    /// The static name of the rule that does not hold; the event is then refused at append.
    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

/// Which outbox a fact left from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// A shard.
    Shard(ShardId),
    /// The control database.
    Control,
}

impl Origin {
    /// Which shard; `None` for the control database.
    #[must_use]
    pub const fn shard(self) -> Option<ShardId> {
        match self {
            Self::Shard(shard) => Some(shard),
            Self::Control => None,
        }
    }
}

impl From<Option<ShardId>> for Origin {
    fn from(shard: Option<ShardId>) -> Self {
        shard.map_or(Self::Control, Self::Shard)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shard(shard) => write!(f, "shard/{shard}"),
            Self::Control => f.write_str("control"),
        }
    }
}

/// A text that names no [`Origin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("origin is neither control nor shard/N")]
pub struct ParseOriginError;

impl FromStr for Origin {
    type Err = ParseOriginError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("shard/") {
            Some(number) => number.parse().map(|n| Self::Shard(ShardId(n))).map_err(|_| ParseOriginError),
            None if text == "control" => Ok(Self::Control),
            None => Err(ParseOriginError),
        }
    }
}

/// A fact with everything that consumers need to know of it (CloudEvents 1.0 with this project's extensions).
///
/// `n` is the dense number of its home key: `1, 2, 3 …` over all aggregates of the key.
#[derive(Clone, Debug)]
pub struct Event {
    /// UUIDv7, unique.
    pub id: Uuid,
    /// Where it was written.
    pub origin: Origin,
    /// [`DomainEvent::TYPE`].
    pub event_type: String,
    /// [`DomainEvent::VERSION`] of the payload.
    pub schema_version: u16,
    /// When the unit of work committed.
    pub time: Timestamp,
    /// The home key: partition key and scope of order.
    pub home: Uuid,
    /// The home key's bucket.
    pub bucket: Bucket,
    /// The home key's dense number.
    pub n: u64,
    /// Ownership epoch of the bucket as the write read it.
    pub owner_epoch: Epoch,
    /// [`DomainEvent::AGGREGATE`].
    pub aggregate: String,
    /// [`DomainEvent::aggregate_id`].
    pub aggregate_id: Uuid,
    /// [`DomainEvent::aggregate_version`].
    pub aggregate_version: u64,
    /// The request that it was written for.
    pub correlation: RequestId,
    /// The event that caused the write, if one did.
    pub causation: Option<Uuid>,
    /// The trace of the write.
    pub trace: TraceContext,
    /// Opaque id of who wrote, or on whose behalf a service did.
    pub actor: String,
    /// Role of the writer.
    pub role: String,
    /// Position in its outbox, for people and journeys; never compared across outboxes.
    pub seq: u64,
    /// When the bus took it; `None` before that, and for an event that was held.
    pub published_at: Option<Timestamp>,
    /// The payload as JSON text.
    pub payload: Box<RawValue>,
}

/// A payload that is not what its type says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The event is of another type.
    #[error("event is of another type than {wanted}")]
    Type {
        /// The type asked for.
        wanted: &'static str,
    },
    /// The payload is of another schema version; upcast it first.
    #[error("event {wanted} has schema version {found}: bring it up to date with `Registry::upcast`")]
    Version {
        /// The type asked for.
        wanted: &'static str,
        /// The version found.
        found: u16,
    },
    /// The payload does not fit the type.
    // The source is dropped: serde's text may quote the payload.
    #[error("payload of {wanted} does not fit its schema")]
    Payload {
        /// The type asked for.
        wanted: &'static str,
    },
}

impl Event {
    /// Whether this is an `E`.
    #[must_use]
    pub fn is<E: DomainEvent>(&self) -> bool {
        self.event_type == E::TYPE
    }

    /// The payload as `E`.
    ///
    /// # Errors
    /// [`DecodeError`] when type, version or shape differ.
    pub fn decode<E: DomainEvent>(&self) -> Result<E, DecodeError> {
        if !self.is::<E>() {
            return Err(DecodeError::Type { wanted: E::TYPE });
        }
        if self.schema_version != E::VERSION {
            return Err(DecodeError::Version { wanted: E::TYPE, found: self.schema_version });
        }
        serde_json::from_str(self.payload.get()).map_err(|_| DecodeError::Payload { wanted: E::TYPE })
    }

    /// The home key with its bucket.
    #[must_use]
    pub fn home_key(&self) -> HomeKey {
        HomeKey::of(&StoredKey { uuid: self.home, bucket: self.bucket })
    }

    /// An id that a handler of this event makes again, should it run again.
    #[must_use]
    pub fn derive_id<K: IdKind>(&self, ordinal: u32) -> Id<K> {
        Id::child_derived(self.bucket, self.time, self.id.as_bytes(), ordinal)
    }

    /// A span about this event, as a child of the span that wrote it.
    #[must_use]
    pub fn span(&self, kind: SpanKind, name: &'static str, time: (Timestamp, Duration)) -> Span {
        Span::new(kind, name, self.trace.child(), self.correlation, time).of_event(self.id)
    }

    /// The context in which a service acts on this event: same request, same trace, caused by it,
    /// on behalf of who wrote it.
    #[must_use]
    pub fn context(&self, service: &Actor, deadline: Deadline) -> RequestContext {
        let actor = match self.actor.parse::<Subject>() {
            Ok(original) => service.clone().on_behalf_of(original),
            Err(_) => service.clone(),
        };
        RequestContext::new(self.correlation, actor, deadline).with_trace(self.trace.child()).with_causation(self.id)
    }
}

/// A home key as a record stores it.
struct StoredKey {
    uuid: Uuid,
    bucket: Bucket,
}

impl ShardKey for StoredKey {
    fn bucket(&self) -> Bucket {
        self.bucket
    }

    fn key_uuid(&self) -> Uuid {
        self.uuid
    }
}
