//! Waiting until everything that was committed has been published and applied.

use std::time::Duration;

use pim_events::{Backlog, ConsumerStatus};
use tokio::time::Instant;

use crate::workers::Stores;

const PATIENCE: Duration = Duration::from_secs(20);
/// How long it is waited for the outboxes to answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// While others need the machine more than whoever looks.
const LOOK_SELDOM: Duration = Duration::from_millis(100);

/// Whether the flow came to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Nothing is on its way any more.
    Yes,
    /// Something still was when patience ended.
    No,
}

/// Waits until no outbox has a backlog and no consumer lags, within bounds.
pub async fn settle(stores: &Stores) -> Settled {
    let give_up = Instant::now() + PATIENCE;
    // Twice in a row: a command may have written something new after the first look.
    let mut quiet = 0;
    while quiet < 2 {
        if Instant::now() > give_up {
            return Settled::No;
        }
        quiet = if is_quiet(stores).await { quiet + 1 } else { 0 };
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Settled::Yes
}

/// Waits until nothing is on its way, or until a time; whichever comes first.
///
/// # Errors
/// When a store cannot be read.
pub async fn settle_until(stores: &Stores, give_up: Instant) -> anyhow::Result<()> {
    while backlog(stores).await? > 0 && Instant::now() < give_up {
        tokio::time::sleep(LOOK_SELDOM).await;
    }
    Ok(())
}

/// Events that wait in outboxes, and those that the slowest consumer has before it.
///
/// # Errors
/// When a store cannot be read: what waits in a shard that is away is not known.
pub async fn backlog(stores: &Stores) -> anyhow::Result<u64> {
    let waiting = Backlog::of(&stores.cluster, Instant::now() + ANSWERED_WITHIN).await.into_events()?;
    let consumers = stores.reads.status(&stores.bus).await?;
    let lag = |consumer: &ConsumerStatus| consumer.partitions.iter().map(|part| part.lag).sum::<u64>();
    Ok(waiting + consumers.iter().map(lag).max().unwrap_or(0))
}

async fn is_quiet(stores: &Stores) -> bool {
    if Backlog::of(&stores.cluster, Instant::now() + ANSWERED_WITHIN).await.events() != Some(0) {
        return false;
    }
    match stores.reads.status(&stores.bus).await {
        Ok(consumers) => consumers.iter().all(|consumer| consumer.partitions.iter().all(|part| part.lag == 0)),
        Err(_) => false,
    }
}
