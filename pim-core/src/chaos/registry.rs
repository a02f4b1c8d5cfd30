//! The faults in force, by injection point.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::time::Instant;

use super::lease::{Fault, LATENCY_MAX, LEASE_MAX, Lease, LeaseError, Share};
use crate::clock::Clock;
use crate::problem::{self, IntoProblem, Problem};
use crate::role::ClosedEnum;

const SHORTEST: Duration = Duration::from_millis(1);
/// How soon a waiting call notices that its lease was ended early.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const NOTHING: u64 = 0;

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
    /// Which arming is in force, or [`NOTHING`]: all that an untouched call looks at.
    armed: AtomicU64,
    armings: AtomicU64,
    lease: ArcSwapOption<Armed>,
    calls: AtomicU64,
    struck: AtomicU64,
}

/// A lease, and its end by a clock that nobody can set back: a wall clock that is must not prolong it.
#[derive(Debug)]
struct Armed {
    lease: Lease,
    until: Instant,
}

impl Armed {
    fn is_in_force(&self, clock: &Clock) -> bool {
        self.lease.ends_at > clock.now() && self.until > Instant::now()
    }
}

impl<P: ClosedEnum> ChaosRegistry<P> {
    /// A registry with no fault in force.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let empty = || Slot {
            armed: AtomicU64::new(NOTHING),
            armings: AtomicU64::new(NOTHING),
            lease: ArcSwapOption::empty(),
            calls: AtomicU64::new(0),
            struck: AtomicU64::new(0),
        };
        let slots = P::ALL.iter().map(|_| empty()).collect();
        Self { shared: Arc::new(Shared { clock, slots }), points: PhantomData }
    }

    /// Puts a fault in force at a point, in place of the one before, for `duration` and no longer: neither by the registry's
    /// clock nor by the time that passes.
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
        slot.lease.store(Some(Arc::new(Armed { lease, until: Instant::now() + duration })));
        slot.armed.store(slot.armings.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Release);
        Ok(lease)
    }

    /// Ends the fault at a point early, and says which it was. Calls that it holds go on within 50 ms.
    #[must_use = "says whether there was anything to end"]
    pub fn disarm(&self, point: P) -> Option<Lease> {
        let slot = self.slot(point);
        slot.armed.store(NOTHING, Ordering::Release);
        let ended = slot.lease.swap(None)?;
        ended.is_in_force(&self.shared.clock).then_some(ended.lease)
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
        lease.as_deref().filter(|armed| armed.is_in_force(&self.shared.clock)).map(|armed| armed.lease)
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
        match self.slot(point).armed.load(Ordering::Acquire) {
            NOTHING => Ok(()),
            armed => self.strike(point, armed).await,
        }
    }

    async fn strike(&self, point: P, armed: u64) -> Result<(), Injected> {
        let slot = self.slot(point);
        let Some(lease) = self.lease(point) else {
            // It has ended by itself: the next call need not look at the clock, unless a new one came in between.
            let _newer = slot.armed.compare_exchange(armed, NOTHING, Ordering::AcqRel, Ordering::Relaxed);
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
        let until = Instant::now() + wait;
        while self.lease(point).as_ref() == Some(lease) {
            let left = until.saturating_duration_since(Instant::now());
            let of_lease = lease.ends_at.since(self.shared.clock.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(of_lease).min(LOOK_EVERY)).await;
        }
    }

    fn slot(&self, point: P) -> &Slot {
        &self.shared.slots[usize::from(point.code())]
    }
}
