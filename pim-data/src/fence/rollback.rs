//! The way back from a map.

use pim_core::shard::{Handover, MapVersion, ShardMap};

use super::PublishError;
use crate::cluster::Cluster;

impl Cluster {
    /// Makes a way back from the map in force: publishes a map of the next version with the shards, servers and owners of an
    /// earlier one, see [`ShardMap::back_to`]. As with every publication no rows are moved: buckets that have been filled
    /// meanwhile have to be moved first.
    ///
    /// # Errors
    /// [`PublishError`]; the running map stays.
    pub async fn roll_back_map(&self, to: MapVersion) -> Result<(ShardMap, Vec<Handover>), PublishError> {
        self.refresh_map().await?;
        let next = self.way_back(to)?;
        if next.is_like(&self.map()) {
            // It has been gone already.
            return Ok(((*self.map()).clone(), Vec::new()));
        }
        let handovers = self.publish_map(&next).await?;
        Ok((next, handovers))
    }

    /// The map that [`Cluster::roll_back_map`] would publish.
    ///
    /// # Errors
    /// [`PublishError::NotEarlier`], [`PublishError::NotKept`], or [`PublishError::Map`] when there is no way back to it.
    pub fn way_back(&self, to: MapVersion) -> Result<ShardMap, PublishError> {
        let current = self.map();
        if to >= current.version() {
            return Err(PublishError::NotEarlier { version: to, current: current.version() });
        }
        let earlier = self.0.directory.kept_map(to.0)?.ok_or(PublishError::NotKept { version: to })?;
        Ok(current.back_to(&earlier)?)
    }
}
