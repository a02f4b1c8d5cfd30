//! The HTTP side of claims.

use axum::Router;
use axum::extract::{Query, State};
use axum::routing::{get, post};
use pim_core::problem::{self, Problem};
use pim_core::rbac::{Read, Write};
use pim_data::cluster::Cluster;
use pim_events::AppendExt as _;
use serde::Deserialize;
use utoipa::ToSchema;

use super::claim::{Claim, ClaimState, ENTRIES_MAX, Line, Payment, PaymentMethod};
use super::event::{ClaimMoved, LineAdded, PaymentMade};
use super::money::Money;
use crate::ids::{ClaimId, PatientId};
use crate::rig::{
    Answer, Caller, Command, Declaration, Failure, May, Operation, PageQuery, PathId, document, page_of, write,
};
use crate::routes::Upstream;
use crate::workers::Stores;

/// The routes, with the revenue and the billing cycles of their rooms.
pub fn routes(stores: Stores) -> Router {
    let cycles = crate::jobs::routes(stores.cluster.clone());
    Router::new()
        .route("/v1/patients/{patient_id}/claims", get(list))
        .route("/v1/claims/{claim_id}", get(show))
        .route("/v1/patients/{patient_id}/claims/{claim_id}/lines", post(add_line))
        .route("/v1/patients/{patient_id}/claims/{claim_id}/transitions", post(transition))
        .route("/v1/patients/{patient_id}/claims/{claim_id}/payments", post(pay))
        .with_state(stores.cluster)
        .merge(crate::projections::billing_routes(stores.reads))
        .merge(cycles)
}

/// The billing service.
pub const SERVICE: Declaration = Declaration {
    name: Upstream::Billing.name(),
    port: 8084,
    routes,
    openapi: || document(Upstream::Billing, OPERATIONS),
};

const OPERATIONS: &[Operation] = &[
    Operation::list::<Claim>("/v1/patients/{patient_id}/claims", "Lists the claims of a patient"),
    Operation::get::<Claim>("/v1/claims/{claim_id}", "Shows a claim"),
    Operation::create::<Line, Claim>("/v1/patients/{patient_id}/claims/{claim_id}/lines", "Adds a line to a draft"),
    Operation::change::<Transition, Claim>(
        "POST",
        "/v1/patients/{patient_id}/claims/{claim_id}/transitions",
        "Moves a claim to another state",
    ),
    Operation::create::<Paying, Claim>("/v1/patients/{patient_id}/claims/{claim_id}/payments", "Takes a payment"),
];

/// Body of a transition.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ClaimTransition)]
struct Transition {
    to: ClaimState,
}

/// Body of a payment.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Paying {
    amount: Money,
    method: PaymentMethod,
}

