//! Goes on with moves of buckets whose mover is gone: a bucket that is about to change hands takes no writes.

use std::sync::Arc;
use std::time::Duration;

use pim_core::context::{RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_data::cluster::Cluster;
use pim_data::relocation::{MoveError, MoveStep, Mover};
use pim_events::OutboxOutlet;

use super::service_actor;
use crate::rig::Drain;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A move in which nothing has changed for this long is looked at; one in hand cannot be taken up.
const QUIET_FOR: Duration = Duration::from_secs(5);
/// The same while its buckets take no writes: these wait for it, and not for longer than a request may take.
const FENCED_FOR: Duration = Duration::from_millis(500);
/// How long a record of what was done may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs until told to stop; drop it at any point.
pub(super) async fn tend(cluster: Cluster, stop: Drain) {
    let mover = Mover::new(&cluster, Arc::new(OutboxOutlet));
    if !mover.may_move() {
        // On servers that is for the programs with the owner's secrets.
        return;
    }
    let work = async {
        loop {
            match step(&cluster, &mover).await {
                Ok(()) | Err(MoveError::Busy) => {}
                Err(error) => pim_core::warn!("bucket_move.waits", retryable = error.is_retryable()),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.begun() => {}
    }
}

async fn step(cluster: &Cluster, mover: &Mover) -> Result<(), MoveError> {
    let Ok(actor) = service_actor("bucket-mover") else { return Ok(()) };
    for begun in mover.unfinished().await? {
        let is_fenced = matches!(begun.step, MoveStep::Fenced | MoveStep::Activating);
        let patience = if is_fenced { FENCED_FOR } else { QUIET_FOR };
        if cluster.clock().now().since(begun.changed_at) >= patience {
            let cx = RequestContext::new(RequestId::mint(), actor.clone(), Deadline::after(PATIENCE));
            mover.run(&cx, begun.id).await?;
        }
    }
    Ok(())
}
