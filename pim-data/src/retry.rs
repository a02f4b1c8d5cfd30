//! Doing it again: full jitter, a bounded number of times, never past the deadline.

mod budget;

pub(crate) use budget::Budget;

use std::time::Duration;

use pim_core::deadline::Deadline;
use uuid::Uuid;

/// How often and how patiently a call is repeated.
///
/// ```
/// use std::time::Duration;
/// use pim_data::retry::Backoff;
///
/// let backoff = Backoff::default();
/// assert!(backoff.pause(0) <= Duration::from_millis(2));
/// assert!(backoff.pause(30) <= backoff.pause_max);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Longest first pause; it doubles with each attempt.
    pub pause_first: Duration,
    /// Longest pause of all.
    pub pause_max: Duration,
    /// Most attempts, the first included.
    pub attempts_max: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause_first: Duration::from_millis(2), pause_max: Duration::from_millis(250), attempts_max: 5 }
    }
}

impl Backoff {
    /// A random pause before attempt `attempt + 1`: anywhere from nothing to the bound, so that losers spread out.
    #[must_use]
    pub fn pause(&self, attempt: u32) -> Duration {
        let bound = self.pause_first.saturating_mul(1_u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(self.pause_max);
        let span = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        Duration::from_micros(random() % span)
    }

    /// Waits before the next attempt. Answers `false`, without waiting, when the attempts are used up or the deadline
    /// would pass meanwhile.
    pub async fn wait(&self, attempt: u32, deadline: Deadline) -> bool {
        if attempt + 1 >= self.attempts_max {
            return false;
        }
        let pause = self.pause(attempt);
        if deadline.remaining().is_none_or(|left| left <= pause) {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }
}

/// 56 random bits.
pub(crate) fn random() -> u64 {
    // Version and variant bits sit in the upper half of each word; the lower 56 bits of the second are random.
    Uuid::new_v4().as_u64_pair().1 & ((1 << 56) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_attempt_is_made_past_the_deadline_or_the_bound() {
        let backoff = Backoff::default();
        assert!(!backoff.wait(0, Deadline::after(Duration::ZERO)).await);
        assert!(!backoff.wait(backoff.attempts_max - 1, Deadline::after(Duration::from_secs(60))).await);
        assert!(backoff.wait(0, Deadline::after(Duration::from_secs(60))).await);
    }

    #[test]
    fn pauses_spread_over_the_whole_range() {
        let backoff = Backoff { pause_first: Duration::from_millis(100), ..Backoff::default() };
        let pauses: Vec<_> = (0..200).map(|_| backoff.pause(0)).collect();
        assert!(pauses.iter().any(|pause| *pause < Duration::from_millis(25)));
        assert!(pauses.iter().any(|pause| *pause > Duration::from_millis(75)));
        assert!(pauses.iter().all(|pause| *pause <= Duration::from_millis(100)));
    }
}
