//! Whether anything is on its way: who does not say no may be at it.

use std::time::Duration;

use pim_events::{Backlog, ConsumerStatus, StatusError, Subscriber as _};
use tokio::time::Instant;

use crate::workers::Stores;

/// How long it is looked; who does not say so in time may be at it.
const WITHIN: Duration = Duration::from_millis(500);

/// A consumer's name, and the topic that it reads.
pub(super) type Reader = (&'static str, &'static str);

/// Whether no outbox has anything to send or holds anything, no consumer has anything to read, and each of these has begun
/// to read all of its topic: one that has never run has no place, and lags behind nothing.
pub(super) async fn is_quiet(stores: &Stores, readers: &[Reader]) -> bool {
    tokio::time::timeout(WITHIN, nothing_moves(stores, readers)).await.unwrap_or(false)
}

async fn nothing_moves(stores: &Stores, readers: &[Reader]) -> bool {
    let outboxes = Backlog::of(&stores.cluster, Instant::now() + WITHIN).await;
    let held: u64 = outboxes.outboxes.iter().map(|outbox| outbox.held).sum();
    // After the outboxes: what has left them is on the bus.
    outboxes.events() == Some(0) && held == 0 && all_is_read(stores, readers).await.unwrap_or(false)
}

async fn all_is_read(stores: &Stores, readers: &[Reader]) -> Result<bool, StatusError> {
    let known = stores.reads.status(&stores.bus).await?;
    let is_behind = |consumer: &ConsumerStatus| consumer.partitions.iter().any(|part| part.lag > 0);
    if known.iter().any(is_behind) {
        return Ok(false);
    }
    for (name, topic) in readers {
        let places = known.iter().filter(|one| one.consumer == *name).flat_map(|one| &one.partitions);
        if places.filter(|place| place.topic == *topic).count() < usize::from(stores.bus.partitions(topic).await?) {
            return Ok(false);
        }
    }
    Ok(true)
}
