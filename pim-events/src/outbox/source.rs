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
    /// The outboxes of all shards that are open now, that of the control database last. [`Sources`] follow a map that names others;
    /// whoever sums up asks for the [`Backlog`](super::Backlog), which names those that are not open.
    #[must_use]
    pub fn all(cluster: &Cluster) -> Vec<Self> {
        let of = |shard: ShardId| {
            let origin = if shard == CONTROL { Origin::Control } else { Origin::Shard(shard) };
            Some(Self { origin, db: cluster.database(shard)?, commits: cluster.commits() })
        };
        cluster.sources().filter_map(of).collect()
    }
}

/// The outboxes that something looks after: some, or all of a cluster, whichever shards it has at the time.
#[derive(Clone, Debug)]
pub struct Sources(Which);

#[derive(Clone, Debug)]
enum Which {
    These(Vec<Source>),
    Of(Cluster, watch::Receiver<u64>),
}

impl Sources {
    /// Those that there are now.
    #[must_use]
    pub fn now(&self) -> Vec<Source> {
        match &self.0 {
            Which::These(sources) => sources.clone(),
            Which::Of(cluster, _) => Source::all(cluster),
        }
    }

    /// Waits until there are others than at the last call.
    pub(crate) async fn changed(&mut self) {
        if let Which::Of(_, changes) = &mut self.0
            && changes.changed().await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}

impl From<Vec<Source>> for Sources {
    fn from(sources: Vec<Source>) -> Self {
        Self(Which::These(sources))
    }
}

/// All of a cluster.
impl From<&Cluster> for Sources {
    fn from(cluster: &Cluster) -> Self {
        Self(Which::Of(cluster.clone(), cluster.changes()))
    }
}

impl Source {
    /// Whether it is read by the same connections as the other.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.origin == other.origin && self.db.is(&other.db)
    }

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
