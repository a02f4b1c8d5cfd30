//! Times that the clocks of other programs have written: none is believed for longer than one of them could have meant.
//!
//! A clock that is ahead for a moment would otherwise keep everybody away until that time has come, be it in a year.

use std::time::Duration;

use pim_core::clock::Timestamp;

/// How far the clocks of programs may be apart; a time that is further ahead than one of them could have written is not believed.
pub(crate) const CLOCKS_APART_MAX: Duration = Duration::from_secs(60);

/// Whether a lease that ends at `until` holds; none was given for longer than `longest`.
pub(crate) fn holds(until: Timestamp, longest: Duration, now: Timestamp) -> bool {
    (now..=now.plus(longest + CLOCKS_APART_MAX)).contains(&until)
}

/// Whether something was said less than `within` ago.
pub(crate) fn is_recent(at: Timestamp, within: Duration, now: Timestamp) -> bool {
    now.since(at) < within && at <= now.plus(CLOCKS_APART_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const MOMENT: Duration = Duration::from_micros(1);

    #[test]
    fn a_lease_holds_until_its_end_and_for_no_longer_than_one_can_be() {
        let now = Timestamp::from_micros(1_800_000_000_000_000);
        let longest = now.plus(MINUTE).plus(CLOCKS_APART_MAX);
        for (until, is_so) in [(now, true), (now.minus(MOMENT), false), (longest, true), (longest.plus(MOMENT), false)]
        {
            assert_eq!(holds(until, MINUTE, now), is_so, "{until}");
        }
    }

    #[test]
    fn nothing_is_recent_for_longer_than_clocks_are_apart() {
        let now = Timestamp::from_micros(1_800_000_000_000_000);
        let ahead = now.plus(CLOCKS_APART_MAX);
        let (old, young) = (now.minus(MINUTE), now.minus(MINUTE).plus(MOMENT));
        for (at, is_so) in [(now, true), (young, true), (old, false), (ahead, true), (ahead.plus(MOMENT), false)] {
            assert_eq!(is_recent(at, MINUTE, now), is_so, "{at}");
        }
    }
}
