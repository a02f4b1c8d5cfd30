//! Lines of one event that a second may have: what is above that is suppressed, counted, and told by the next line.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;

const WINDOW: Duration = Duration::from_secs(1);
/// Events that are told apart; a program has as many as it has places that log. Above that they share one allowance.
const EVENTS_MAX: usize = 1024;

/// Which event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// One place in the code.
    Callsite(Identifier),
    /// One name.
    Named(&'static str),
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is written, and tells how many were suppressed before it.
    Write { suppressed: u64 },
    /// It is one too many.
    Suppress,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    lines: u32,
    suppressed: u64,
}

/// Counts lines by event and second.
#[derive(Debug)]
pub(crate) struct Pace {
    max: u32,
    windows: Mutex<HashMap<Origin, Window>>,
}

impl Pace {
    pub(crate) fn new(max: u32) -> Self {
        Self { max: max.max(1), windows: Mutex::default() }
    }

    pub(crate) fn verdict(&self, origin: Origin, now: Instant) -> Verdict {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = windows.contains_key(&origin);
        let origin = if is_known || windows.len() < EVENTS_MAX { origin } else { Origin::Named("other") };
        let window = windows.entry(origin).or_insert(Window { began: now, lines: 0, suppressed: 0 });
        if now.saturating_duration_since(window.began) >= WINDOW {
            (window.began, window.lines) = (now, 0);
        }
        if window.lines >= self.max {
            window.suppressed += 1;
            return Verdict::Suppress;
        }
        window.lines += 1;
        Verdict::Write { suppressed: std::mem::take(&mut window.suppressed) }
    }

    /// How many lines were suppressed that no line has told of yet.
    pub(crate) fn untold(&self) -> u64 {
        let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.values().map(|window| window.suppressed).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_the_allowance_is_told_by_the_next_line() {
        let (pace, begin) = (Pace::new(2), Instant::now());
        let ask = |event, after| pace.verdict(Origin::Named(event), begin + Duration::from_millis(after));
        assert_eq!(ask("sold", 0), Verdict::Write { suppressed: 0 });
        assert_eq!(ask("sold", 10), Verdict::Write { suppressed: 0 });
        assert_eq!(ask("sold", 20), Verdict::Suppress);
        assert_eq!(ask("sold", 30), Verdict::Suppress);
        assert_eq!(ask("bought", 30), Verdict::Write { suppressed: 0 }, "each event has its own allowance");
        assert_eq!(pace.untold(), 2);
        assert_eq!(ask("sold", 1000), Verdict::Write { suppressed: 2 });
        assert_eq!(pace.untold(), 0);
    }

    #[test]
    fn memory_is_bounded_whatever_the_number_of_events() {
        let (pace, now) = (Pace::new(1), Instant::now());
        for index in 0..EVENTS_MAX + 10 {
            let name: &'static str = Box::leak(index.to_string().into_boxed_str());
            pace.verdict(Origin::Named(name), now);
        }
        assert!(pace.windows.lock().unwrap().len() <= EVENTS_MAX + 1);
    }
}
