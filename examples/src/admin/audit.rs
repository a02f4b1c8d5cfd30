//! Looking at the audit trail and verifying it.

use axum::extract::State;
use pim_core::clock::Timestamp;
use pim_core::context::RequestId;
use pim_core::identity::Subject;
use pim_core::problem::{self, IntoProblem, Problem, ProblemType};
use pim_core::rbac::{Read, Write};
use pim_data::audit::{AuditFilter, AuditPlace};
use pim_data::cluster::{CONTROL, Cluster};
use pim_data::fan_out::{FanOut, Next, ShardFailure};
use pim_data::repository::Page;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::IntoParams;

use super::unanswered;
use crate::operations::{Intent, Turn, id_of, operate_to_its_end};
use crate::rig::{Answer, Asked, Caller, Command, Cursor, Endpoints, Failure, May, Nothing, Operation, PageQuery};
use crate::workers::Stores;

/// Each reads all of the trail.
const BEING_VERIFIED: ProblemType =
    ProblemType::new("trail-being-verified", 409, "The audit trail is being verified already");
const VERIFY: &str = "audit.verify";

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
    /// How many items, 1 to 200
    limit: Option<u32>,
    /// The next_cursor of the page before
    cursor: Option<String>,
}

const LOOK: FanOut = FanOut::because("a look into the trail");

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
        (None, Some(user)) => {
            let user: Subject = user.parse().map_err(|_| Problem::of(problem::INVALID_ID).detail("user_id"))?;
            AuditFilter::User(user.to_string())
        }
        _ => return Err(invalid().into()),
    };
    let asked = PageQuery::new(query.limit, query.cursor);
    let after = asked.cursor()?.map(|cursor| place_of(cursor.key())).transpose()?;
    let page = Page { after, limit: asked.limit()? };
    let found = cluster.audit(&caller.cx, &permit, LOOK, &filter, page).await.map_err(IntoProblem::into_problem)?;
    if found.next == Next::Again && found.failed.is_empty() {
        // Nobody who joins pages has a record twice, and nobody takes it for the end.
        let changed = Problem::of(problem::UNAVAILABLE).detail("the shard map changed meanwhile: ask again");
        return Err(changed.retry_after_secs(1).into());
    }
    let next = match found.next {
        Next::End => None,
        Next::After(place) => Some(place),
        Next::Again => Some(after.unwrap_or(AuditPlace::START)),
    };
    let next = next.map(|place| Cursor::behind(text_of(place)).text());
    let failed: Vec<Value> = found.failed.into_iter().map(failed).collect();
    Answer::ok(&json!({ "items": found.rows, "next_cursor": next, "failed": failed }))
}

/// A shard whose records are missing from the page; its cursor asks for the same page again.
fn failed(failure: ShardFailure) -> Value {
    unanswered((failure.shard != CONTROL).then_some(failure.shard), failure.error.into_problem())
}

fn text_of(place: AuditPlace) -> String {
    let AuditPlace { at, shard, lane, seq } = place;
    let shard = shard.map_or_else(|| "control".to_owned(), |shard| shard.to_string());
    format!("{}/{shard}/{lane}/{seq}", at.as_micros())
}

fn place_of(text: &str) -> Result<AuditPlace, Failure> {
    let invalid = || Problem::of(problem::INVALID_CURSOR);
    let parts: Vec<&str> = text.split('/').collect();
    let [at, shard, lane, seq] = parts[..] else { return Err(invalid().into()) };
    let at = Timestamp::from_micros(at.parse().map_err(|_| invalid())?);
    let shard = if shard == "control" { None } else { Some(shard.parse().map_err(|_| invalid())?) };
    let (lane, seq) = (lane.parse().map_err(|_| invalid())?, seq.parse().map_err(|_| invalid())?);
    Ok(AuditPlace { at, shard, lane, seq })
}

async fn verify(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    command: Command<Nothing>,
) -> Result<Answer, Failure> {
    let (here, id) = (cluster.clone(), id_of(&command.cx)?);
    let effect = async move {
        let turn = Turn::take(here.data_dir(), VERIFY, id);
        let _turn = turn.map_err(|error| error.into_failure(BEING_VERIFIED))?;
        Answer::ok(&here.verify_audit().await.map_err(IntoProblem::into_problem)?)
    };
    // It takes as long as there is a trail, which may be longer than a request may.
    operate_to_its_end(cluster, &permit, command.cx, Intent::new(VERIFY, "", json!({})), effect).await
}
