//! The limit as a layer: who a call counts for is the program's own strategy.

use std::fmt;
use std::future::{Ready, ready};
use std::hash::Hash;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::request::Parts;
use http::{Request, Response};
use tower::{Layer, Service};

use super::{Decision, Limit, RateTable};
use crate::problem::{Problem, RATE_LIMITED, response_of};

/// What one call counts, and for whom. A function from a request's head to a [`Charge`] is one.
pub trait RateKey {
    /// Tells callers apart: an address prefix, or role and subject.
    type Key: Hash;

    /// The charge of this call; `None` lets it pass uncounted.
    fn charge(&self, head: &Parts) -> Option<Charge<Self::Key>>;
}

impl<K: Hash, F: Fn(&Parts) -> Option<Charge<K>>> RateKey for F {
    type Key = K;

    fn charge(&self, head: &Parts) -> Option<Charge<K>> {
        self(head)
    }
}

/// One call on somebody's account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge<K> {
    /// Whose account.
    pub key: K,
    /// How many plain calls it is worth; 0 counts as 1. More than the burst is owed.
    pub cost: u32,
}

impl<K> Charge<K> {
    /// A plain call.
    pub const fn one(key: K) -> Self {
        Self { key, cost: 1 }
    }
}

/// Refuses calls over a [`Limit`] with a 429 problem, the whole seconds to wait, at least one, and the `RateLimit` fields.
///
/// Put a layer by address outside authentication, so that forged tokens cost their sender before they cost a signature check,
/// and one by actor between [`RequestContextLayer`](crate::context::RequestContextLayer) and
/// [`RbacLayer`](crate::rbac::RbacLayer), so that probing what is denied counts too. [`ProblemLayer`](crate::problem::ProblemLayer)
/// stays outside of both. Clones share the table.
///
/// By actor, a plain call each:
///
/// ```
/// use std::time::Duration;
/// use http::request::Parts;
/// use pim_core::identity::Actor;
/// use pim_core::rate::{Charge, Limit, RateLimitLayer, RateTable};
///
/// let by_actor = |head: &Parts| {
///     let actor = head.extensions.get::<Actor>()?;
///     Some(Charge::one((actor.role().code(), actor.subject().as_str().to_owned())))
/// };
/// let limit = Limit::new(200, Duration::from_secs(1), 400)?;
/// let layer = RateLimitLayer::new(RateTable::new(1 << 14), limit, by_actor);
/// # let _ = layer;
/// # Ok::<(), pim_core::rate::LimitError>(())
/// ```
///
/// By path, with a dear one:
///
/// ```
/// # use std::time::Duration;
/// # use http::request::Parts;
/// # use pim_core::rate::{Charge, Limit, RateLimitLayer, RateTable};
/// # let limit = Limit::new(200, Duration::from_secs(1), 400)?;
/// let by_path = |head: &Parts| {
///     let path = head.uri.path().to_owned();
///     let cost = if path.starts_with("/export") { 50 } else { 1 };
///     Some(Charge { key: path, cost })
/// };
/// let layer = RateLimitLayer::new(RateTable::new(1 << 10), limit, by_path);
/// # let _ = layer;
/// # Ok::<(), pim_core::rate::LimitError>(())
/// ```
pub struct RateLimitLayer<F> {
    table: Arc<RateTable>,
    limit: Limit,
    key: Arc<F>,
}

impl<F: RateKey> RateLimitLayer<F> {
    /// Over a table, which several layers may share when their keys differ.
    pub fn new(table: impl Into<Arc<RateTable>>, limit: Limit, key: F) -> Self {
        Self { table: table.into(), limit, key: Arc::new(key) }
    }

    fn admit(&self, head: &Parts) -> Result<(), Problem> {
        let Some(Charge { key, cost }) = self.key.charge(head) else { return Ok(()) };
        self.table.check(&key, self.limit, cost).passed(self.limit)
    }
}

impl Decision {
    /// Nothing when the call may pass.
    ///
    /// # Errors
    /// A `rate-limited` problem with the limit and the whole seconds to wait: rounded up, so that whoever waits as long is not
    /// refused again.
    pub fn passed(self, limit: Limit) -> Result<(), Problem> {
        match self {
            Self::Pass { .. } => Ok(()),
            Self::Wait(wait) => {
                let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                Err(Problem::of(RATE_LIMITED).retry_after_secs(seconds.max(1)).quota(limit.quota()))
            }
        }
    }
}

impl<F> Clone for RateLimitLayer<F> {
    fn clone(&self) -> Self {
        Self { table: Arc::clone(&self.table), limit: self.limit, key: Arc::clone(&self.key) }
    }
}

impl<F> fmt::Debug for RateLimitLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitLayer").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<S, F> Layer<S> for RateLimitLayer<F> {
    type Service = RateLimited<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimited { inner, layer: self.clone() }
    }
}

/// See [`RateLimitLayer`].
pub struct RateLimited<S, F> {
    inner: S,
    layer: RateLimitLayer<F>,
}

impl<S: Clone, F> Clone for RateLimited<S, F> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S: fmt::Debug, F> fmt::Debug for RateLimited<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimited").field("inner", &self.inner).field("layer", &self.layer).finish()
    }
}

impl<S, F, B, R> Service<Request<B>> for RateLimited<S, F>
where
    S: Service<Request<B>, Response = Response<R>>,
    F: RateKey,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<R>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (head, body) = request.into_parts();
        match self.layer.admit(&head) {
            Ok(()) => Either::Left(self.inner.call(Request::from_parts(head, body))),
            Err(problem) => Either::Right(ready(Ok(response_of(problem)))),
        }
    }
}
