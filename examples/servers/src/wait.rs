//! Waiting for a condition, with a bound.

use std::thread;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(20);

/// Asks until the answer is yes; `false` when it never was.
#[expect(clippy::disallowed_methods, reason = "there is no runtime here that it could block")]
pub(crate) fn until(patience: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let give_up = Instant::now() + patience;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() > give_up {
            return false;
        }
        thread::sleep(EVERY);
    }
}

/// Between two looks at something that has no bound of its own, but ends.
#[expect(clippy::disallowed_methods, reason = "there is no runtime here that it could block")]
pub(crate) fn pause() {
    thread::sleep(EVERY);
}
