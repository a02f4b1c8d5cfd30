//! The table of keys.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::problem::Quota;

const WAYS: usize = 4;
/// Of a slot's 64 bits, 16 tell keys of one set apart and 48 are the arrival time in microseconds (8.9 years).
const TIME_BITS: u32 = 48;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;
const SPINS_MAX: usize = 64;
/// Longest burst, far below what a slot's clock can hold (2.2 years).
const BURST_US_MAX: u64 = 1 << 46;

/// A steady rate and how far a caller may run ahead of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    interval_us: u64,
    burst_us: u64,
    burst: u32,
}

/// A limit that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a limit needs at least one call in its period, an interval of a microsecond or more, and a burst of less than two years"
)]
pub struct LimitError;

impl Limit {
    /// `calls` in each `period`, of which `burst` may come at once.
    ///
    /// # Errors
    /// [`LimitError`] for no calls, no burst, more than one call a microsecond, or a burst that takes years.
    pub fn new(calls: u32, period: Duration, burst: u32) -> Result<Self, LimitError> {
        let period_us = u64::try_from(period.as_micros()).map_err(|_| LimitError)?;
        let interval_us = period_us.checked_div(u64::from(calls)).filter(|&us| us > 0).ok_or(LimitError)?;
        let burst_us = interval_us.saturating_mul(u64::from(burst));
        if burst == 0 || burst_us > BURST_US_MAX {
            return Err(LimitError);
        }
        Ok(Self { interval_us, burst_us, burst })
    }

    /// How many calls may come at once.
    #[must_use]
    pub const fn burst(&self) -> u32 {
        self.burst
    }

    /// The limit as callers are told of it: the burst, and the whole seconds in which all of it comes back.
    #[must_use]
    pub const fn quota(&self) -> Quota {
        let window_secs = self.burst_us.div_ceil(1_000_000);
        Quota { calls: self.burst, window_secs: if window_secs == 0 { 1 } else { window_secs } }
    }
}

/// Whether a call may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may; so many more may come at once.
    Pass {
        /// Calls left in the burst.
        remaining: u32,
    },
    /// It may not, before this time has passed.
    Wait(Duration),
}

/// Limits by key, in fixed memory: 8 bytes a slot.
///
/// ```
/// use std::time::Duration;
/// use pim_core::rate::{Decision, Limit, RateTable};
///
/// let table = RateTable::new(1024);
/// let limit = Limit::new(10, Duration::from_secs(1), 2)?;
/// assert_eq!(table.check(&"nurse-1", limit, 1), Decision::Pass { remaining: 1 });
/// assert_eq!(table.check(&"nurse-1", limit, 1), Decision::Pass { remaining: 0 });
/// assert!(matches!(table.check(&"nurse-1", limit, 1), Decision::Wait(_)));
/// # Ok::<(), pim_core::rate::LimitError>(())
/// ```
#[derive(Debug)]
pub struct RateTable {
    slots: Box<[AtomicU64]>,
    hasher: RandomState,
    origin: Instant,
}

impl RateTable {
    /// A table of at least `keys` slots, rounded up to a power of two of at least four.
    #[must_use]
    pub fn new(keys: usize) -> Self {
        let count = keys.clamp(WAYS, 1 << 26).next_power_of_two();
        Self {
            slots: (0..count).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
            origin: Instant::now(),
        }
    }

    /// Memory of the slots, in bytes; it never changes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.slots.len() * size_of::<AtomicU64>()
    }

    /// Counts one call of the given cost against the key's limit.
    pub fn check<K: Hash + ?Sized>(&self, key: &K, limit: Limit, cost: u32) -> Decision {
        // One microsecond later than the origin, so that no live slot is all zero.
        let now = u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX).saturating_add(1) & TIME_MASK;
        let hash = self.hasher.hash_one(key);
        let tag = hash >> TIME_BITS;
        let set = (usize::try_from(hash & 0xffff_ffff).unwrap_or(0) % (self.slots.len() / WAYS)) * WAYS;
        let set = &self.slots[set..set + WAYS];
        // Bounded: under heavy contention on one set the call is refused for one interval rather than let through.
        for _ in 0..SPINS_MAX {
            let (slot, word) = choose(set, tag);
            let arrival = if word >> TIME_BITS == tag { (word & TIME_MASK).max(now) } else { now };
            let next = arrival.saturating_add(limit.interval_us.saturating_mul(u64::from(cost.max(1))));
            if next > now + limit.burst_us {
                return Decision::Wait(Duration::from_micros(next - now - limit.burst_us));
            }
            let fresh = tag << TIME_BITS | next & TIME_MASK;
            if slot.compare_exchange_weak(word, fresh, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                let left = (now + limit.burst_us - next) / limit.interval_us;
                return Decision::Pass { remaining: u32::try_from(left).unwrap_or(u32::MAX) };
            }
        }
        Decision::Wait(Duration::from_micros(limit.interval_us))
    }
}

/// The key's own slot, else the least restrictive of the set: the one whose arrival time is furthest in the past.
fn choose(set: &[AtomicU64], tag: u64) -> (&AtomicU64, u64) {
    let mut chosen = (&set[0], set[0].load(Ordering::Acquire));
    for slot in set {
        let word = slot.load(Ordering::Acquire);
        if word != 0 && word >> TIME_BITS == tag {
            return (slot, word);
        }
        if word & TIME_MASK < chosen.1 & TIME_MASK {
            chosen = (slot, word);
        }
    }
    chosen
}
