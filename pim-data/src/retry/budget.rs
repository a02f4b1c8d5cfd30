//! How many calls may be repeated: a share of those that were made, so that repeating never becomes most of the load.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// In hundredths of a repeat: what a call brings in, what is there at least each second, and what can be saved up.
const A_CALL: u64 = 20;
const A_SECOND: u64 = 1_000;
const SAVED_MAX: u64 = 20_000;
const REPEAT: u64 = 100;

/// What may be repeated at present. Every fifth call, ten more a second, and never more than 200 at once.
#[derive(Debug)]
pub(crate) struct Budget(Mutex<Purse>);

#[derive(Debug)]
struct Purse {
    saved: u64,
    filled_at: Instant,
}

impl Budget {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(Purse { saved: SAVED_MAX, filled_at: now }))
    }

    /// A call was made for the first time.
    pub(crate) fn deposit(&self) {
        let mut purse = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        purse.saved = (purse.saved + A_CALL).min(SAVED_MAX);
    }

    /// Whether a call may be repeated.
    pub(crate) fn withdraw(&self, now: Instant) -> bool {
        let mut purse = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = now.saturating_duration_since(purse.filled_at).min(Duration::from_secs(60));
        let earned = u64::try_from(since.as_millis()).unwrap_or(0) * A_SECOND / 1_000;
        if earned > 0 {
            purse.saved = (purse.saved + earned).min(SAVED_MAX);
            purse.filled_at = now;
        }
        let may = purse.saved >= REPEAT;
        if may {
            purse.saved -= REPEAT;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_run_out_and_come_back_with_calls_and_time() {
        let now = Instant::now();
        let budget = Budget::new(now);
        let granted = (0..1_000).filter(|_| budget.withdraw(now)).count();
        assert_eq!(granted, 200);
        for _ in 0..50 {
            budget.deposit();
        }
        assert_eq!((0..1_000).filter(|_| budget.withdraw(now)).count(), 10, "every fifth call");
        let later = now + Duration::from_secs(2);
        assert_eq!((0..1_000).filter(|_| budget.withdraw(later)).count(), 20, "ten a second");
    }
}
