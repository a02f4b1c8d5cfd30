//! How long those who could go wait for others while nobody is being written.

use std::time::Duration;

use tokio::time::Instant;

/// So often in a row that waiting was in vain makes it rarer: at last, one of 64 that could wait does.
const IN_VAIN_MAX: u32 = 6;

/// What is known of the time between calls: when it began, and how long it may last as things went so far.
#[derive(Debug, Default)]
pub(super) struct Lull {
    /// How long a call takes, smoothed; nobody waits before the first has ended.
    call: Duration,
    /// When the last call ended, with no other under way.
    since: Option<Instant>,
    /// How often in a row those who were waited for did not come.
    in_vain: u32,
    /// How many departures more wait for nobody.
    spared: u32,
    /// Whether there is somebody who sends those who wait when it is over.
    pub(super) is_watched: bool,
}

impl Lull {
    /// A call ended; with `is_last` no other is under way.
    pub(super) fn ended(&mut self, took: Duration, is_last: bool) {
        // An eighth of the newest, as round-trip times are smoothed (RFC 6298).
        self.call = if self.call.is_zero() { took } else { (self.call * 7 + took) / 8 };
        self.since = is_last.then(Instant::now);
    }

    /// Until when whoever could go since `first` waits: as long as a call takes, which is what a call saved is worth, and at most so long.
    pub(super) fn until(&self, first: Instant, most: Duration) -> Instant {
        let patience = if self.spared > 0 { Duration::ZERO } else { self.call.min(most) };
        self.since.map_or(first, |since| since.max(first)) + patience
    }

    /// Whoever goes now begins the next call; with `is_full` all came who were waited for.
    pub(super) fn over(&mut self, is_full: bool) {
        if is_full {
            (self.in_vain, self.spared) = (0, 0);
        } else if self.spared > 0 {
            self.spared -= 1;
        } else {
            self.in_vain = (self.in_vain + 1).min(IN_VAIN_MAX);
            self.spared = (1 << self.in_vain) - 1;
        }
    }

    /// Nobody will say when it is over.
    pub(super) fn cut_short(&mut self) {
        self.spared += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Duration = Duration::from_millis(2);
    const LONG: Duration = Duration::from_secs(1);

    fn known() -> (Lull, Instant) {
        let mut lull = Lull::default();
        lull.ended(CALL, true);
        let since = lull.since.expect("has begun");
        (lull, since)
    }

    #[test]
    fn it_lasts_as_long_as_a_call_takes_and_never_longer_than_it_may() {
        let (mut lull, since) = known();
        assert_eq!(lull.until(since - LONG, LONG), since + CALL);
        assert_eq!(lull.until(since + CALL, LONG), since + 2 * CALL);
        assert_eq!(lull.until(since, CALL / 2), since + CALL / 2);
        lull.ended(9 * CALL, true);
        let since = lull.since.expect("has begun");
        assert_eq!(lull.until(since, LONG), since + 2 * CALL);
    }

    #[test]
    fn nothing_is_waited_for_before_a_call_has_ended() {
        let now = Instant::now();
        assert_eq!(Lull::default().until(now, LONG), now);
    }

    /// Of 64 departures in a row without company, one waits.
    #[test]
    fn waiting_in_vain_becomes_rare_and_one_success_forgives_it() {
        let (mut lull, since) = known();
        let mut waited = Vec::new();
        for departure in 0..256 {
            if lull.until(since, LONG) > since {
                waited.push(departure);
            }
            lull.over(false);
        }
        assert_eq!(waited, [0, 2, 6, 14, 30, 62, 126, 190, 254]);
        lull.over(true);
        assert_eq!(lull.until(since, LONG), since + CALL);
    }
}
