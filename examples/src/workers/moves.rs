//! Goes on with moves of buckets whose mover is gone: a bucket that is about to change hands takes no writes.

use std::collections::HashMap;
use std::mem::{Discriminant, discriminant};
use std::sync::Arc;
use std::time::Duration;

use pim_core::context::{RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_data::cluster::Cluster;
use pim_data::relocation::{MoveError, MoveStep, Mover};
use pim_events::OutboxOutlet;
use uuid::Uuid;

use super::service_actor;
use crate::rig::{Drain, is_recent};

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A move in which nothing has changed for this long is looked at; one in hand cannot be taken up.
const QUIET_FOR: Duration = Duration::from_secs(5);
/// The same while its buckets take no writes: these wait for it, and not for longer than a request may take.
const FENCED_FOR: Duration = Duration::from_millis(500);
/// How long a record of what was done may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why each move waits, as it was told last.
type Told = HashMap<Uuid, Discriminant<MoveError>>;

/// Runs until told to stop; drop it at any point.
pub(super) async fn tend(cluster: Cluster, stop: Drain) {
    let mover = Mover::new(&cluster, Arc::new(OutboxOutlet));
    if !mover.may_move() {
        // On servers that is for the programs with the owner's secrets.
        return;
    }
    let mut told = Told::new();
    let work = async {
        loop {
            match step(&cluster, &mover, &mut told).await {
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

/// Goes on with each move as far as it can; what keeps one back does not keep those behind it.
async fn step(cluster: &Cluster, mover: &Mover, told: &mut Told) -> Result<(), MoveError> {
    let Ok(actor) = service_actor("bucket-mover") else { return Ok(()) };
    let mut unfinished = mover.unfinished().await?;
    unfinished.sort_by_key(|begun| !is_shut(begun.step));
    told.retain(|id, _| unfinished.iter().any(|begun| begun.id == *id));
    for begun in unfinished {
        let patience = if is_shut(begun.step) { FENCED_FOR } else { QUIET_FOR };
        if is_recent(begun.changed_at, patience, cluster.clock().now()) {
            continue;
        }
        let cx = RequestContext::new(RequestId::mint(), actor.clone(), Deadline::after(PATIENCE));
        match mover.run(&cx, begun.id).await {
            Ok(_done) => drop(told.remove(&begun.id)),
            // Whoever is at work keeps all of them.
            Err(MoveError::Busy) => return Ok(()),
            Err(error) => tell(told, begun.id, &error),
        }
    }
    Ok(())
}

/// Whether its buckets take no writes.
const fn is_shut(step: MoveStep) -> bool {
    matches!(step, MoveStep::Fenced | MoveStep::Activating)
}

/// Says why a move waits, once as long as that is the same.
fn tell(told: &mut Told, id: Uuid, error: &MoveError) {
    let why = discriminant(error);
    if told.insert(id, why) != Some(why) {
        pim_core::warn!("bucket_move.waits", retryable = error.is_retryable());
    }
}
