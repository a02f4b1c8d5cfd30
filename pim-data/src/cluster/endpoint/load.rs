//! How busy an endpoint is, as far as this process can see: its latency times the calls that are under way.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a latency is remembered.
const MEMORY: Duration = Duration::from_secs(10);

/// Rises at once with a slow answer, and falls slowly.
#[derive(Debug, Default)]
pub(crate) struct Load {
    under_way: AtomicU32,
    latency: Mutex<Option<(Instant, f64)>>,
}

/// A call that is under way.
#[derive(Debug)]
pub(crate) struct UnderWay<'l> {
    load: &'l Load,
    begun: Instant,
}

impl Load {
    /// A call begins, until the value is dropped.
    pub(crate) fn begin(&self, now: Instant) -> UnderWay<'_> {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay { load: self, begun: now }
    }

    /// What one more call would meet.
    pub(crate) fn cost(&self) -> f64 {
        let latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner).map_or(0.0, |(_, latency)| latency);
        (latency + 1e-6) * f64::from(self.under_way.load(Ordering::Relaxed) + 1)
    }

    fn note(&self, now: Instant, took: Duration) {
        let mut latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        let took = took.as_secs_f64();
        let risen = match *latency {
            Some((at, before)) if took < before => {
                let kept = (-now.saturating_duration_since(at).as_secs_f64() / MEMORY.as_secs_f64()).exp();
                before.mul_add(kept, took * (1.0 - kept))
            }
            _ => took,
        };
        *latency = Some((now, risen));
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.load.under_way.fetch_sub(1, Ordering::Relaxed);
        let now = Instant::now();
        self.load.note(now, now.saturating_duration_since(self.begun));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_counts_at_once_and_is_forgotten_slowly() {
        let (load, now) = (Load::default(), Instant::now());
        load.note(now, Duration::from_millis(1));
        let quick = load.cost();
        load.note(now, Duration::from_millis(100));
        assert!(load.cost() > 90.0 * quick);
        load.note(now + Duration::from_secs(1), Duration::from_millis(1));
        assert!(load.cost() > 80.0 * quick, "one quick answer does not make it quick");
        load.note(now + Duration::from_secs(61), Duration::from_millis(1));
        assert!(load.cost() < 2.0 * quick);
    }

    #[test]
    fn calls_under_way_count() {
        let load = Load::default();
        let alone = load.cost();
        let one = load.begin(Instant::now());
        assert!(load.cost() > 1.9 * alone);
        drop(one);
        assert_eq!(load.under_way.load(Ordering::Relaxed), 0);
    }
}
