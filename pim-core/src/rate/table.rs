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
/// Longest burst, and longest debt, far below what a slot's clock can hold (2.2 years).
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
    "a limit needs at least one call in its period, no more than one a microsecond (1,000,000 a second), and a burst of less \
     than two years"
)]
pub struct LimitError;

impl Limit {
    /// `calls` in each `period`, of which `burst` may come at once. They are spaced by whole microseconds, rounded up: no more
    /// than `calls` pass, where these do not divide the period a few less.
    ///
    /// # Errors
    /// [`LimitError`] for no calls, no burst, more than one call a microsecond, or a burst that takes years.
    pub fn new(calls: u32, period: Duration, burst: u32) -> Result<Self, LimitError> {
        let period_us = u64::try_from(period.as_micros()).map_err(|_| LimitError)?;
        let calls = u64::from(calls);
        if calls == 0 || calls > period_us {
            return Err(LimitError);
        }
        let interval_us = period_us.div_ceil(calls);
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

    /// Counts one call of the given cost against the key's limit. One that is dearer than the burst passes when all of the
    /// burst is there, and the rest is owed: the next one waits for longer.
    pub fn check<K: Hash + ?Sized>(&self, key: &K, limit: Limit, cost: u32) -> Decision {
        // One microsecond later than the origin, so that no live slot is all zero.
        let now = u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX).saturating_add(1) & TIME_MASK;
        let hash = self.hasher.hash_one(key);
        let tag = hash >> TIME_BITS;
        let set = (usize::try_from(hash & 0xffff_ffff).unwrap_or(0) % (self.slots.len() / WAYS)) * WAYS;
        let set = &self.slots[set..set + WAYS];
        let price = limit.interval_us.saturating_mul(u64::from(cost.max(1))).min(BURST_US_MAX);
        // Bounded: under heavy contention on one set the call is refused for one interval rather than let through.
        for _ in 0..SPINS_MAX {
            let (slot, word) = choose(set, tag);
            let arrival = if word >> TIME_BITS == tag { (word & TIME_MASK).max(now) } else { now };
            // Not all of a price above the burst: nobody can save up so much, and waiting would never help.
            let needed = arrival + price.min(limit.burst_us);
            if needed > now + limit.burst_us {
                return Decision::Wait(Duration::from_micros(needed - now - limit.burst_us));
            }
            let next = arrival + price;
            let fresh = tag << TIME_BITS | next & TIME_MASK;
            if slot.compare_exchange_weak(word, fresh, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                let left = (now + limit.burst_us).saturating_sub(next) / limit.interval_us;
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