async fn list(
    State(cluster): State<Cluster>,
    May(permit): May<Read>,
    caller: Caller,
    PathId(patient_id): PathId<PatientId>,
    query: Result<Query<PageQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Answer, Failure> {
    let Query(query) = query.map_err(|_| Problem::of(problem::INVALID_QUERY))?;
    let page = query.by_id()?;
    let rows = cluster.list::<Claim>(&caller.cx, &permit, patient_id, page, &caller.consistency).await?;
    Answer::ok(&page_of(&rows, page.limit, |claim| claim.id.to_string()))
}

async fn show(
    State(cluster): State<Cluster>,
    May(permit): May<Read>,
    caller: Caller,
    PathId(id): PathId<ClaimId>,
) -> Result<Answer, Failure> {
    let claim = cluster.read::<Claim>(&caller.cx, &permit, id, &caller.consistency).await?;
    Answer::ok(&claim.ok_or_else(|| Problem::of(problem::NOT_FOUND))?)
}

fn check_state(claim: &Claim, wanted: ClaimState) -> Result<(), Failure> {
    if claim.state == wanted {
        return Ok(());
    }
    let illegal = Problem::of(problem::ILLEGAL_TRANSITION).with("entity", "claim").with("from", claim.state.name());
    Err(illegal.with("needs", wanted.name()).into())
}

fn check_room(entries: usize) -> Result<(), Failure> {
    if entries < ENTRIES_MAX {
        return Ok(());
    }
    let full = Problem::of(problem::INVALID_BODY).detail("the claim has as many entries as it may have");
    Err(full.with("entries_max", ENTRIES_MAX).into())
}

fn sum(money: Money, more: Money) -> Result<Money, Failure> {
    let too_much = || Problem::of(problem::INVALID_BODY).detail("the sum is above the bound or of two currencies");
    money.plus(more).ok_or_else(|| too_much().into())
}

async fn add_line(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    PathId((patient_id, id)): PathId<(PatientId, ClaimId)>,
    command: Command<Line>,
) -> Result<Answer, Failure> {
    let (permit, command) = (&permit, &command);
    write(&cluster, &command.cx, patient_id, move |mut unit| async move {
        let found = unit.load::<Claim>(permit, id).await?;
        let mut claim = found.ok_or_else(|| Problem::of(problem::NOT_FOUND))?;
        command.check_version(claim.version)?;
        check_state(&claim, ClaimState::Draft)?;
        check_room(claim.lines.len())?;
        let amount = command.body.amount;
        claim.total = sum(claim.total, amount)?;
        claim.lines.push(command.body.clone());
        claim.version = unit.save(permit, &claim)?;
        let (version, facility_id, total) = (claim.version, claim.facility_id, claim.total);
        unit.append(&LineAdded { claim_id: id, version, patient_id, facility_id, amount, total })?;
        Ok((unit, Answer::created(&claim)?))
    })
    .await
}

async fn transition(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    PathId((patient_id, id)): PathId<(PatientId, ClaimId)>,
    command: Command<Transition>,
) -> Result<Answer, Failure> {
    let to = command.body.to;
    let (permit, command) = (&permit, &command);
    write(&cluster, &command.cx, patient_id, move |mut unit| async move {
        let found = unit.load::<Claim>(permit, id).await?;
        let mut claim = found.ok_or_else(|| Problem::of(problem::NOT_FOUND))?;
        command.check_version(claim.version)?;
        let from = claim.state;
        if !from.may_become(to) {
            let illegal = Problem::of(problem::ILLEGAL_TRANSITION).with("entity", "claim");
            return Err(illegal.with("from", from.name()).with("to", to.name()).into());
        }
        claim.state = to;
        claim.version = unit.save(permit, &claim)?;
        let (version, facility_id, total) = (claim.version, claim.facility_id, claim.total);
        unit.append(&ClaimMoved { claim_id: id, version, patient_id, facility_id, from, to, total })?;
        Ok((unit, Answer::ok(&claim)?))
    })
    .await
}

async fn pay(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    PathId((patient_id, id)): PathId<(PatientId, ClaimId)>,
    command: Command<Paying>,
) -> Result<Answer, Failure> {
    let Paying { amount, method } = command.body;
    let (permit, command) = (&permit, &command);
    write(&cluster, &command.cx, patient_id, move |mut unit| async move {
        let found = unit.load::<Claim>(permit, id).await?;
        let mut claim = found.ok_or_else(|| Problem::of(problem::NOT_FOUND))?;
        command.check_version(claim.version)?;
        check_state(&claim, ClaimState::Adjudicated)?;
        check_room(claim.payments.len())?;
        let paid = sum(claim.paid, amount)?;
        if paid.cents() > claim.total.cents() {
            return Err(Problem::of(problem::INVALID_BODY).detail("more than is owed").into());
        }
        claim.paid = paid;
        claim.payments.push(Payment { amount, method, at: unit.at() });
        claim.version = unit.save(permit, &claim)?;
        let (version, facility_id) = (claim.version, claim.facility_id);
        unit.append(&PaymentMade { claim_id: id, version, patient_id, facility_id, amount, paid })?;
        Ok((unit, Answer::created(&claim)?))
    })
    .await
}
