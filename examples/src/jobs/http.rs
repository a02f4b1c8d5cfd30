//! Asking for a billing cycle, and looking at them.

use std::time::Duration;

use axum::extract::State;
use pim_core::clock::Timestamp;
use pim_core::id::Id;
use pim_core::problem::{self, Problem, ProblemType};
use pim_core::rbac::Write;
use pim_data::cluster::Cluster;
use pim_events::AppendExt as _;
use serde::Deserialize;
use utoipa::ToSchema;

use super::cycle::{BillingCycle, CycleState};
use crate::ids::BillingCycleId;
use crate::reference::ReferenceChanged;
use crate::rig::{Answer, Command, Endpoints, Failure, May, Operation, list_control, write_control};
use crate::workers::Stores;

/// How long after its end a period is left alone: a claim that was drafted in it is committed no later, also by a clock that is a
/// little behind.
pub const PERIOD_SETTLES: Duration = Duration::from_secs(10);

/// A cycle looks at each claim once: one that is drafted behind it would never be submitted by it.
const PERIOD_NOT_OVER: ProblemType =
    ProblemType::new("period-not-over", 409, "The period goes on: claims may still be drafted in it");

/// The operations, for the billing service.
pub fn endpoints() -> Endpoints<Stores> {
    Endpoints::new()
        .serve(Operation::create::<BillingCycle>("/v1/billing-cycles", "Asks for a billing cycle"), ask)
        .serve(
            Operation::list::<BillingCycle>("/v1/billing-cycles", "Lists the billing cycles"),
            list_control::<BillingCycle>,
        )
}

/// Body of a cycle: the period whose draft claims are submitted. It has to be over for ten seconds.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[schema(as = BillingPeriod)]
#[serde(deny_unknown_fields)]
struct Period {
    /// Claims drafted from here on.
    #[schema(value_type = String, format = DateTime, example = "2026-01-01T00:00:00Z")]
    from: Timestamp,
    /// Claims drafted before here.
    #[schema(value_type = String, format = DateTime, example = "2026-02-01T00:00:00Z")]
    to: Timestamp,
}

async fn ask(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    command: Command<Period>,
) -> Result<Answer, Failure> {
    let scope = command.cx.idempotency().ok_or_else(|| Problem::of(problem::IDEMPOTENCY_KEY_MISSING))?;
    let id: BillingCycleId = Id::derive(scope.scope(), 0);
    let Period { from, to } = command.body;
    if from >= to {
        return Err(Problem::of(problem::INVALID_BODY).detail("must be a period: from before to").into());
    }
    let (over_at, now) = (to.plus(PERIOD_SETTLES), cluster.clock().now());
    if over_at > now {
        let refused = Problem::of(PERIOD_NOT_OVER).detail("ask for a period that is over, or when this one is");
        let wait = over_at.since(now).as_secs().saturating_add(1);
        return Err(refused.with("over_at", over_at.to_string()).retry_after_secs(wait).into());
    }
    let permit = &permit;
    write_control(&cluster, &command.cx, id, move |mut unit| async move {
        let mut cycle = BillingCycle {
            id,
            version: 0,
            state: CycleState::Pending,
            period_from: from,
            period_to: to,
            submitted: 0,
            bucket_at: 0,
            after: None,
            owner: None,
            lease_until: None,
        };
        cycle.version = unit.save(permit, &cycle)?;
        let (table, version) = ("billing_cycle".to_owned(), cycle.version);
        unit.append(&ReferenceChanged { table, id: id.uuid(), version })?;
        Ok((unit, Answer::created(&cycle)?))
    })
    .await
}
