//! Running a unit again: bounded, with full jitter, never past the deadline, and under a budget where a server is why.

use std::time::{Duration, Instant};

use super::UnitError;
use crate::cluster::Cluster;

const TRIES_MAX: u32 = 8;
const PAUSE_FIRST: Duration = Duration::from_millis(4);

/// Counts the runs of one unit.
///
/// ```no_run
/// # use pim_data::unit::{Tries, UnitError};
/// # async fn f(cluster: pim_data::cluster::Cluster, cx: pim_core::context::RequestContext, home: pim_core::shard::HomeKey) -> Result<(), UnitError> {
/// let mut tries = Tries::of(&cluster, &cx);
/// loop {
///     let unit = cluster.begin(&cx, home);
///     // load, decide, save, append
///     match unit.commit().await {
///         Err(error) if tries.again(&error).await => continue,
///         outcome => return outcome.map(drop),
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Tries {
    cluster: Cluster,
    cx: pim_core::context::RequestContext,
    made: u32,
}

impl Tries {
    /// For one request.
    #[must_use]
    pub fn of(cluster: &Cluster, cx: &pim_core::context::RequestContext) -> Self {
        cluster.0.repeats.deposit();
        Self { cluster: cluster.clone(), cx: cx.clone(), made: 0 }
    }

    /// Whether the unit should be run again; waits before it says yes, and takes over a newer map when the fence refused.
    ///
    /// What other writers are the reason for is run eight times at most. What a server is the reason for also stands under
    /// a budget of the cluster: every fifth request, ten more a second, 200 saved up.
    pub async fn again(&mut self, error: &UnitError) -> bool {
        self.made += 1;
        if !error.is_retryable() || self.made >= TRIES_MAX {
            return false;
        }
        let pause = PAUSE_FIRST * 2_u32.saturating_pow(self.made) * jitter_percent() / 100;
        if self.cx.deadline().remaining().is_none_or(|left| left < pause) {
            return false;
        }
        if matches!(error, UnitError::Database(_)) && !self.cluster.0.repeats.withdraw(Instant::now()) {
            return false;
        }
        tokio::time::sleep(pause).await;
        if matches!(error, UnitError::Fence { .. }) {
            // A map that cannot be read now is read at the next refusal.
            let _unreadable = self.cluster.refresh_map_until(self.cx.deadline().instant()).await;
        }
        true
    }
}

fn jitter_percent() -> u32 {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    u32::try_from(high % 101).unwrap_or(0)
}
