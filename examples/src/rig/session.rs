//! From a transaction token to a caller with a permit: what stands before every handler.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, MatchedPath, Path, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{Extensions, HeaderMap};
use pim_core::context::{RequestContext, RequestId, SessionContext, TraceContext};
use pim_core::deadline::Deadline;
use pim_core::id::{Id, IdKind};
use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::rbac::{AccessKind, Permit, Read, Write};
use pim_core::role::{Access as ActionAccess, Action as _};
use pim_core::token::TokenVerifier;
use pim_data::consistency::{Consistency, ConsistencyToken};

use super::{CONSISTENCY_HEADER, Failure};
use crate::policy::{LabRole, lab_policy};
use crate::routes::{self, Access};

/// Carries the transaction token from the gateway.
pub const TXN_TOKEN_HEADER: &str = "txn-token";
/// Carries how many milliseconds the gateway's caller still waits.
pub const DEADLINE_HEADER: &str = "x-pim-deadline-ms";
const DEADLINE_MAX: Duration = Duration::from_secs(30);

/// Verifies sessions and asks the policy, once for each request.
#[derive(Clone, Debug)]
pub struct SessionGate(Arc<TokenVerifier>);

impl SessionGate {
    /// A gate over the broker's keys.
    #[must_use]
    pub fn new(verifier: Arc<TokenVerifier>) -> Self {
        Self(verifier)
    }

    /// The middleware: no route without a policy, no handler without a permit.
    pub async fn pass(State(gate): State<Self>, mut request: Request, next: Next) -> Response {
        match gate.admit(&mut request).await {
            Ok(()) => {
                let actor = request.extensions().get::<RequestContext>().map(|cx| cx.actor().clone());
                let mut response = next.run(request).await;
                // For the access line: who it was for.
                if let Some(actor) = actor {
                    response.extensions_mut().insert(actor);
                }
                response
            }
            Err(failure) => failure.into_response(),
        }
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Failure> {
        let template = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
        let route = template.and_then(|template| routes::of_template(request.method(), &template));
        // A route that the table does not know has no policy, so nobody may use it.
        let route = route.ok_or_else(|| Problem::of(problem::FORBIDDEN).detail("the route has no policy"))?;
        let Access::Granted(action, resource) = route.access else { return Ok(()) };
        let token = request.headers().get(TXN_TOKEN_HEADER).and_then(|value| value.to_str().ok());
        let token = token.ok_or_else(|| Problem::of(problem::UNAUTHENTICATED))?;
        let verified = self.0.verify(token).await.map_err(IntoProblem::into_problem)?;
        let (actor, _session) = SessionContext::actor_of::<LabRole>(&verified)
            .map_err(|_| Problem::of(problem::TOKEN_CLAIMS).detail("tctx"))?;
        let denied =
            |denied: pim_core::rbac::Denied| Problem::of(problem::FORBIDDEN).with("reason", denied.reason.code());
        match action.access() {
            ActionAccess::Read => {
                let permit = lab_policy().authorize::<Read>(&actor, action, resource).map_err(denied)?;
                request.extensions_mut().insert(permit);
            }
            ActionAccess::Write => {
                let permit = lab_policy().authorize::<Write>(&actor, action, resource).map_err(denied)?;
                request.extensions_mut().insert(permit);
            }
        }
        let deadline = deadline_of(request.headers(), route.class.timeout());
        let extensions = request.extensions_mut();
        let id = extensions.get::<RequestId>().copied().unwrap_or_else(RequestId::mint);
        let trace = extensions.get::<TraceContext>().copied().unwrap_or_else(TraceContext::root);
        extensions.insert(RequestContext::new(id, actor, deadline).with_trace(trace));
        Ok(())
    }
}

fn deadline_of(headers: &HeaderMap, most: Duration) -> Deadline {
    let given = headers.get(DEADLINE_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
    let budget = given.map_or(most, Duration::from_millis);
    Deadline::after(budget.min(most).min(DEADLINE_MAX))
}

/// Who calls, and how fresh an answer must be.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The context.
    pub cx: RequestContext,
    /// What the caller has seen already.
    pub consistency: Consistency,
}

impl Caller {
    pub(super) fn of(extensions: &Extensions) -> Result<Self, Failure> {
        let cx = extensions.get::<RequestContext>().cloned();
        let cx = cx.ok_or_else(|| Problem::of(problem::UNAUTHENTICATED))?;
        Ok(Self { cx, consistency: Consistency::Strong })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Failure> {
        let mut caller = Self::of(&parts.extensions)?;
        if let Some(token) = seen_by(&parts.headers)? {
            caller.consistency = Consistency::ReadYourWrites(token);
        }
        Ok(caller)
    }
}

/// The token that the caller brings, if any.
pub(super) fn seen_by(headers: &HeaderMap) -> Result<Option<ConsistencyToken>, Failure> {
    let Some(value) = headers.get(CONSISTENCY_HEADER) else { return Ok(None) };
    let token = value.to_str().ok().and_then(|text| text.parse::<ConsistencyToken>().ok());
    let bad = || Problem::of(problem::BAD_REQUEST).detail("x-pim-token is no token");
    Ok(Some(token.ok_or_else(bad)?))
}

/// The permit that the policy granted for this route.
#[derive(Clone, Debug)]
pub struct May<A: AccessKind>(pub Permit<A>);

impl<S: Send + Sync, A: AccessKind> FromRequestParts<S> for May<A> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Failure> {
        let permit = parts.extensions.get::<Permit<A>>().cloned();
        permit.map(Self).ok_or_else(|| Problem::of(problem::FORBIDDEN).into())
    }
}

/// Ids out of the path, each of its kind.
#[derive(Clone, Copy, Debug)]
pub struct PathId<T>(pub T);

fn id_of<K: IdKind>(text: &str) -> Result<Id<K>, Failure> {
    text.parse()
        .map_err(|error: pim_core::id::ParseIdError| Problem::of(problem::INVALID_ID).detail(error.to_string()).into())
}

impl<S: Send + Sync, K: IdKind> FromRequestParts<S> for PathId<Id<K>> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = path.map_err(|_| Problem::of(problem::INVALID_ID))?;
        id_of(&text).map(Self)
    }
}

impl<S: Send + Sync, K: IdKind, L: IdKind> FromRequestParts<S> for PathId<(Id<K>, Id<L>)> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((home, child)) = path.map_err(|_| Problem::of(problem::INVALID_ID))?;
        let (home, child) = (id_of::<K>(&home)?, id_of::<L>(&child)?);
        if home.bucket() != child.bucket() {
            return Err(Problem::of(problem::WRONG_BUCKET).into());
        }
        Ok(Self((home, child)))
    }
}
