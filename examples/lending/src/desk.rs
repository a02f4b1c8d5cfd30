//! The desk: routes, the layers in front of them, and what a caller is told.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State as Shared};
use axum::response::{IntoResponse, Response};
use axum::routing::{Router, get, post, put};
use axum::{Extension, Json};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use pim_core::context::{IdempotencyKey, IdempotencyScope, RequestContext, RequestContextLayer};
use pim_core::deadline::DeadlineLayer;
use pim_core::edge::{EdgeGuardLayer, confidential};
use pim_core::id::Id;
use pim_core::identity::ActorVerifier;
use pim_core::problem::{self, IntoProblem, Problem, ProblemLayer, response_of};
use pim_core::rbac::{Permit, Policy, RbacLayer, Read, Write};
use pim_core::request_id::{RequestIdLayer, Trust};
use pim_data::consistency::{Consistency, ConsistencyToken};
use pim_data::repository::Page;
use pim_data::unit::{Answer, Written};
use pim_events::AppendExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tower::ServiceBuilder;
use tower::util::MapResponseLayer;

use crate::house::House;
use crate::loan::{Action, Lending, Loan, LoanMoved, Member, Resource, State};
use crate::shelf;

/// Carries what its holder has seen, from the answer of a write to a later read.
pub const SEEN: HeaderName = HeaderName::from_static("library-seen");

/// How long a request may take, the arrival of its body included.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// Largest body: a title, and room to spare.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// Most loans of one answer.
const PAGE_LOANS: u32 = 100;

/// The routes, each behind its policy. Layers stand in the order in which a request meets them.
pub fn routes(house: House, policy: &Arc<Policy>, verifier: ActorVerifier) -> Router {
    let see = || RbacLayer::new(policy).require(Action::See, Resource::Loan);
    let lend = || RbacLayer::new(policy).require(Action::Lend, Resource::Loan);
    Router::new()
        .route("/members/{member}/loans", post(self::lend).layer(lend()).merge(get(list).layer(see())))
        .route("/members/{member}/loans/{loan}/back", put(take_back).layer(lend()))
        .route("/members/{member}/at-home", get(at_home).layer(see()))
        .with_state(house)
        .layer(
            ServiceBuilder::new()
                .layer(MapResponseLayer::new(confidential::<Body>))
                .layer(RequestIdLayer::new(Trust::Edge))
                .layer(ProblemLayer)
                .layer(EdgeGuardLayer)
                .layer(DeadlineLayer::new(ANSWERED_WITHIN))
                .layer(RequestContextLayer::new(verifier).bearer())
                .layer(DefaultBodyLimit::max(BODY_BYTES_MAX)),
        )
}

/// What is lent.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    title: String,
}

/// Which part of a list.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The `next_cursor` of the part before.
    cursor: Option<Id<Lending>>,
}

/// Whatever goes wrong, as a problem; the layer gives it its body.
#[derive(Debug)]
pub struct Refusal(Box<Problem>);

impl<E: IntoProblem> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(Box::new(error.into_problem()))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        response_of(*self.0)
    }
}

async fn lend(
    Shared(house): Shared<House>,
    Path(member): Path<Id<Member>>,
    Extension(cx): Extension<RequestContext>,
    Extension(permit): Extension<Permit<Write>>,
    headers: HeaderMap,
    Json(order): Json<Order>,
) -> Result<Response, Refusal> {
    let cx = keyed(cx, &headers, &Method::POST, &format!("/members/{member}/loans"), &order.title)?;
    let (permit, title) = (&permit, &order.title);
    let written = house.cluster.write(&cx, member, move |mut unit| async move {
        let id = Id::child_of(member.bucket(), unit.at());
        let mut loan = Loan { id, member_id: member, version: 0, title: title.clone(), state: State::Out };
        loan.version = unit.save(permit, &loan)?;
        unit.append(&LoanMoved { loan: id, version: loan.version, state: loan.state })?;
        Ok((unit, Answer::ok(&loan)?))
    });
    written.await.map(told)
}

async fn take_back(
    Shared(house): Shared<House>,
    Path((member, loan)): Path<(Id<Member>, Id<Lending>)>,
    Extension(cx): Extension<RequestContext>,
    Extension(permit): Extension<Permit<Write>>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let cx = keyed(cx, &headers, &Method::PUT, &format!("/members/{member}/loans/{loan}/back"), "")?;
    let permit = &permit;
    let written = house.cluster.write(&cx, member, move |mut unit| async move {
        let found = unit.load::<Loan>(permit, loan).await?;
        let mut loan = found.ok_or_else(|| Problem::of(problem::NOT_FOUND))?;
        if loan.state == State::Back {
            return Err(Problem::of(problem::ILLEGAL_TRANSITION).into());
        }
        loan.state = State::Back;
        loan.version = unit.save(permit, &loan)?;
        unit.append(&LoanMoved { loan: loan.id, version: loan.version, state: loan.state })?;
        Ok((unit, Answer::ok(&loan)?))
    });
    written.await.map(told)
}

async fn list(
    Shared(house): Shared<House>,
    Path(member): Path<Id<Member>>,
    part: Result<Query<Part>, QueryRejection>,
    Extension(cx): Extension<RequestContext>,
    Extension(permit): Extension<Permit<Read>>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let Query(part) = part.map_err(|_| Problem::of(problem::INVALID_QUERY))?;
    // Whoever shows what a write answered sees at least that write, from a replica where one is fresh enough.
    let consistency = seen_by(&headers).map_or(Consistency::Strong, Consistency::from);
    let page = Page { after: part.cursor.map(|loan| loan.uuid()), limit: PAGE_LOANS };
    let loans = house.cluster.list::<Loan>(&cx, &permit, member, page, &consistency).await?;
    let is_full = loans.len() == PAGE_LOANS as usize;
    let next = loans.last().filter(|_| is_full).map(|last| last.id);
    Ok(Json(json!({"items": loans, "next_cursor": next})))
}

async fn at_home(
    Shared(house): Shared<House>,
    Path(member): Path<Id<Member>>,
    Extension(permit): Extension<Permit<Read>>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let seen = seen_by(&headers).unwrap_or_default();
    let books = shelf::at_home(&house.shelf, &permit, member, &seen).await?;
    Ok(Json(json!({"books": books.ok_or_else(|| Problem::of(problem::NOT_FOUND))?})))
}

fn seen_by(headers: &HeaderMap) -> Option<ConsistencyToken> {
    headers.get(SEEN)?.to_str().ok()?.parse().ok()
}

/// What makes a retry the same request; without it a client that got no answer could lend twice.
fn keyed(
    cx: RequestContext,
    headers: &HeaderMap,
    method: &Method,
    route: &str,
    body: &str,
) -> Result<RequestContext, Problem> {
    let key = IdempotencyKey::of(headers)?;
    let who = cx.actor().subject().as_str().to_owned();
    Ok(cx.with_idempotency(IdempotencyScope::new(&who, method.as_str(), route, key.as_str(), body.as_bytes())))
}

/// The same for whoever asks first and for whoever asks again.
fn told(written: Written) -> Response {
    let status = StatusCode::from_u16(written.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(SEEN, written.token.to_string())], Json(written.body)).into_response()
}
