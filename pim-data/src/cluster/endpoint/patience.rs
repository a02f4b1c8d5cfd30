//! Whether it is worth to wait for a replica that is a little behind.

use std::sync::atomic::{AtomicU32, Ordering};

/// Most reads that go on without waiting after one that has waited in vain.
const SKIPPED_MAX: u32 = 255;

/// Learns from outcomes: after each wait in vain more reads go straight on, and after one that was worth it none.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    /// How many are still to go straight on.
    left: AtomicU32,
    /// How many did after the last wait in vain.
    skipped: AtomicU32,
}

impl Patience {
    /// Whether this read should wait.
    pub(crate) fn waits(&self) -> bool {
        let count = |left: u32| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).is_err()
    }

    /// How a wait ended.
    pub(crate) fn learn(&self, was_worth_it: bool) {
        let before = self.skipped.load(Ordering::Relaxed);
        let skipped = if was_worth_it { 0 } else { (before * 2 + 1).min(SKIPPED_MAX) };
        self.skipped.store(skipped, Ordering::Relaxed);
        self.left.store(skipped, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_in_vain_become_rare_and_one_that_was_worth_it_brings_them_back() {
        let patience = Patience::default();
        let waited = (0..10_000).filter(|_| {
            let waits = patience.waits();
            if waits {
                patience.learn(false);
            }
            waits
        });
        let waited = waited.count();
        assert!((30..60).contains(&waited), "{waited} of 10000");
        patience.learn(true);
        assert!(patience.waits() && patience.waits());
    }
}
