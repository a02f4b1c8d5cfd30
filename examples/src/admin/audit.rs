//! Looking at the audit trail and verifying it.

use axum::extract::State;
use pim_core::context::RequestId;
use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::rbac::{Read, Write};
use pim_data::audit::AuditFilter;
use pim_data::cluster::Cluster;
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;

use crate::operations::{Intent, operate};
use crate::rig::{Answer, Asked, Caller, Command, Endpoints, Failure, May, Nothing, Operation};
use crate::workers::Stores;

pub(super) fn endpoints() -> Endpoints<Stores> {
    Endpoints::new()
        .serve(Operation::tell("/v1/admin/audit", "Looks into the audit trail"), look)
        .serve(Operation::operate("/v1/admin/audit/verify", "Verifies the audit trail"), verify)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct LookQuery {
    /// The id of a request; this or user_id
    request_id: Option<String>,
    /// The id of a user; this or request_id
    user_id: Option<String>,
}

async fn look(
    State(cluster): State<Cluster>,
    May(permit): May<Read>,
    caller: Caller,
    Asked(query): Asked<LookQuery>,
) -> Result<Answer, Failure> {
    let invalid = || Problem::of(problem::INVALID_QUERY).detail("give either request_id or user_id");
    let filter = match (query.request_id, query.user_id) {
        (Some(request), None) => {
            let request: RequestId =
                request.parse().map_err(|_| Problem::of(problem::INVALID_ID).detail("request_id"))?;
            AuditFilter::Request(request.uuid())
        }
        (None, Some(user)) => AuditFilter::User(user),
        _ => return Err(invalid().into()),
    };
    let found = cluster.audit(&caller.cx, &permit, &filter).await;
    let found = found.map_err(|_| Problem::of(problem::UNAVAILABLE).retry_after_secs(1))?;
    Answer::ok(&json!({ "items": found, "next_cursor": null }))
}

async fn verify(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    command: Command<Nothing>,
) -> Result<Answer, Failure> {
    let effect = async { Answer::ok(&cluster.verify_audit().await.map_err(IntoProblem::into_problem)?) };
    operate(&cluster, &permit, &command.cx, Intent::new("audit.verify", "", json!({})), effect).await
}
