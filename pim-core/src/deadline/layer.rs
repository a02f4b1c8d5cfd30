//! The deadline as a layer: what the caller left, capped by what the service allows.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderName, Request, Response};
use tokio::time::timeout_at;
use tower::{Layer, Service};

use super::Deadline;
use crate::problem::{DEADLINE_EXCEEDED, Problem, response_of};

/// Carries the milliseconds that are left from hop to hop.
pub const DEADLINE_HEADER: HeaderName = HeaderName::from_static("x-pim-deadline-ms");
/// With less than this nobody could answer any more.
const FLOOR: Duration = Duration::from_millis(1);

/// Whose word on the time that is left counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hops {
    /// The service's alone.
    Edge,
    /// An earlier hop's too, when it is sooner.
    Inside,
}

/// Gives every request a [`Deadline`] in its extensions and a 504 problem when it passes before the answer's head.
///
/// At the edge the budget is the layer's own. Inside, an earlier hop's [`DEADLINE_HEADER`] shortens it, never lengthens it, and
/// what comes with less than the floor is answered at once, without work. The service's future is dropped when the time is over,
/// which cancels what it waits for. Put it inside [`ProblemLayer`](crate::problem::ProblemLayer) and outside
/// [`RequestContextLayer`](crate::context::RequestContextLayer), which takes the deadline over.
///
/// ```
/// use std::time::Duration;
/// use pim_core::deadline::DeadlineLayer;
///
/// let at_the_edge = DeadlineLayer::new(Duration::from_secs(5));
/// let behind_it = DeadlineLayer::new(Duration::from_secs(5)).inside().floor(Duration::from_millis(20));
/// # let _ = (at_the_edge, behind_it);
/// ```
///
/// Some requests get less than the others:
///
/// ```
/// # use std::time::Duration;
/// # use http::Method;
/// # use pim_core::deadline::DeadlineLayer;
/// let layer = DeadlineLayer::new(Duration::from_secs(30))
///     .budget_of(|head| (head.method == Method::GET).then_some(Duration::from_secs(2)));
/// # let _ = layer;
/// ```
#[derive(Clone, Copy, Debug)]
pub struct DeadlineLayer {
    budget: Duration,
    floor: Duration,
    hops: Hops,
    budget_of: fn(&Parts) -> Option<Duration>,
}

impl DeadlineLayer {
    /// A layer for the edge, with a budget for each request.
    #[must_use]
    pub const fn new(budget: Duration) -> Self {
        Self { budget, floor: FLOOR, hops: Hops::Edge, budget_of: |_| None }
    }

    /// Lets an earlier hop shorten the budget.
    #[must_use]
    pub const fn inside(mut self) -> Self {
        self.hops = Hops::Inside;
        self
    }

    /// The least time that is worth beginning with; a millisecond when nothing is said.
    #[must_use]
    pub const fn floor(mut self, floor: Duration) -> Self {
        self.floor = floor;
        self
    }

    /// Gives some requests a budget of their own, which is never more than the layer's.
    #[must_use]
    pub const fn budget_of(mut self, find: fn(&Parts) -> Option<Duration>) -> Self {
        self.budget_of = find;
        self
    }

    fn deadline_of(&self, head: &Parts) -> Result<Deadline, Problem> {
        let budget = (self.budget_of)(head).map_or(self.budget, |own| own.min(self.budget));
        let left = match self.hops {
            Hops::Edge => budget,
            Hops::Inside => left_by_caller(&head.headers).map_or(budget, |left| left.min(budget)),
        };
        if left < self.floor { Err(Problem::of(DEADLINE_EXCEEDED)) } else { Ok(Deadline::after(left)) }
    }
}

/// What cannot be read says nothing: the header is a hop of ours, not a caller's.
fn left_by_caller(headers: &HeaderMap) -> Option<Duration> {
    headers.get(DEADLINE_HEADER)?.to_str().ok()?.parse().ok().map(Duration::from_millis)
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = WithDeadline<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WithDeadline { inner, layer: *self }
    }
}

/// See [`DeadlineLayer`].
#[derive(Clone, Copy, Debug)]
pub struct WithDeadline<S> {
    inner: S,
    layer: DeadlineLayer,
}

impl<S, B, R> Service<Request<B>> for WithDeadline<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    R: Default + Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        let deadline = match self.layer.deadline_of(&head) {
            Ok(deadline) => deadline,
            Err(problem) => return Box::pin(std::future::ready(Ok(response_of(problem)))),
        };
        head.extensions.insert(deadline);
        let answer = self.inner.call(Request::from_parts(head, body));
        Box::pin(async move {
            match timeout_at(deadline.instant(), answer).await {
                Ok(outcome) => outcome,
                Err(_elapsed) => Ok(response_of(Problem::of(DEADLINE_EXCEEDED))),
            }
        })
    }
}
