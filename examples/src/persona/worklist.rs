//! What one session leaves for another: visits that were completed, whose claims billing carries on.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Most visits that wait; the oldest is forgotten then, and its claim stays a draft.
const WAITING_MAX: usize = 1024;

/// A visit that was completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Visit {
    pub(super) patient: String,
    pub(super) encounter: String,
}

/// Visits in the order of their ends.
#[derive(Debug, Default)]
pub(super) struct Worklist(Mutex<VecDeque<Visit>>);

impl Worklist {
    fn with<T>(&self, change: impl FnOnce(&mut VecDeque<Visit>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn leave(&self, visit: Visit) {
        self.with(|waiting| {
            if waiting.len() >= WAITING_MAX {
                waiting.pop_front();
            }
            waiting.push_back(visit);
        });
    }

    /// The one that waits longest, for whoever asks first.
    pub(super) fn take(&self) -> Option<Visit> {
        self.with(VecDeque::pop_front)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_visit_is_taken_once_and_they_are_bounded() {
        let list = Worklist::default();
        let visit = |n: usize| Visit { patient: "p".to_owned(), encounter: n.to_string() };
        (0..WAITING_MAX + 2).for_each(|n| list.leave(visit(n)));
        assert_eq!(list.take(), Some(visit(2)), "the oldest two were forgotten");
        assert_eq!(std::iter::from_fn(|| list.take()).count(), WAITING_MAX - 1);
    }
}
