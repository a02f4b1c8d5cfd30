//! The faults in force, by injection point.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use super::lease::{Fault, LATENCY_MAX, LEASE_MAX, Lease, LeaseError, Share};
use crate::clock::Clock;
use crate::problem::{self, IntoProblem, Problem};
use crate::role::ClosedEnum;

const SHORTEST: Duration = Duration::from_millis(1);
/// How soon a waiting call notices that its lease was ended early.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const NOTHING: i64 = i64::MIN;

/// A call that failed on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fault injected at {point}")]
#[non_exhaustive]
pub struct Injected {
    /// Where.
    pub point: &'static str,
}

impl IntoProblem for Injected {
    fn into_problem(self) -> Problem {
        Problem::of(problem::UNAVAILABLE).detail("a fault was injected on purpose").with("chaos", self.point)
    }
}

/// Which faults are in force where, over the program's own points `P`. Clones share it.
///
/// ```
/// use std::time::Duration;
/// use pim_core::chaos::{ChaosRegistry, Fault, Share};
/// use pim_core::clock::{Clock, Timestamp};
/// pim_core::closed_enum! {
///     /// Where faults may strike.
///     pub enum Point {
///         /// Before a commit.
///         Commit = "commit",
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let clock = Clock::manual(Timestamp::from_micros(0));
/// let chaos = ChaosRegistry::<Point>::new(clock.clone());
/// assert!(chaos.inject(Point::Commit).await.is_ok());
///
/// chaos.arm(Point::Commit, Fault::Error, Share::ALL, Duration::from_secs(60))?;
/// assert!(chaos.inject(Point::Commit).await.is_err());
///
/// clock.advance(Duration::from_secs(60));
/// assert!(chaos.inject(Point::Commit).await.is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ChaosRegistry<P> {
    shared: Arc<Shared>,
    points: PhantomData<fn(P)>,
}

impl<P> Clone for ChaosRegistry<P> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), points: PhantomData }
    }
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    slots: Box<[Slot]>,
}

#[derive(Debug)]
struct Slot {
    /// End of the lease in microseconds, or [`NOTHING`]: all that an untouched call looks at.
    ends_at: AtomicI64,
    lease: ArcSwapOption<Lease>,
    calls: AtomicU64,
    struck: AtomicU64,
}

impl<P: ClosedEnum> ChaosRegistry<P> {
    /// A registry with no fault in force.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let empty = || Slot {
            ends_at: AtomicI64::new(NOTHING),
            lease: ArcSwapOption::empty(),
            calls: AtomicU64::new(0),
            struck: AtomicU64::new(0),
        };
        let slots = P::ALL.iter().map(|_| empty()).collect();
        Self { shared: Arc::new(Shared { clock, slots }), points: PhantomData }
    }

    /// Puts a fault in force at a point, in place of the one before, for `duration` and no longer.
    ///
    /// # Errors
    /// [`LeaseError`] for a duration above [`LEASE_MAX`] or a latency above [`LATENCY_MAX`], or none.
    pub fn arm(&self, point: P, fault: Fault, share: Share, duration: Duration) -> Result<Lease, LeaseError> {
        if !(SHORTEST..=LEASE_MAX).contains(&duration) {
            return Err(LeaseError::Duration);
        }
        if matches!(fault, Fault::Latency(latency) if !(SHORTEST..=LATENCY_MAX).contains(&latency)) {
            return Err(LeaseError::Latency);
        }
        let began_at = self.shared.clock.now();
        let lease = Lease { fault, share, began_at, ends_at: began_at.plus(duration) };
        let slot = self.slot(point);
        slot.calls.store(0, Ordering::Relaxed);
        slot.lease.store(Some(Arc::new(lease)));
        slot.ends_at.store(lease.ends_at.as_micros(), Ordering::Release);
        Ok(lease)
    }

    /// Ends the fault at a point early, and says which it was. Calls that it holds go on within 50 ms.
    #[must_use = "says whether there was anything to end"]
    pub fn disarm(&self, point: P) -> Option<Lease> {
        let slot = self.slot(point);
        slot.ends_at.store(NOTHING, Ordering::Release);
        let ended = slot.lease.swap(None)?;
        (ended.ends_at > self.shared.clock.now()).then_some(*ended)
    }

    /// Ends every fault early.
    pub fn disarm_all(&self) {
        for point in P::ALL {
            let _ended = self.disarm(*point);
        }
    }

    /// The fault in force at a point.
    #[must_use]
    pub fn lease(&self, point: P) -> Option<Lease> {
        let lease = self.slot(point).lease.load();
        lease.as_deref().filter(|lease| lease.ends_at > self.shared.clock.now()).copied()
    }

    /// Every point with a fault in force.
    #[must_use]
    pub fn active(&self) -> Vec<(P, Lease)> {
        P::ALL.iter().filter_map(|point| Some((*point, self.lease(*point)?))).collect()
    }

    /// How many calls were struck at a point since the start.
    #[must_use]
    pub fn struck(&self, point: P) -> u64 {
        self.slot(point).struck.load(Ordering::Relaxed)
    }

    /// Lets the fault in force at `point` strike, if there is one.
    ///
    /// Dropping the future ends the wait, so a caller's deadline holds here too.
    ///
    /// # Errors
    /// [`Injected`] when the fault is [`Fault::Error`].
    pub async fn inject(&self, point: P) -> Result<(), Injected> {
        if self.slot(point).ends_at.load(Ordering::Acquire) == NOTHING {
            return Ok(());
        }
        self.strike(point).await
    }

    async fn strike(&self, point: P) -> Result<(), Injected> {
        let slot = self.slot(point);
        let Some(lease) = self.lease(point) else {
            // It has ended by itself: the next call need not look at the clock.
            self.forget(slot);
            return Ok(());
        };
        if !lease.share.strikes(slot.calls.fetch_add(1, Ordering::Relaxed)) {
            return Ok(());
        }
        slot.struck.fetch_add(1, Ordering::Relaxed);
        match lease.fault {
            Fault::Error => return Err(Injected { point: point.name() }),
            Fault::Latency(latency) => self.hold(point, &lease, latency).await,
            Fault::Stall => self.hold(point, &lease, LEASE_MAX).await,
        }
        Ok(())
    }

    /// Waits, but only while the very same lease is in force.
    async fn hold(&self, point: P, lease: &Lease, wait: Duration) {
        let until = tokio::time::Instant::now() + wait;
        while self.lease(point).as_ref() == Some(lease) {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            let of_lease = lease.ends_at.since(self.shared.clock.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(of_lease).min(LOOK_EVERY)).await;
        }
    }

    /// Clears what has ended, unless a new lease came in between.
    fn forget(&self, slot: &Slot) {
        let ended = slot.ends_at.load(Ordering::Acquire);
        if ended <= self.shared.clock.now().as_micros() {
            let _newer = slot.ends_at.compare_exchange(ended, NOTHING, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    fn slot(&self, point: P) -> &Slot {
        &self.shared.slots[usize::from(point.code())]
    }
}
