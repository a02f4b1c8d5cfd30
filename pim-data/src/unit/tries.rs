//! Running a unit again: bounded, with full jitter, never past the deadline, and under a budget where a server is why.

use std::time::{Duration, Instant};

use super::UnitError;
use crate::cluster::Cluster;

const TRIES_MAX: u32 = 8;
const PAUSE_FIRST: Duration = Duration::from_millis(4);

/// Counts the runs of one unit, for whoever cannot leave them to [`Cluster::write`].
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
        self.again_because(Why::of(error)).await
    }

    /// The same for a reason that is known already.
    pub(super) async fn again_because(&mut self, why: Option<Why>) -> bool {
        self.made += 1;
        let Some(why) = why.filter(|_| self.made < TRIES_MAX) else { return false };
        let pause = PAUSE_FIRST * 2_u32.saturating_pow(self.made) * jitter_percent() / 100;
        if self.cx.deadline().remaining().is_none_or(|left| left < pause) {
            return false;
        }
        if why == Why::Server && !self.cluster.0.repeats.withdraw(Instant::now()) {
            return false;
        }
        tokio::time::sleep(pause).await;
        if why == Why::Map {
            // A map that cannot be read now is read at the next refusal.
            let _unreadable = self.cluster.refresh_map_until(self.cx.deadline().instant()).await;
        }
        true
    }
}

/// Why a unit is worth another run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Others were faster, or a shard is not open yet.
    Others,
    /// A server was away or overloaded.
    Server,
    /// The fence knows a newer map.
    Map,
}

impl Why {
    pub(super) fn of(error: &UnitError) -> Option<Self> {
        error.is_retryable().then_some(match error {
            UnitError::Database(_) => Self::Server,
            UnitError::Fence { .. } => Self::Map,
            _ => Self::Others,
        })
    }
}

fn jitter_percent() -> u32 {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    u32::try_from(high % 101).unwrap_or(0)
}
