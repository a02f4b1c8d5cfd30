//! The request context: who, which request, which trace, until when. Every data and event call takes it first.

mod key;
mod layer;
mod note;
mod session;
mod trace;

pub use key::{IdempotencyKey, ParseKeyError};
pub use layer::{RequestContextLayer, TXN_TOKEN_HEADER, WithContext};
pub use note::ContextNote;
pub use session::{SessionContext, SessionError};
pub use trace::{ParseTraceError, ParseTraceIdError, SpanId, TraceContext, TraceId};

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::deadline::Deadline;
use crate::identity::Actor;
use crate::shard::ShardId;

/// The id of one request, minted at the edge as a UUIDv7; the same in logs, audit records, events and problems.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct RequestId(Uuid);

/// A text that is no request id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request id is not a uuid")]
pub struct ParseRequestIdError;

impl RequestId {
    /// Mints a new one.
    #[must_use]
    pub fn mint() -> Self {
        Self(Uuid::now_v7())
    }

    /// Takes a UUID that an earlier hop minted.
    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The bare UUID.
    #[must_use]
    pub const fn uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.as_hyphenated(), f)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RequestId {
    type Err = ParseRequestIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self).map_err(|_| ParseRequestIdError)
    }
}

/// What makes two submissions the same: principal, method, route, key; and the digest that tells whether they agree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdempotencyScope {
    scope: [u8; 32],
    body: [u8; 32],
}

impl IdempotencyScope {
    /// Builds the scope from its parts. `route` is the concrete path, `key` that of an [`IdempotencyKey`], `body` the canonical body.
    #[must_use]
    pub fn new(principal: &str, method: &str, route: &str, key: &str, body: &[u8]) -> Self {
        let mut hash = Sha256::new();
        for part in [principal, method, route, key] {
            // Length first, so that no two lists of parts read the same.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        Self { scope: hash.finalize().into(), body: Sha256::digest(body).into() }
    }

    /// SHA-256 over principal, method, route and key.
    #[must_use]
    pub const fn scope(&self) -> &[u8; 32] {
        &self.scope
    }

    /// SHA-256 of the canonical body.
    #[must_use]
    pub const fn body(&self) -> &[u8; 32] {
        &self.body
    }
}

/// Everything that a call below the edge needs to know of the request it serves. Cheap to clone.
///
/// ```
/// use std::time::Duration;
/// use pim_core::context::{RequestContext, RequestId, TraceContext};
/// use pim_core::deadline::Deadline;
/// use pim_core::identity::Actor;
/// pim_core::roles! { pub enum R { Clerk = "clerk" } }
///
/// let clerk = Actor::new("u-1".parse()?, R::Clerk);
/// let cx = RequestContext::new(RequestId::mint(), clerk, Deadline::after(Duration::from_secs(5)))
///     .with_trace(TraceContext::root());
/// assert_eq!(cx.actor().role().name(), "clerk");
/// # Ok::<(), pim_core::identity::IdentityError>(())
/// ```
#[derive(Clone, Debug)]
pub struct RequestContext(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    request_id: RequestId,
    actor: Actor,
    deadline: Deadline,
    trace: TraceContext,
    idempotency: Option<IdempotencyScope>,
    causation: Option<Uuid>,
    /// Shared by clones, so that who opened the request learns where its work went.
    shard: Arc<AtomicU32>,
}

/// Above every shard's number.
const NOWHERE: u32 = u32::MAX;

impl RequestContext {
    /// A context names its request and its actor, or there is none.
    #[must_use]
    pub fn new(request_id: RequestId, actor: Actor, deadline: Deadline) -> Self {
        let trace = TraceContext::root();
        let shard = Arc::new(AtomicU32::new(NOWHERE));
        Self(Arc::new(Inner { request_id, actor, deadline, trace, idempotency: None, causation: None, shard }))
    }

    fn with(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// Joins a trace.
    #[must_use]
    pub fn with_trace(self, trace: TraceContext) -> Self {
        self.with(|inner| inner.trace = trace)
    }

    /// Says what makes a retry of this write the same write.
    #[must_use]
    pub fn with_idempotency(self, scope: IdempotencyScope) -> Self {
        self.with(|inner| inner.idempotency = Some(scope))
    }

    /// Names the event that caused this work.
    #[must_use]
    pub fn with_causation(self, event: Uuid) -> Self {
        self.with(|inner| inner.causation = Some(event))
    }

    /// Gives this part of the work at most `budget`, and never more than the whole has left.
    #[must_use]
    pub fn capped(self, budget: Duration) -> Self {
        self.with(|inner| inner.deadline = inner.deadline.capped(budget))
    }

    /// Notes the shard that the request's work goes to; whoever routes says so. Clones share the note.
    pub fn went_to(&self, shard: ShardId) {
        self.0.shard.store(u32::from(shard.0), Ordering::Relaxed);
    }

    /// The shard that the request's work went to, the last one when it was routed again; none when it went to no home key.
    #[must_use]
    pub fn shard(&self) -> Option<ShardId> {
        u16::try_from(self.0.shard.load(Ordering::Relaxed)).ok().map(ShardId)
    }

    /// Which request.
    #[must_use]
    pub fn request_id(&self) -> RequestId {
        self.0.request_id
    }

    /// Who calls.
    #[must_use]
    pub fn actor(&self) -> &Actor {
        &self.0.actor
    }

    /// Until when.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        self.0.deadline
    }

    /// Which trace.
    #[must_use]
    pub fn trace(&self) -> TraceContext {
        self.0.trace
    }

    /// What makes a retry the same, for writes that carry a key.
    #[must_use]
    pub fn idempotency(&self) -> Option<&IdempotencyScope> {
        self.0.idempotency.as_ref()
    }

    /// The event that caused this work, if one did.
    #[must_use]
    pub fn causation(&self) -> Option<Uuid> {
        self.0.causation
    }
}
