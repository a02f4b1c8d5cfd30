//! Leaving an endpoint alone for a while when calls to it fail.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many failures in a row.
const FAILURES_MAX: u32 = 3;
const REST_FIRST: Duration = Duration::from_millis(500);
const REST_MAX: Duration = Duration::from_secs(8);

/// Opens after [`FAILURES_MAX`] failures in a row; after its rest one call at a time tries whether it is better.
#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// When it opened, or rests longer since.
    opened_at: Option<Instant>,
    /// Until when nobody, and after it one call, may try.
    rests_until: Option<Instant>,
    rest: Duration,
}

impl Breaker {
    /// Whether a call may be made. Does not take the one try of an open breaker.
    pub(crate) fn allows(&self, now: Instant) -> bool {
        self.state().rests_until.is_none_or(|until| now >= until)
    }

    /// Whether it is open.
    pub(crate) fn is_open(&self) -> bool {
        self.state().rests_until.is_some()
    }

    /// A call is made: whoever comes next while it is open waits for its outcome.
    pub(crate) fn begin(&self, now: Instant) {
        let mut state = self.state();
        if state.rests_until.is_some() {
            state.rests_until = Some(now + state.rest);
        }
    }

    /// The call was answered.
    pub(crate) fn succeed(&self) {
        *self.state() = State::default();
    }

    /// A call that was made at `begun` failed. Of those that were under way together when it opened, the others tell nothing new:
    /// each of them would double the rest, though nobody has tried since.
    pub(crate) fn fail(&self, begun: Instant, now: Instant) {
        let mut state = self.state();
        if state.opened_at.is_some_and(|opened_at| begun < opened_at) {
            return;
        }
        state.failures += 1;
        if state.failures >= FAILURES_MAX {
            state.rest = (state.rest * 2).clamp(REST_FIRST, REST_MAX);
            (state.opened_at, state.rests_until) = (Some(now), Some(now + state.rest));
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_lets_one_call_try() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..2 {
            breaker.fail(now, now);
        }
        breaker.succeed();
        for _ in 0..2 {
            breaker.fail(now, now);
        }
        assert!(breaker.allows(now) && !breaker.is_open(), "not three in a row");
        breaker.fail(now, now);
        assert!(!breaker.allows(now) && breaker.is_open());
        let rested = now + REST_FIRST;
        assert!(breaker.allows(rested));
        breaker.begin(rested);
        assert!(!breaker.allows(rested), "one tries, the others wait for its outcome");
        breaker.fail(rested, rested);
        assert!(!breaker.allows(rested + REST_FIRST), "it rests longer each time");
        breaker.succeed();
        assert!(breaker.allows(rested));
    }

    #[test]
    fn calls_that_fail_together_are_one_reason_to_rest() {
        let (breaker, begun) = (Breaker::default(), Instant::now());
        let failed = begun + Duration::from_millis(10);
        for _ in 0..40 {
            breaker.fail(begun, failed);
        }
        assert!(!breaker.allows(failed) && breaker.allows(failed + REST_FIRST), "it rests as after three");
    }

    #[test]
    fn its_rest_is_bounded() {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        for _ in 0..40 {
            now += REST_MAX;
            breaker.fail(now, now);
        }
        assert!(!breaker.allows(now) && breaker.allows(now + REST_MAX));
    }
}
