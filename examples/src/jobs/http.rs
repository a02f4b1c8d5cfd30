//! Asking for a billing cycle, and looking at them.

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::routing::get;
use pim_core::clock::Timestamp;
use pim_core::id::Id;
use pim_core::problem::{self, Problem};
use pim_core::rbac::{Read, Write};
use pim_data::cluster::Cluster;
use pim_events::AppendExt as _;
use serde::Deserialize;

use super::cycle::{BillingCycle, CycleState};
use crate::ids::BillingCycleId;
use crate::reference::ReferenceChanged;
use crate::rig::{Answer, Caller, Command, Failure, May, PageQuery, page_of, write_control};

/// The routes, for the billing service.
pub fn routes(cluster: Cluster) -> Router {
    Router::new().route("/v1/billing-cycles", get(list).post(ask)).with_state(cluster)
}

/// Body of a cycle: the period whose draft claims are submitted.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Period {
    from: Timestamp,
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

async fn list(
    State(cluster): State<Cluster>,
    May(permit): May<Read>,
    caller: Caller,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Answer, Failure> {
    let Query(query) = query.map_err(|_| Problem::of(problem::INVALID_QUERY))?;
    let page = query.by_id()?;
    let rows = cluster.list_control::<BillingCycle>(&caller.cx, &permit, page).await?;
    Answer::ok(&page_of(&rows, page.limit, |cycle| cycle.id.to_string()))
}
