//! Removing history and audit records whose time is over, by an operator's word.

use std::time::Duration;

use axum::extract::State;
use pim_core::problem::IntoProblem;
use pim_core::rbac::Write;
use pim_data::cluster::Cluster;
use pim_data::retention::RetentionPolicy;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::operations::{Intent, operate_to_its_end};
use crate::rig::{Answer, Command, Endpoints, Failure, May, Operation};
use crate::workers::Stores;

/// Rows that one request removes at most: neither do buckets move nor is a backup taken meanwhile.
const ROWS_MAX: u64 = 20_000;
const DAY_SECS: u64 = 24 * 3600;

pub(super) fn endpoints() -> Endpoints<Stores> {
    let remove = Operation::operate("/v1/admin/retention", "Removes history and audit records whose time is over");
    Endpoints::new().serve(remove, run)
}

/// Body of a run.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Retaining {
    /// Days that audit records are kept, at least 90; that when absent.
    #[schema(example = 90)]
    audit_days: Option<u32>,
    /// Days that periods of history are kept after their end, at least 1; 365 when absent.
    #[schema(example = 365)]
    history_days: Option<u32>,
    /// Only says what would go.
    #[serde(default)]
    dry_run: bool,
}

impl Retaining {
    fn policy(&self) -> RetentionPolicy {
        let days = |days: u32| Duration::from_secs(u64::from(days) * DAY_SECS);
        let unless_told = RetentionPolicy::default();
        RetentionPolicy {
            audit: self.audit_days.map_or(unless_told.audit, days),
            history: self.history_days.map_or(unless_told.history, days),
            rows_max: ROWS_MAX,
            ..unless_told
        }
    }
}

/// Done again it removes what is left: the same policy may have more to remove later, under another key.
async fn run(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    command: Command<Retaining>,
) -> Result<Answer, Failure> {
    let policy = command.body.policy();
    if command.body.dry_run {
        return Answer::ok(&cluster.plan_retention(&policy).await.map_err(IntoProblem::into_problem)?);
    }
    let days = |kept: Duration| kept.as_secs() / DAY_SECS;
    let parameters = json!({"audit_days": days(policy.audit), "history_days": days(policy.history)});
    let (here, by, cx) = (cluster.clone(), permit.clone(), command.cx.clone());
    let effect =
        async move { Answer::ok(&here.run_retention(&cx, &by, &policy).await.map_err(IntoProblem::into_problem)?) };
    // It verifies the trail first, which takes as long as there is one: that may be longer than a request may.
    operate_to_its_end(cluster, &permit, command.cx, Intent::new("retention.run", "", parameters), effect).await
}
