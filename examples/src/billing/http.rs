//! The HTTP side of claims.

use axum::extract::State;
use pim_core::problem::{self, Problem};
use pim_core::rbac::Write;
use pim_data::cluster::Cluster;
use pim_events::AppendExt as _;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use super::claim::{Claim, ClaimState, ENTRIES_MAX, Line, Payment, PaymentMethod};
use super::event::{ClaimMoved, LineAdded, PaymentMade};
use super::money::Money;
use crate::ids::{ClaimId, PatientId};
use crate::rig::{Answer, Conditional, Declaration, Endpoints, Failure, May, Operation, PathId, list, show, write};
use crate::routes::Upstream;
use crate::workers::Stores;

/// The billing service.
pub const SERVICE: Declaration = Declaration { upstream: Upstream::Billing, port: 8084, endpoints };

/// The operations, with the revenue and the billing cycles of their rooms.
fn endpoints() -> Endpoints<Stores> {
    Endpoints::new()
        .serve(
            Operation::list::<Claim>("/v1/patients/{patient_id}/claims", "Lists the claims of a patient"),
            list::<Claim>,
        )
        .serve(Operation::get::<Claim>("/v1/claims/{claim_id}", "Shows a claim"), show::<Claim>)
        .serve(
            Operation::create::<Claim>("/v1/patients/{patient_id}/claims/{claim_id}/lines", "Adds a line to a draft"),
            add_line,
        )
        .serve(
            Operation::transition::<Claim>(
                "/v1/patients/{patient_id}/claims/{claim_id}/transitions",
                "Moves a claim to another state",
            ),
            transition,
        )
        .serve(
            Operation::create::<Claim>("/v1/patients/{patient_id}/claims/{claim_id}/payments", "Takes a payment"),
            pay,
        )
        .merge(crate::projections::billing_endpoints())
        .merge(crate::jobs::endpoints())
}

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

/// What is owed is paid before a claim is put away.
fn check_paid(claim: &Claim) -> Result<(), Failure> {
    let owed = claim.owed();
    if owed.cents() == 0 {
        return Ok(());
    }
    let illegal = Problem::of(problem::ILLEGAL_TRANSITION).detail("something is owed still").with("entity", "claim");
    let illegal = illegal.with("from", claim.state.name()).with("to", ClaimState::Closed.name());
    Err(illegal.with("owed", json!(owed)).into())
}

async fn add_line(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    PathId((patient_id, id)): PathId<(PatientId, ClaimId)>,
    command: Conditional<Line>,
) -> Result<Answer, Failure> {
    let (permit, command) = (&permit, &command);
    write(&cluster, &command.cx, patient_id, move |mut unit| async move {
        let mut claim = command.load::<Claim>(&mut unit, permit, id).await?;
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
    command: Conditional<Transition>,
) -> Result<Answer, Failure> {
    let to = command.body.to;
    let (permit, command) = (&permit, &command);
    write(&cluster, &command.cx, patient_id, move |mut unit| async move {
        let mut claim = command.load::<Claim>(&mut unit, permit, id).await?;
        let from = claim.state;
        if !from.may_become(to) {
            return Err(Failure::illegal_transition::<Claim>(from.name(), to.name()));
        }
        if to == ClaimState::Closed {
            check_paid(&claim)?;
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
    command: Conditional<Paying>,
) -> Result<Answer, Failure> {
    let Paying { amount, method } = command.body;
    if amount.cents() == 0 {
        return Err(Problem::of(problem::INVALID_BODY).detail("a payment is of more than nothing").into());
    }
    let (permit, command) = (&permit, &command);
    write(&cluster, &command.cx, patient_id, move |mut unit| async move {
        let mut claim = command.load::<Claim>(&mut unit, permit, id).await?;
        check_state(&claim, ClaimState::Adjudicated)?;
        let paid = sum(claim.paid, amount)?;
        if paid.cents() > claim.total.cents() {
            return Err(Problem::of(problem::INVALID_BODY).detail("more than is owed").into());
        }
        // The last place is for what settles it, and that finds one where payments of old have taken all: or nobody could close it.
        if paid.cents() < claim.total.cents() {
            check_room(claim.payments.len() + 1)?;
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
