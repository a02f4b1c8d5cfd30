//! What the outboxes still hold.

use std::time::Duration;

use axum::extract::State;
use pim_core::problem::IntoProblem as _;
use pim_core::rbac::Read;
use pim_data::cluster::Cluster;
use pim_events::Backlog;
use serde_json::{Value, json};

use super::unanswered;
use crate::rig::{Answer, Caller, Endpoints, Failure, May, Operation};
use crate::workers::Stores;

/// Most time for all outboxes together: one that stands still is named, and the others are told of.
const LOOK_MAX: Duration = Duration::from_secs(2);

pub(super) fn endpoints() -> Endpoints<Stores> {
    Endpoints::new().serve(Operation::tell("/v1/admin/outbox", "Tells what the outboxes still hold"), outbox)
}

/// The sum is told when every outbox has told its own: nobody takes a part of it for all.
async fn outbox(State(cluster): State<Cluster>, May(_permit): May<Read>, caller: Caller) -> Result<Answer, Failure> {
    let found = Backlog::of(&cluster, caller.cx.deadline().capped(LOOK_MAX).instant()).await;
    let backlog = found.events();
    let failed = found.failed.into_iter().map(|error| unanswered(error.origin.shard(), error.source.into_problem()));
    let failed: Vec<Value> = failed.collect();
    Answer::ok(&json!({ "backlog": backlog, "items": found.outboxes, "failed": failed }))
}
