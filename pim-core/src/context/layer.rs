//! The layer that turns a token into an actor and a request context.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, Request, Response};
use tower::{Layer, Service};

use super::{ContextNote, RequestContext, RequestId, TraceContext};
use crate::deadline::Deadline;
use crate::identity::{Actor, ActorVerifier};
use crate::problem::{BAD_REQUEST, IntoProblem as _, Problem, UNAUTHENTICATED, response_of};

/// Carries the transaction token between hops.
pub const TXN_TOKEN_HEADER: HeaderName = HeaderName::from_static("txn-token");
const BUDGET: Duration = Duration::from_secs(30);

/// Verifies the request's token and puts the [`Actor`] and a [`RequestContext`] into its extensions.
///
/// The actor stands in the answer's extensions too, and the [`ShardId`](crate::shard::ShardId) that the request's work went to, so that
/// who observes from outside can say for whom and where it was; and a [`ContextNote`] in the request's extensions is told at once,
/// for requests that get no answer from here.
///
/// Put it inside [`RequestIdLayer`](crate::request_id::RequestIdLayer) and [`ProblemLayer`](crate::problem::ProblemLayer):
/// id and trace are taken from there, and a refusal (401 by cause, 503 when keys cannot be had) gets its body there. A
/// [`Deadline`] in the extensions is kept when it is sooner than the layer's own budget.
///
/// The default takes the token from the header `Txn-Token`:
///
/// ```
/// use pim_core::context::RequestContextLayer;
/// # use pim_core::identity::ActorVerifier;
/// # fn build(verifier: ActorVerifier) -> RequestContextLayer {
/// RequestContextLayer::new(verifier)
/// # }
/// ```
///
/// Another header, and less time:
///
/// ```
/// use std::time::Duration;
/// use pim_core::context::RequestContextLayer;
/// # use pim_core::identity::ActorVerifier;
/// # fn build(verifier: ActorVerifier) -> RequestContextLayer {
/// RequestContextLayer::new(verifier).bearer().budget(Duration::from_secs(5))
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RequestContextLayer {
    verifier: ActorVerifier,
    credential: Credential,
    budget: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Credential {
    TxnToken,
    Bearer,
}

impl RequestContextLayer {
    /// Lets in whom the verifier names.
    #[must_use]
    pub const fn new(verifier: ActorVerifier) -> Self {
        Self { verifier, credential: Credential::TxnToken, budget: BUDGET }
    }

    /// Takes the token from `Authorization: Bearer` instead of `Txn-Token`.
    #[must_use]
    pub const fn bearer(mut self) -> Self {
        self.credential = Credential::Bearer;
        self
    }

    /// The time that a request has at most; 30 seconds when nothing is said.
    #[must_use]
    pub const fn budget(mut self, budget: Duration) -> Self {
        self.budget = budget;
        self
    }

    async fn actor(&self, headers: &HeaderMap) -> Result<Actor, Problem> {
        let token = self.credential.of(headers)?;
        let token = token.ok_or_else(|| Problem::of(UNAUTHENTICATED).detail(self.credential.missing()))?;
        self.verifier.verify(token).await.map_err(|error| error.into_problem())
    }

    async fn admit<B>(&self, request: &mut Request<B>) -> Result<RequestContext, Problem> {
        let actor = self.actor(request.headers()).await?;
        let extensions = request.extensions_mut();
        let id = extensions.get().copied().unwrap_or_else(RequestId::mint);
        let trace = extensions.get().copied().unwrap_or_else(TraceContext::root);
        let own = Deadline::after(self.budget);
        let deadline = extensions.get::<Deadline>().map_or(own, |given| own.min(*given));
        let cx = RequestContext::new(id, actor.clone(), deadline).with_trace(trace);
        if let Some(note) = extensions.get::<ContextNote>() {
            note.take(&cx);
        }
        extensions.insert(actor);
        extensions.insert(cx.clone());
        Ok(cx)
    }
}

impl Credential {
    const fn missing(self) -> &'static str {
        match self {
            Self::TxnToken => "there is no token in the header Txn-Token",
            Self::Bearer => "there is no Bearer token in the header Authorization",
        }
    }

    /// The token, if there is one; two would let two readers disagree.
    fn of(self, headers: &HeaderMap) -> Result<Option<&str>, Problem> {
        let name = match self {
            Self::TxnToken => TXN_TOKEN_HEADER,
            Self::Bearer => AUTHORIZATION,
        };
        let mut values = headers.get_all(name).iter();
        let (value, second) = (values.next(), values.next());
        if second.is_some() {
            return Err(Problem::of(BAD_REQUEST).detail("a credential that may stand once stands twice"));
        }
        let text = value.and_then(|value| value.to_str().ok());
        Ok(match self {
            Self::TxnToken => text,
            Self::Bearer => text.and_then(|text| {
                let (scheme, token) = text.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then_some(token)
            }),
        })
    }
}

impl<S> Layer<S> for RequestContextLayer {
    type Service = WithContext<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WithContext { inner, layer: self.clone() }
    }
}

/// See [`RequestContextLayer`].
#[derive(Clone, Debug)]
pub struct WithContext<S> {
    inner: S,
    layer: RequestContextLayer,
}

impl<S, B, R> Service<Request<B>> for WithContext<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The one that is ready goes along; its clone waits for the next call.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let layer = self.layer.clone();
        Box::pin(async move {
            // The headers alone cross the wait: a body need not be shareable.
            let (parts, body) = request.into_parts();
            let mut head = Request::from_parts(parts, ());
            match layer.admit(&mut head).await {
                Ok(cx) => {
                    let (parts, ()) = head.into_parts();
                    request = Request::from_parts(parts, body);
                    let mut response = inner.call(request).await?;
                    response.extensions_mut().insert(cx.actor().clone());
                    if let Some(shard) = cx.shard() {
                        response.extensions_mut().insert(shard);
                    }
                    Ok(response)
                }
                Err(problem) => Ok(response_of(problem)),
            }
        })
    }
}
