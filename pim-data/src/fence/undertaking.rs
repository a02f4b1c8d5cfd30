//! A publication that has begun to fence: it is seen through whoever asked for it may go.

use std::panic::resume_unwind;

use super::PublishError;
use crate::backend::DbError;
use crate::cluster::{CONTROL, Cluster, OpenError};

impl Cluster {
    /// Carries out what must not stop halfway, also when the caller is dropped meanwhile. Where it fails some shards may be fenced
    /// by a map that is not in force: whoever follows the maps goes on then.
    pub(super) async fn see_through(
        &self,
        work: impl Future<Output = Result<(), PublishError>> + Send + 'static,
    ) -> Result<(), PublishError> {
        let cluster = self.clone();
        let seen = tokio::spawn(async move {
            let outcome = work.await;
            if outcome.as_ref().is_err_and(PublishError::leaves_it_begun) {
                cluster.leave_unfinished();
            }
            outcome
        });
        match seen.await {
            Ok(outcome) => outcome,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => Err(PublishError::Shard { shard: CONTROL, source: DbError::Closed }),
            },
        }
    }
}

/// Goes on with a publication that was interrupted after some shard had been fenced, and lifts the fences of moves that nobody
/// carries out any more.
pub(crate) async fn finish_interrupted(cluster: &Cluster) -> Result<(), OpenError> {
    if !cluster.is_governed() {
        // This program may not; one that may has begun it and goes on. Until then the old map is refused by the fence.
        return Ok(());
    }
    let failed = |error| OpenError::Publish(Box::new(error));
    let publishing = cluster.publishing().await?;
    cluster.catch_up(&publishing).await.map_err(failed)?;
    let lifted = crate::relocation::lift_abandoned(cluster).await;
    if lifted.map_err(|source| failed(PublishError::Shard { shard: CONTROL, source }))? {
        // Lifting waits for what a mover that is gone has left behind: that may just have given the buckets away.
        cluster.catch_up(&publishing).await.map_err(failed)?;
    }
    Ok(())
}
