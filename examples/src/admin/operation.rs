//! Shards and their map.

use axum::extract::State;
use pim_core::problem::{self, Problem, ProblemType};
use pim_core::rbac::{Read, Write};
use pim_core::shard::{MapError, MapVersion, ShardMap};
use pim_data::cluster::Cluster;
use pim_data::fence::PublishError;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use utoipa::{IntoParams, ToSchema};

use crate::operations::{Intent, answered, operate};
use crate::rig::{Answer, Asked, Command, Endpoints, Failure, May, Operation, reasons};
use crate::workers::Stores;

/// A shard map that may not be published.
const INVALID_MAP: ProblemType = ProblemType::new("invalid-shard-map", 422, "The shard map has findings");
/// A shard map that names what is not there, or is somebody else's.
const UNUSABLE_SHARD: ProblemType =
    ProblemType::new("unusable-shard", 409, "A shard that the map names cannot be used");
/// Handovers of one publication at most; more is more than one step.
const HANDOVERS_MAX: usize = pim_core::shard::HANDOVERS_MAX;

pub(super) fn endpoints() -> Endpoints<Stores> {
    Endpoints::new()
        .serve(Operation::tell("/v1/admin/shards", "Tells how the shards are"), shards)
        .serve(Operation::tell("/v1/admin/shards/map", "Shows the shard map in force"), map)
        .serve(Operation::operate("/v1/admin/shards/map", "Publishes a shard map"), publish)
        .serve(Operation::operate("/v1/admin/shards/map/rollback", "Goes back to an earlier shard map"), roll_back)
}

async fn shards(State(cluster): State<Cluster>, May(_permit): May<Read>) -> Result<Answer, Failure> {
    Answer::ok(&json!({ "map_version": cluster.router().version(), "items": cluster.health().await }))
}

async fn map(State(cluster): State<Cluster>, May(_permit): May<Read>) -> Result<Answer, Failure> {
    let map = cluster.map();
    // The next one names it as its parent.
    let digest = map.digest().to_string();
    Answer::ok(&json!({ "version": map.version(), "digest": digest, "toml": map.to_toml() }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct PublishQuery {
    /// Only says what it would come to: true or false
    #[serde(default)]
    dry_run: bool,
}

/// Body of a publication.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Publication {
    /// The map as its TOML text.
    map: String,
}

/// Publishing the map in force again changes nothing.
async fn publish(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    Asked(query): Asked<PublishQuery>,
    command: Command<Publication>,
) -> Result<Answer, Failure> {
    let next = ShardMap::parse(&command.body.map).map_err(|error| refused(&error))?;
    if query.dry_run {
        return Answer::ok(&difference(&cluster, &next));
    }
    let version = next.version();
    // The text is too long for a trail; its digest tells two of them apart.
    let digest: String = Sha256::digest(&command.body.map).iter().map(|byte| format!("{byte:02x}")).collect();
    let intent = Intent::new("shard_map.publish", version.to_string(), json!({ "map_sha256": digest }));
    operate(&cluster, &permit, &command.cx, intent, put_in_force(&cluster, next)).await
}

/// What publishing a map would come to.
fn difference(cluster: &Cluster, next: &ShardMap) -> Value {
    let current = cluster.map();
    let (findings, handovers) = (current.findings_on(next, HANDOVERS_MAX), current.handovers_to(next).len());
    json!({ "dry_run": true, "handovers": handovers, "findings": findings })
}

/// Body of a way back.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct WayBack {
    /// Version of the earlier map.
    to: u64,
}

/// A rollback is a map of its own: the next version, with the shards, servers and owners of the earlier one.
async fn roll_back(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    Asked(query): Asked<PublishQuery>,
    command: Command<WayBack>,
) -> Result<Answer, Failure> {
    let to = MapVersion(command.body.to);
    if !query.dry_run
        && let Some(known) = answered(&cluster, &permit, &command.cx).await?
    {
        return Ok(known);
    }
    cluster.refresh_map().await.map_err(PublishError::from).map_err(unpublished)?;
    // Where there is none, that is no operation.
    let next = cluster.way_back(to).map_err(unpublished)?;
    if query.dry_run {
        let mut told = difference(&cluster, &next);
        told["toml"] = next.to_toml().into();
        return Answer::ok(&told);
    }
    let intent = Intent::new("shard_map.roll_back", to.to_string(), json!({ "to": to }));
    let effect = async {
        let (map, handovers) = cluster.roll_back_map(to).await.map_err(unpublished)?;
        Answer::ok(&json!({ "version": map.version(), "handovers": handovers.len() }))
    };
    operate(&cluster, &permit, &command.cx, intent, effect).await
}

async fn put_in_force(cluster: &Cluster, next: ShardMap) -> Result<Answer, Failure> {
    // A retry of one that was broken off behind its effect.
    if cluster.map().to_toml() == next.to_toml() {
        return Answer::ok(&json!({ "version": next.version(), "handovers": 0 }));
    }
    match cluster.publish_map(&next).await {
        Ok(handovers) => Answer::ok(&json!({ "version": next.version(), "handovers": handovers.len() })),
        Err(error) => Err(unpublished(error).into()),
    }
}

/// Why a map is not in force, for whoever wants it to be.
fn unpublished(error: PublishError) -> Problem {
    match error {
        PublishError::Map(error) => refused(&error),
        PublishError::NotEmpty(_)
        | PublishError::NotEarlier { .. }
        | PublishError::NotKept { .. }
        | PublishError::StillNeeded(_) => Problem::of(INVALID_MAP).detail(error.to_string()),
        PublishError::Open(error) => Problem::of(UNUSABLE_SHARD).detail(reasons(&*error)),
        PublishError::NotOwner(_) => Problem::of(problem::UNAVAILABLE).detail(error.to_string()),
        _ => Problem::of(problem::UNAVAILABLE).retry_after_secs(1),
    }
}

fn refused(error: &MapError) -> Problem {
    let findings: Value = serde_json::to_value(error.findings()).unwrap_or_default();
    Problem::of(INVALID_MAP).with("findings", findings)
}
