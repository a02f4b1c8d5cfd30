//! The worker: leases a cycle, submits its claims page by page, and remembers after each page where it is.

mod held;
mod page;
mod turn;
mod walk;

use std::time::Duration;

use pim_core::rbac::SystemScope;
use pim_core::shard::ShardMap;
use pim_data::cluster::{Cluster, DirectoryError};
use pim_data::repository::ReadError;
use pim_data::unit::UnitError;
use pim_events::AppendError;
use uuid::Uuid;

use self::held::Held;
use self::page::{Place, Run};
use self::turn::Turn;
use self::walk::{End, Walk};
use crate::rig::Drain;

/// How long a worker may be silent before another takes its cycle over.
pub const LEASE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(4);
/// A claim and the note of its page, which take milliseconds where a shard answers.
const STOPPING_MAX: Duration = Duration::from_secs(3);
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

/// Runs until told to stop. Then it ends with the claim that it is at, and writes down what it has submitted; dropped at
/// another point it leaves nothing half done, but may have submitted more than is counted.
pub async fn run(cluster: Cluster, stop: Drain) {
    let mut worker = Worker::new(stop.clone());
    while !stop.has_begun() {
        let Some(outcome) = ended(worker.step(&cluster), &stop).await else {
            pim_core::warn!("billing_cycle.not_written_down");
            return;
        };
        let pause = match outcome {
            Ok(true) => continue,
            Ok(false) => LOOK_EVERY,
            Err(error) => {
                pim_core::warn!("billing_cycle.step_failed", retryable = !matches!(error, JobError::Actor));
                pause(worker.failures)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.begun() => {}
        }
    }
}

/// What a step came to; `None` when it was told to stop and has not.
async fn ended<T>(step: impl Future<Output = T>, stop: &Drain) -> Option<T> {
    let mut step = std::pin::pin!(step);
    tokio::select! {
        outcome = &mut step => Some(outcome),
        () = stop.begun() => tokio::time::timeout(STOPPING_MAX, step).await.ok(),
    }
}

/// How long to wait after so many steps in a row that came to nothing.
fn pause(failures: u32) -> Duration {
    (LOOK_EVERY * 2_u32.saturating_pow(failures.saturating_sub(1).min(8))).min(PAUSE_MAX)
}

/// Who takes cycles on.
#[derive(Debug)]
pub struct Worker {
    id: Uuid,
    stop: Drain,
    held: Held,
    failures: u32,
}

impl Worker {
    /// One more. Once told to stop it takes no further claim in the step that it is at.
    #[must_use]
    pub fn new(stop: Drain) -> Self {
        Self { id: Uuid::new_v4(), stop, held: Held::default(), failures: 0 }
    }

    /// One page of one cycle; whether there was anything to do.
    ///
    /// Bucket by bucket, not shard by shard: a bucket that moves takes its claims to a shard that may have been looked at. While
    /// the cycle cannot go on where it is, what is behind is done beside it: neither a shard that is away nor a claim that waits
    /// keeps others waiting. Claims that failed are tried when nothing else is left to do.
    ///
    /// # Errors
    /// [`JobError`]; what was submitted before it stays so and is counted, and the next step goes on from there.
    pub async fn step(&mut self, cluster: &Cluster) -> Result<bool, JobError> {
        let outcome = self.turn(cluster).await;
        self.failures = if outcome.is_ok() { 0 } else { self.failures.saturating_add(1) };
        outcome
    }

    async fn turn(&mut self, cluster: &Cluster) -> Result<bool, JobError> {
        let Some(turn) = Turn::take(cluster, self.id).await? else { return Ok(false) };
        let mut walk = Walk::new(turn, &mut self.held, &self.stop);
        let went = go(&mut walk).await;
        if walk.turn.has_submitted() {
            // There may be more that can be.
            self.failures = 0;
        }
        went.and_then(|()| walk.outcome()).map(|()| true)
    }
}

async fn go(walk: &mut Walk<'_>) -> Result<(), JobError> {
    let (cluster, from) = (walk.turn.cluster(), Place::of(walk.turn.cycle()));
    let map = cluster.map();
    let Some(run) = Run::at(&map, from.bucket) else { return walk.turn.note(0, Some(from)).await };
    let page = walk.page(run, from.after).await;
    let behind = match page.end {
        End::Left(behind) => behind,
        End::Done(place) => match unless_remapped(cluster, &map, place).await {
            Ok(place) => return walk.turn.note(page.submitted, place).await,
            Err(error) => {
                walk.fail(error);
                place
            }
        },
    };
    walk.turn.tell(page.submitted).await?;
    walk.beside(&map, behind).await?;
    walk.last().await
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_comes_to_nothing_looks_less_often_and_keeps_its_cycle() {
        assert_eq!([1, 2, 3].map(pause), [LOOK_EVERY, LOOK_EVERY * 2, LOOK_EVERY * 4]);
        // At the end of a step the lease is a quarter over at most.
        assert!(pause(u32::MAX) < LEASE / 2);
    }
}
