//! Events of a log whose numbers their key has given out again, because it was set back in between.

use std::collections::{BTreeMap, HashMap, HashSet};

use pim_core::shard::Epoch;
use uuid::Uuid;

use crate::event::Event;

/// What of the log the keys that were rewound have given up.
#[derive(Debug, Default)]
pub(crate) struct Superseded {
    keys: HashMap<Uuid, Numbers>,
    /// How many events may still be noted; each takes some hundred bytes.
    left: usize,
}

/// The log has more events of these keys than may be noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

/// The numbers of one key, as the log has them.
#[derive(Debug, Default)]
struct Numbers {
    /// The first under each epoch.
    firsts: BTreeMap<Epoch, u64>,
    /// Whose each number is.
    events: BTreeMap<(Epoch, u64), Uuid>,
    /// Events whose numbers another one has got under the same epoch, or one before it.
    given_up: HashSet<Uuid>,
}

impl Numbers {
    fn note(&mut self, epoch: Epoch, n: u64, event: Uuid) {
        let first = self.firsts.entry(epoch).or_insert(n);
        *first = n.min(*first);
        if self.events.get(&(epoch, n)).is_some_and(|known| *known != event) {
            let again: Vec<_> = self.events.range((epoch, n)..=(epoch, u64::MAX)).map(|(number, _)| *number).collect();
            self.given_up.extend(again.iter().filter_map(|number| self.events.remove(number)));
        }
        self.given_up.remove(&event);
        self.events.insert((epoch, n), event);
    }

    fn covers(&self, epoch: Epoch, n: u64, event: Uuid) -> bool {
        let later = self.firsts.range(Epoch(epoch.0.saturating_add(1))..);
        self.given_up.contains(&event) || later.into_iter().any(|(_, first)| *first <= n)
    }
}

impl Superseded {
    /// For these keys, of which no event has been noted yet, and at most so many will be.
    pub(crate) fn of(keys: impl IntoIterator<Item = Uuid>, most: usize) -> Self {
        Self { keys: keys.into_iter().map(|key| (key, Numbers::default())).collect(), left: most }
    }

    /// How many keys there are.
    pub(crate) fn keys(&self) -> u64 {
        self.keys.len() as u64
    }

    /// Takes the next event of the log into account.
    pub(crate) fn note(&mut self, event: &Event) -> Result<(), TooMany> {
        self.take((event.home, event.owner_epoch, event.n, event.id))
    }

    fn take(&mut self, (key, epoch, n, id): (Uuid, Epoch, u64, Uuid)) -> Result<(), TooMany> {
        let Some(numbers) = self.keys.get_mut(&key) else { return Ok(()) };
        self.left = self.left.checked_sub(1).ok_or(TooMany)?;
        numbers.note(epoch, n, id);
        Ok(())
    }

    /// Whether its number was given out again behind it in the log, or one before it.
    pub(crate) fn covers(&self, event: &Event) -> bool {
        self.keys.get(&event.home).is_some_and(|numbers| numbers.covers(event.owner_epoch, event.n, event.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of these events, each with its epoch and its id, that are left.
    fn left(events: &[(u32, u64, u128)]) -> Vec<(u32, u64, u128)> {
        let mut numbers = Numbers::default();
        for (epoch, n, id) in events {
            numbers.note(Epoch(*epoch), *n, Uuid::from_u128(*id));
        }
        let left = |(epoch, n, id): &&_| !numbers.covers(Epoch(*epoch), *n, Uuid::from_u128(*id));
        events.iter().filter(left).copied().collect()
    }

    #[test]
    fn what_a_later_owner_numbers_again_is_superseded_from_there_on() {
        let events = [(1, 2, 2), (1, 3, 3), (1, 4, 4), (2, 3, 5), (2, 4, 6), (2, 5, 7), (5, 5, 8), (7, 9, 9)];
        assert_eq!(left(&events), [(1, 2, 2), (2, 3, 5), (2, 4, 6), (5, 5, 8), (7, 9, 9)]);
    }

    #[test]
    fn what_the_same_owner_numbers_again_is_superseded_from_there_on() {
        let events = [(1, 1, 1), (1, 2, 2), (1, 3, 3), (1, 2, 4), (1, 3, 5), (1, 4, 6)];
        assert_eq!(left(&events), [(1, 1, 1), (1, 2, 4), (1, 3, 5), (1, 4, 6)]);
        // The lost ones reached further than what came next.
        assert_eq!(left(&[(1, 1, 1), (1, 2, 2), (1, 3, 3), (1, 2, 4)]), [(1, 1, 1), (1, 2, 4)]);
        // And both at once: some of it numbered again before the epoch rose.
        let events = [(1, 1, 1), (1, 2, 2), (1, 3, 3), (1, 2, 4), (2, 3, 5)];
        assert_eq!(left(&events), [(1, 1, 1), (1, 2, 4), (2, 3, 5)]);
    }

    #[test]
    fn what_comes_last_is_what_is_left_also_when_it_was_given_up_before() {
        assert_eq!(left(&[(1, 6, 1), (1, 6, 2), (1, 6, 1)]), [(1, 6, 1), (1, 6, 1)]);
    }

    #[test]
    fn what_is_delivered_twice_is_not_numbered_again() {
        let events = [(1, 1, 1), (1, 2, 2), (1, 3, 3), (1, 2, 2), (1, 3, 3), (1, 4, 4)];
        assert_eq!(left(&events), events);
    }

    #[test]
    fn of_a_key_that_nobody_asked_for_nothing_is_noted_and_of_others_no_more_than_may_be() {
        let (key, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut superseded = Superseded::of([key], 2);
        assert_eq!(superseded.keys(), 1);
        for n in 1..=2 {
            assert_eq!(superseded.take((other, Epoch(1), n, Uuid::from_u128(n.into()))), Ok(()));
            assert_eq!(superseded.take((key, Epoch(1), n, Uuid::from_u128(n.into()))), Ok(()));
        }
        assert_eq!(superseded.take((key, Epoch(1), 3, Uuid::from_u128(3))), Err(TooMany));
        assert!(!superseded.keys.contains_key(&other));
    }
}
