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
    /// How many could go when somebody began to wait in it.
    waited: Option<usize>,
    /// How often in a row nobody came.
    in_vain: u32,
    /// How many departures more wait for nobody.
    spared: u32,
    /// Whether there is somebody who sends those who wait when it is over.
    is_watched: bool,
}

impl Lull {
    /// A call ended, which took so long if it was sent; with `is_last` no other is under way.
    pub(super) fn ended(&mut self, took: Option<Duration>, is_last: bool) {
        // An eighth of the newest, as round-trip times are smoothed (RFC 6298).
        self.call = match took {
            Some(took) if !self.call.is_zero() => (self.call * 7 + took) / 8,
            took => took.unwrap_or(self.call),
        };
        self.since = is_last.then(Instant::now);
    }

    /// Until when whoever could go since `first` waits: as long as a call takes, which is what a call saved is worth, and at most so long.
    pub(super) fn until(&self, first: Instant, most: Duration) -> Instant {
        let patience = if self.spared > 0 { Duration::ZERO } else { self.call.min(most) };
        self.since.map_or(first, |since| since.max(first)) + patience
    }

    /// So many wait in it. Whether whoever says so has to see that somebody says when it is over.
    pub(super) fn begin(&mut self, able: usize) -> bool {
        self.waited.get_or_insert(able);
        !std::mem::replace(&mut self.is_watched, true)
    }

    /// So many begin the next call.
    pub(super) fn over(&mut self, able: usize) {
        match self.waited.take() {
            None => self.spared = self.spared.saturating_sub(1),
            Some(waited) if able > waited => self.in_vain = 0,
            Some(_) => {
                self.in_vain = (self.in_vain + 1).min(IN_VAIN_MAX);
                self.spared = (1 << self.in_vain) - 1;
            }
        }
    }

    /// Nobody watches it any more, because it is over, or with whoever did: then nobody waits.
    pub(super) fn unwatched(&mut self, is_over: bool) {
        self.is_watched = false;
        self.spared += u32::from(!is_over);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Duration = Duration::from_millis(2);
    const LONG: Duration = Duration::from_secs(1);

    fn known() -> (Lull, Instant) {
        let mut lull = Lull::default();
        lull.ended(Some(CALL), true);
        let since = lull.since.expect("has begun");
        (lull, since)
    }

    #[test]
    fn it_lasts_as_long_as_a_call_takes_and_never_longer_than_it_may() {
        let (mut lull, since) = known();
        assert_eq!(lull.until(since - LONG, LONG), since + CALL);
        assert_eq!(lull.until(since + CALL, LONG), since + 2 * CALL);
        assert_eq!(lull.until(since, CALL / 2), since + CALL / 2);
        lull.ended(Some(9 * CALL), true);
        let since = lull.since.expect("has begun");
        assert_eq!(lull.until(since, LONG), since + 2 * CALL);
    }

    #[test]
    fn nothing_is_waited_for_before_a_call_has_ended() {
        let now = Instant::now();
        assert_eq!(Lull::default().until(now, LONG), now);
    }

    #[test]
    fn a_place_that_called_nobody_says_nothing_of_calls() {
        let (mut lull, _) = known();
        lull.ended(None, true);
        let since = lull.since.expect("has begun");
        assert_eq!(lull.until(since, LONG), since + CALL);
    }

    /// Somebody goes: whether it waited, as nobody else came.
    fn in_vain(lull: &mut Lull, since: Instant) -> bool {
        let waits = lull.until(since, LONG) > since;
        if waits {
            assert!(lull.begin(1));
            lull.unwatched(true);
        }
        lull.over(1);
        waits
    }

    /// Of 64 departures in a row without company, one waits.
    #[test]
    fn waiting_in_vain_becomes_rare_and_one_success_forgives_it() {
        let (mut lull, since) = known();
        let waited: Vec<_> = (0..256).filter(|_| in_vain(&mut lull, since)).collect();
        assert_eq!(waited, [0, 2, 6, 14, 30, 62, 126, 190, 254]);
        // A full call that nobody waited for is no success.
        (0..63).for_each(|_| lull.over(8));
        assert!(lull.begin(1));
        lull.unwatched(true);
        lull.over(2);
        assert!(in_vain(&mut lull, since) && !in_vain(&mut lull, since));
    }

    #[test]
    fn there_is_one_who_watches_and_without_it_nobody_waits() {
        let (mut lull, since) = known();
        assert!(lull.begin(1) && !lull.begin(2));
        lull.unwatched(false);
        assert_eq!(lull.until(since, LONG), since);
    }
}
