//! Moving buckets between shards, by an operator's word. What was asked for goes on when whoever asked has gone: buckets that are
//! about to change hands take no writes.

use std::sync::Arc;

use axum::extract::{Path, State};
use pim_core::context::RequestContext;
use pim_core::problem::{self, IntoProblem as _, Problem};
use pim_core::rbac::{Read, Write};
use pim_core::shard::{Bucket, ShardId, ShardMap};
use pim_data::cluster::Cluster;
use pim_data::relocation::{BUCKETS_MAX, MoveError, MoveRecord, Mover};
use pim_events::OutboxOutlet;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::operations::{Intent, operate_to_its_end};
use crate::rig::{Answer, Command, Endpoints, Failure, May, Nothing, Operation};
use crate::workers::Stores;

/// Moves that are listed.
const LISTED_MAX: u32 = 100;
/// Buckets of one request: as many as its time allows for.
const REQUESTED_MAX: usize = 256;

pub(super) fn endpoints() -> Endpoints<Stores> {
    Endpoints::new()
        .serve(Operation::tell("/v1/admin/shards/moves", "Lists moves of buckets"), list)
        .serve(Operation::operate("/v1/admin/shards/moves", "Moves buckets to another shard"), start)
        .serve(Operation::operate("/v1/admin/shards/moves/{id}/reverse", "Moves the buckets of a move back"), reverse)
        .serve(Operation::operate("/v1/admin/shards/moves/{id}/cancel", "Gives up a move"), cancel)
}

/// Body of a move: a run of buckets, or some of those that a shard still has.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Moving {
    /// The first bucket.
    #[schema(example = 7, maximum = 4095)]
    first: Option<u16>,
    /// The last one; the first when absent.
    last: Option<u16>,
    /// Instead of buckets: the shard to be emptied, 64 buckets a request.
    shard: Option<u16>,
    /// Where they go.
    #[schema(example = 1)]
    to: u16,
    /// Only says what would move.
    #[serde(default)]
    dry_run: bool,
}

impl Moving {
    /// The buckets that are meant.
    fn buckets(&self, map: &ShardMap) -> Result<Vec<Bucket>, Failure> {
        let invalid = |detail: &'static str| Failure::from(Problem::of(problem::INVALID_BODY).detail(detail));
        match (self.first, self.shard) {
            (Some(first), None) => {
                let run = first..=self.last.unwrap_or(first);
                let all: Result<Vec<_>, _> = run.take(REQUESTED_MAX + 1).map(Bucket::new).collect();
                let all = all.map_err(|_| invalid("buckets are numbered 0 to 4095"))?;
                if all.is_empty() || all.len() > REQUESTED_MAX {
                    return Err(invalid("a request moves a run of 1 to 256 buckets"));
                }
                Ok(all)
            }
            (None, Some(shard)) if shard == self.to => Err(invalid("a shard is emptied to another one")),
            (None, Some(shard)) if self.last.is_none() => {
                if !is_known(map, ShardId(shard)) {
                    return Err(Problem::of(problem::NOT_FOUND).detail("the map has no such shard").into());
                }
                Ok(map.buckets_of(ShardId(shard)).map(|(bucket, _)| bucket).take(BUCKETS_MAX).collect())
            }
            _ => Err(invalid("give first, and perhaps last, or shard")),
        }
    }

    /// How many of the buckets that are meant in the end are not at the target: a shard to be emptied has some for later.
    fn left(&self, map: &ShardMap, buckets: &[Bucket]) -> usize {
        match self.shard {
            Some(shard) => map.buckets_of(ShardId(shard)).count(),
            None => buckets.iter().filter(|bucket| map.owner(**bucket).0 != ShardId(self.to)).count(),
        }
    }
}

fn is_known(map: &ShardMap, shard: ShardId) -> bool {
    map.shards().iter().any(|known| known.id == shard)
}

fn mover(cluster: &Cluster) -> Mover {
    Mover::new(cluster, Arc::new(OutboxOutlet))
}

fn refused(error: MoveError) -> Failure {
    error.into_problem().into()
}

async fn list(State(cluster): State<Cluster>, May(_permit): May<Read>) -> Result<Answer, Failure> {
    let moves = mover(&cluster).list(LISTED_MAX).await.map_err(refused)?;
    Answer::ok(&json!({"items": moves, "next_cursor": null}))
}

