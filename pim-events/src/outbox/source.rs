//! Where a relay reads: one database with an outbox, and the hint that something was committed there.

use pim_core::shard::ShardId;
use pim_data::backend::Db;
use pim_data::cluster::{CONTROL, Cluster};
use tokio::sync::watch;

use crate::event::Origin;

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
