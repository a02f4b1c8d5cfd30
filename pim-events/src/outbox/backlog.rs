//! What all outboxes of a cluster hold: asked at once, and honest about who did not answer.

use futures_util::future::join_all;
use pim_core::shard::ShardId;
use pim_data::backend::DbError;
use pim_data::cluster::Cluster;
use tokio::time::Instant;

use super::{OutboxError, OutboxStatus, Source};
use crate::event::Origin;

/// What the outboxes of a cluster still have to send.
#[derive(Debug)]
#[non_exhaustive]
pub struct Backlog {
    /// The outboxes that have answered, in order of the shards; that of the control database last.
    pub outboxes: Vec<OutboxStatus>,
    /// Those that have not, and those of shards that are not open in this program.
    pub failed: Vec<OutboxError>,
}

impl Backlog {
    /// Asks every outbox at once, and waits for none of them longer than until an instant.
    pub async fn of(cluster: &Cluster, until: Instant) -> Self {
        let now = cluster.clock().now();
        let sources = Source::all(cluster);
        let answers = join_all(sources.iter().map(|source| source.status_until(now, until))).await;
        let (mut outboxes, mut failed) = (Vec::new(), Vec::new());
        for answer in answers {
            match answer {
                Ok(status) => outboxes.push(status),
                Err(error) => failed.push(error),
            }
        }
        failed.extend(cluster.missing().into_iter().map(not_open));
        failed.sort_by_key(|error| error.origin.shard().map_or(u16::MAX, |shard| shard.0));
        Self { outboxes, failed }
    }

    /// How many events wait in all of them; `None` when one has not told.
    #[must_use]
    pub fn events(&self) -> Option<u64> {
        self.failed.is_empty().then(|| self.outboxes.iter().map(|status| status.backlog).sum())
    }

    /// How many events wait in all of them.
    ///
    /// # Errors
    /// [`OutboxError`] of the first that has not told.
    pub fn into_events(self) -> Result<u64, OutboxError> {
        let all = self.events().unwrap_or_default();
        self.failed.into_iter().next().map_or(Ok(all), Err)
    }
}

fn not_open(shard: ShardId) -> OutboxError {
    let source = DbError::NotOpen { shard: format!("shard {shard}") };
    OutboxError { origin: Origin::Shard(shard), source }
}
