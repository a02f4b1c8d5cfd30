//! Looking at the audit trail and verifying it.

use axum::Router;
use axum::extract::{Query, State};
use axum::routing::{get, post};
use pim_core::context::RequestId;
use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::rbac::{Read, Write};
use pim_data::audit::AuditFilter;
use pim_data::cluster::Cluster;
use serde::Deserialize;
use serde_json::json;

use crate::operations::{Intent, operate};
use crate::rig::{Answer, Caller, Command, Failure, May, Nothing};

pub(super) fn routes() -> Router<Cluster> {
    Router::new().route("/v1/admin/audit", get(look)).route("/v1/admin/audit/verify", post(verify))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LookQuery {
    request_id: Option<String>,
    user_id: Option<String>,
}

async fn look(
    State(cluster): State<Cluster>,
    May(permit): May<Read>,
    caller: Caller,
    query: Result<Query<LookQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Answer, Failure> {
    let invalid = || Problem::of(problem::INVALID_QUERY).detail("give either request_id or user_id");
    let Query(query) = query.map_err(|_| invalid())?;
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
