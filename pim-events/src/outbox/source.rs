//! Where a relay reads: one database with an outbox, and the hint that something was committed there.

use pim_core::shard::ShardId;
use pim_data::backend::{Db, SqlPair, Statement};
use pim_data::cluster::{CONTROL, Cluster};
use tokio::sync::watch;

use super::OutboxError;
use crate::event::Origin;

/// A snapshot of a server that was restored tells what its log had sent, and this log is another one.
const BACK: SqlPair = SqlPair::of(
    "UPDATE outbox_cursor SET low = '1:1:', high = NULL, last_seq = 0, owner = NULL, epoch = epoch + 1, lease_until_ms = 0",
    "UPDATE outbox_cursor SET last_seq = 0, owner = NULL, epoch = epoch + 1, lease_until_ms = 0",
);

/// One outbox.
#[derive(Clone, Debug)]
pub struct Source {
    /// What its events name as their origin.
    pub origin: Origin,
    /// The database.
    pub db: Db,
    /// Changes after commits of this process; a hint, the relay polls besides.
    pub commits: watch::Receiver<u64>,
}

impl Source {
    /// The outboxes of all shards, that of the control database last.
    #[must_use]
    pub fn all(cluster: &Cluster) -> Vec<Self> {
        let of = |shard: ShardId| {
            let origin = if shard == CONTROL { Origin::Control } else { Origin::Shard(shard) };
            Some(Self { origin, db: cluster.database(shard)?.clone(), commits: cluster.commits() })
        };
        cluster.sources().filter_map(of).collect()
    }
}

impl Source {
    /// Lets the relay begin with the oldest event that the outbox still has, as after a restore: what the copy of the log
    /// lacks is sent again, and consumers skip what they know by its number. Whoever holds the lease loses it.
    ///
    /// # Errors
    /// [`OutboxError`] when the database does not answer.
    pub async fn rebase(&self) -> Result<(), OutboxError> {
        let rebased = async { self.db.begin().await?.commit_with(vec![Statement::of(BACK)]).await.map(drop) };
        rebased.await.map_err(|source| OutboxError { origin: self.origin, source })
    }
}
