//! How far a replica is behind, by where the primary was at which instant of this process.
//!
//! No clock of a server is asked, and nothing is written for it: a replica that has replayed up to a mark has every commit that
//! was acknowledged before the mark was asked for.

use std::collections::VecDeque;
use std::time::Instant;

/// Most marks that are kept; a replica that is behind all of them has no known lag.
const MARKS_MAX: usize = 256;

/// Where the primary was, the newest last.
#[derive(Debug, Default)]
pub(super) struct Marks(VecDeque<(Instant, u64)>);

impl Marks {
    /// The primary had flushed its log up to `position` when it was asked at `at`.
    pub(super) fn note(&mut self, at: Instant, position: u64) {
        if self.0.len() == MARKS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((at, position));
    }

    /// Another primary begins another history.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Of which instant a replica is that has replayed up to `position`; `None` when that is too long ago to tell.
    pub(super) fn instant_of(&self, position: u64) -> Option<Instant> {
        self.0.iter().rev().find(|(_, mark)| *mark <= position).map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_replica_is_as_old_as_the_newest_mark_that_it_has_reached() {
        let (begun, mut marks) = (Instant::now(), Marks::default());
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(marks.instant_of(u64::MAX), None, "nobody knows the primary");
        for (second, position) in [(0, 100), (1, 200), (2, 200), (3, 300)] {
            marks.note(at(second), position);
        }
        assert_eq!(marks.instant_of(99), None);
        assert_eq!(marks.instant_of(150), Some(at(0)));
        assert_eq!(marks.instant_of(200), Some(at(2)), "nothing was written in between");
        assert_eq!(marks.instant_of(1_000), Some(at(3)));
        marks.clear();
        assert_eq!(marks.instant_of(1_000), None, "positions of another history tell nothing");
    }

    #[test]
    fn the_oldest_marks_are_forgotten() {
        let (begun, mut marks) = (Instant::now(), Marks::default());
        for position in 0..=(MARKS_MAX as u64) {
            marks.note(begun, position);
        }
        assert_eq!(marks.instant_of(0), None);
        assert_eq!(marks.instant_of(1), Some(begun));
    }
}
