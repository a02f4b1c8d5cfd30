//! Claims that could not be submitted, and are tried last from then on.

use std::collections::VecDeque;

use uuid::Uuid;

/// More than wait at once; one that makes way for others is tried in its place again.
const HELD_MAX: usize = 1_000;

/// What a worker remembers of claims that failed, the one that was tried longest ago first. Nothing is lost with it: they are
/// drafts, and the cycle stays before them.
#[derive(Debug, Default)]
pub(super) struct Held(VecDeque<Uuid>);

impl Held {
    /// Its turn; `None` when it has not failed.
    pub(super) fn turn_of(&self, claim: Uuid) -> Option<usize> {
        self.0.iter().position(|held| *held == claim)
    }

    /// Puts it behind all others.
    pub(super) fn hold(&mut self, claim: Uuid) {
        self.release(claim);
        if self.0.len() >= HELD_MAX {
            self.0.pop_front();
        }
        self.0.push_back(claim);
    }

    /// It is no draft any more.
    pub(super) fn release(&mut self, claim: Uuid) {
        self.0.retain(|held| *held != claim);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_failed_last_is_tried_last() {
        let mut held = Held::default();
        let [first, second, third] = [1, 2, 3].map(Uuid::from_u128);
        held.hold(first);
        held.hold(second);
        held.hold(first);
        assert_eq!([second, first, third].map(|claim| held.turn_of(claim)), [Some(0), Some(1), None]);
        held.release(second);
        assert_eq!([second, first].map(|claim| held.turn_of(claim)), [None, Some(0)]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut held = Held::default();
        (0..=HELD_MAX as u128).for_each(|claim| held.hold(Uuid::from_u128(claim)));
        assert_eq!(held.turn_of(Uuid::from_u128(0)), None);
        assert_eq!(held.turn_of(Uuid::from_u128(HELD_MAX as u128)), Some(HELD_MAX - 1));
    }
}
