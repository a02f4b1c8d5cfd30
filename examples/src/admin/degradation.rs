//! Letting a shard's primary acknowledge commits alone, ending that, and giving up what was lost with it: an operator's words.

use axum::extract::{Path, State};
use pim_core::problem::{self, IntoProblem as _, Problem, ProblemType};
use pim_core::rbac::Write;
use pim_core::shard::ShardId;
use pim_data::cluster::Cluster;
use pim_data::degradation::{Reason, ReasonError};
use pim_events::{Origin, Source};
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::identifier::{REAL_IDENTIFIER, RULE, names_a_real_one};
use crate::operations::{Intent, Turn, id_of, operate, operate_to_its_end};
use crate::rig::{Answer, Command, Endpoints, Failure, May, Operation};
use crate::workers::Stores;

pub(super) fn endpoints() -> Endpoints<Stores> {
    let degrade = "Lets a shard's primary acknowledge commits alone, or ends that";
    let accept = "Gives up what a shard has lost with its primary, so that the trail verifies without it";
    Endpoints::new()
        .serve(Operation::operate("/v1/admin/shards/{id}/degrade", degrade), turn)
        .serve(Operation::operate("/v1/admin/shards/{id}/accept-loss", accept), accept_loss)
}

/// Each publishes a map and reads all of the trail.
const BEING_GIVEN_UP: ProblemType =
    ProblemType::new("loss-being-given-up", 409, "What the shard has lost is being given up already");
const ACCEPT: &str = "shard.accept_loss";

/// Most lines that one word gives up.
const LINES_MAX: usize = 1000;

fn number(id: &str) -> Result<ShardId, Problem> {
    id.parse().map(ShardId).map_err(|_| Problem::of(problem::INVALID_ID).detail("the number of a shard"))
}

fn word(reason: &str) -> Result<Reason, Problem> {
    // The row of the operation and the shard's trail show it. Digits behind a letter are a ticket's.
    if names_a_real_one(reason) {
        return Err(Problem::of(REAL_IDENTIFIER).detail(RULE));
    }
    reason.parse().map_err(|error: ReasonError| Problem::of(problem::INVALID_BODY).detail(error.to_string()))
}

/// Body of a turn of the setting.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Degrading {
    /// Why: one word, such as `standby-lost` or the number of a ticket.
    #[schema(example = "standby-lost", max_length = 64, pattern = "^[A-Za-z0-9._-]+$")]
    reason: String,
    /// Has commits wait for standbys again, and asks these to confirm what was acknowledged without them.
    #[serde(default)]
    off: bool,
}

/// Done again it changes nothing; ending it again asks the standbys again.
async fn turn(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    Path(id): Path<String>,
    command: Command<Degrading>,
) -> Result<Answer, Failure> {
    let (asked, cx) = (&command.body, &command.cx);
    let (shard, reason) = (number(&id)?, word(&asked.reason)?);
    let effect = async {
        let degraded = if asked.off {
            cluster.end_degrading(cx, &permit, shard, &reason).await
        } else {
            cluster.degrade(cx, &permit, shard, &reason).await.map(Some)
        };
        Answer::ok(&json!({"shard": shard, "degraded": degraded.map_err(|error| error.into_problem())?}))
    };
    let name = if asked.off { "shard.end_degrading" } else { "shard.degrade" };
    operate(&cluster, &permit, cx, Intent::new(name, shard.to_string(), json!({"reason": reason.as_str()})), effect)
        .await
}

/// Body of the word that gives a loss up.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Acceptance {
    /// Why: one word, such as `standby-lost` or the number of a ticket.
    #[schema(example = "standby-lost", max_length = 64, pattern = "^[A-Za-z0-9._-]+$")]
    reason: String,
    /// Earlier checkpoints that had signed less of the shard and are given up too, as verifying tells them. None right after
    /// the promotion.
    #[serde(default)]
    #[schema(max_items = 1000)]
    lines: Vec<u64>,
}

/// Done again it raises the epochs of the shard's buckets again, and changes nothing else.
///
/// The outbox begins anew: where its relay was, the lost primary had said, and consumers know what they have.
async fn accept_loss(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    Path(id): Path<String>,
    command: Command<Acceptance>,
) -> Result<Answer, Failure> {
    let Acceptance { reason, lines } = command.body;
    let (shard, reason) = (number(&id)?, word(&reason)?);
    if lines.len() > LINES_MAX {
        return Err(Problem::of(problem::INVALID_BODY).with("lines_max", LINES_MAX).into());
    }
    let parameters = json!({"reason": reason.as_str(), "lines": lines});
    let (here, by, cx, id) = (cluster.clone(), permit.clone(), command.cx.clone(), id_of(&command.cx)?);
    let effect = async move {
        // Of a shard of its own: what another one has lost does not wait. One that there is not has no turn.
        let turn = here.database(shard).map(|_db| Turn::take(here.data_dir(), &format!("{ACCEPT}.{shard}"), id));
        let _turn = turn.transpose().map_err(|error| error.into_failure(BEING_GIVEN_UP))?;
        let given_up = here.accept_loss(&cx, &by, shard, &reason, &lines).await;
        let given_up = given_up.map_err(|error| error.into_problem())?;
        let is_its = |source: &Source| matches!(source.origin, Origin::Shard(origin) if origin == shard);
        for source in Source::all(&here).into_iter().filter(is_its) {
            source.rebase().await.map_err(|_| Problem::of(problem::UNAVAILABLE).retry_after_secs(1))?;
        }
        Answer::ok(&given_up)
    };
    let intent = Intent::new(ACCEPT, shard.to_string(), parameters);
    // It looks at all of the trail, which may take longer than a request may.
    operate_to_its_end(cluster, &permit, command.cx, intent, effect).await
}
