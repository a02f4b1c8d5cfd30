//! Waiting until everything that was committed has been published and applied.

use std::time::Duration;

use pim_events::Source;
use tokio::time::Instant;

use crate::workers::Stores;

const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);

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

async fn is_quiet(stores: &Stores) -> bool {
    let now = stores.cluster.clock().now();
    for source in Source::all(&stores.cluster) {
        match source.status(now).await {
            Ok(status) if status.backlog == 0 => {}
            _ => return false,
        }
    }
    match stores.reads.status(&stores.bus).await {
        Ok(consumers) => consumers.iter().all(|consumer| consumer.partitions.iter().all(|part| part.lag == 0)),
        Err(_) => false,
    }
}