async fn start(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    command: Command<Moving>,
) -> Result<Answer, Failure> {
    let asked = command.body;
    // A shard that has just come is not unknown.
    cluster.refresh_map().await.map_err(|error| refused(error.into()))?;
    let buckets = asked.buckets(&cluster.map())?;
    let to = ShardId(asked.to);
    if !is_known(&cluster.map(), to) {
        // Also when there is nothing to move there.
        return Err(refused(MoveError::Target(to)));
    }
    if asked.dry_run {
        let mut planned = Vec::new();
        for some in by_owner(&cluster, &buckets, to) {
            planned.push(mover(&cluster).check(some, to).await.map_err(refused)?);
        }
        let left = asked.left(&cluster.map(), &buckets);
        let moved: usize = planned.iter().map(|planned| planned.buckets.len()).sum();
        return Answer::ok(&json!({"dry_run": true, "left": left.saturating_sub(moved), "moves": planned}));
    }
    let target = match asked.shard {
        Some(shard) => format!("shard {shard}"),
        None => format!("{}-{}", asked.first.unwrap_or(0), asked.last.or(asked.first).unwrap_or(0)),
    };
    let intent = Intent::new("shard.move", target, json!({"to": asked.to}));
    let (here, cx) = (cluster.clone(), command.cx.clone());
    let effect = async move {
        let done = carry_out(&here, &cx, &buckets, to).await.map_err(refused)?;
        Answer::ok(&json!({"dry_run": false, "left": asked.left(&here.map(), &buckets), "moves": done}))
    };
    operate_to_its_end(cluster, &permit, command.cx, intent, effect).await
}

/// What is not at the target yet, in pieces that one move may take.
fn by_owner(cluster: &Cluster, buckets: &[Bucket], to: ShardId) -> Vec<Vec<Bucket>> {
    let map = cluster.map();
    let mut pieces: Vec<Vec<Bucket>> = Vec::new();
    for &bucket in buckets.iter().filter(|bucket| map.owner(**bucket).0 != to) {
        let owner = map.owner(bucket).0;
        match pieces.last_mut() {
            Some(piece) if piece.len() < BUCKETS_MAX && map.owner(piece[0]).0 == owner => piece.push(bucket),
            _ => pieces.push(vec![bucket]),
        }
    }
    pieces
}

/// Goes on with what was broken off before, then moves the rest: doing it again does what is left.
async fn carry_out(
    cluster: &Cluster,
    cx: &RequestContext,
    buckets: &[Bucket],
    to: ShardId,
) -> Result<Vec<MoveRecord>, MoveError> {
    let mover = mover(cluster);
    let mut done = Vec::new();
    for begun in mover.unfinished().await? {
        if begun.target == to && begun.buckets.iter().all(|bucket| buckets.contains(bucket)) {
            done.push(mover.run(cx, begun.id).await?);
        }
    }
    cluster.refresh_map().await?;
    for some in by_owner(cluster, buckets, to) {
        let planned = mover.plan(cx, some, to).await?;
        done.push(mover.run(cx, planned.id).await?);
    }
    Ok(done)
}

fn id_of(text: &str) -> Result<Uuid, Failure> {
    Uuid::try_parse(text).map_err(|_| Problem::of(problem::INVALID_ID).into())
}

async fn reverse(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    Path(id): Path<String>,
    command: Command<Nothing>,
) -> Result<Answer, Failure> {
    let id = id_of(&id)?;
    let (mover, cx) = (mover(&cluster), command.cx.clone());
    let effect = async move {
        // One that was broken off before goes on.
        let begun = mover.unfinished().await.map_err(refused)?.into_iter().find(|it| it.reverses == Some(id));
        let back = match begun {
            Some(begun) => begun,
            None => mover.plan_reverse(&cx, id).await.map_err(refused)?,
        };
        Answer::ok(&mover.run(&cx, back.id).await.map_err(refused)?)
    };
    let intent = Intent::new("shard.move_reverse", id.to_string(), json!({}));
    operate_to_its_end(cluster, &permit, command.cx, intent, effect).await
}

async fn cancel(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    Path(id): Path<String>,
    command: Command<Nothing>,
) -> Result<Answer, Failure> {
    let id = id_of(&id)?;
    let mover = mover(&cluster);
    let effect = async move { Answer::ok(&mover.cancel(id).await.map_err(refused)?) };
    let intent = Intent::new("shard.move_cancel", id.to_string(), json!({}));
    operate_to_its_end(cluster, &permit, command.cx, intent, effect).await
}
