//! The worker: leases a cycle, submits its claims page by page, and remembers after each page where it is.

mod page;
mod turn;

use std::time::Duration;

use pim_core::rbac::SystemScope;
use pim_core::shard::{ShardId, ShardMap};
use pim_data::cluster::{Cluster, DirectoryError};
use pim_data::repository::ReadError;
use pim_data::unit::UnitError;
use pim_events::AppendError;
use uuid::Uuid;

use self::page::{Page, Place, Run};
use self::turn::Turn;
use crate::rig::Drain;

/// How long a worker may be silent before another takes its cycle over.
pub const LEASE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Half a lease: whoever has waited for a shard in vain still has the cycle.
const PATIENCE: Duration = Duration::from_secs(5);
const REASON: SystemScope = SystemScope::new("submit the claims of a billing cycle");

/// What stops a step; the next look tries again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// A unit of work failed.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// An event does not fit.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// Claims cannot be listed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The map of the shards cannot be read.
    #[error(transparent)]
    Map(#[from] DirectoryError),
    /// Nobody could write it down.
    #[error("the service's name is no subject")]
    Actor,
    /// The lease ran out.
    #[error("somebody else has taken the cycle over")]
    Lost,
}

/// Runs until told to stop; drop it at any point.
pub async fn run(cluster: Cluster, stop: Drain) {
    let worker = Uuid::new_v4();
    let work = async {
        loop {
            match step(&cluster, worker).await {
                Ok(true) => {}
                Ok(false) => tokio::time::sleep(LOOK_EVERY).await,
                Err(error) => {
                    pim_core::warn!("billing_cycle.step_failed", retryable = !matches!(error, JobError::Actor));
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.begun() => {}
    }
}

/// One page of one cycle; whether there was anything to do.
///
/// Bucket by bucket, not shard by shard: a bucket that moves takes its claims to a shard that may have been looked at. While
/// the cycle cannot go on where it is, a page of each later run is done beside it: a shard that is away keeps no other waiting.
///
/// # Errors
/// [`JobError`]; what was submitted before it stays so and is counted, and the next step goes on from there.
pub async fn step(cluster: &Cluster, worker: Uuid) -> Result<bool, JobError> {
    let Some(turn) = Turn::take(cluster, worker).await? else { return Ok(false) };
    let (map, from) = (cluster.map(), Place::of(turn.cycle()));
    let Some(run) = Run::at(&map, from.bucket) else {
        turn.note(0, Some(from)).await?;
        return Ok(true);
    };
    let page = Page::of(&turn, run, from.after).await;
    let end = match page.end {
        Ok(place) => unless_remapped(cluster, &map, place).await,
        Err(error) => Err(error),
    };
    match end {
        Ok(place) => turn.note(page.submitted, place).await?,
        Err(error) => {
            turn.note(page.submitted, None).await?;
            beside(&turn, &map, run, &error).await?;
            return Err(error);
        }
    }
    Ok(true)
}

/// Where to go on, unless the map has changed: what was not found may have been taken away before it was looked for, so that
/// it is looked for again, by the newer map.
async fn unless_remapped(cluster: &Cluster, map: &ShardMap, place: Place) -> Result<Option<Place>, JobError> {
    let _newest = cluster.refresh_map().await?;
    if cluster.map().version() != map.version() {
        return Ok(None);
    }
    Ok(Some(place))
}

/// Does a page of each run behind one that failed. The cycle stays where it is and comes to all of them once more: a claim
/// that is submitted by then is no draft.
async fn beside(turn: &Turn<'_>, map: &ShardMap, failed: Run, error: &JobError) -> Result<(), JobError> {
    let mut away: Vec<ShardId> = is_away(error).then_some(failed.shard).into_iter().collect();
    let mut next = failed.next(map);
    while let Some(run) = next {
        next = run.next(map);
        // It is waited for once.
        if away.contains(&run.shard) {
            continue;
        }
        let page = Page::of(turn, run, None).await;
        if page.submitted > 0 || page.end.is_err() {
            turn.note(page.submitted, None).await?;
        }
        away.extend(page.end.is_err_and(|error| is_away(&error)).then_some(run.shard));
    }
    Ok(())
}

/// Whether it is the shard that fails, and not one of its claims.
const fn is_away(error: &JobError) -> bool {
    matches!(error, JobError::Read(_))
}
