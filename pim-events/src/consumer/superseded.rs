//! Events of a log whose numbers a later owner of their key has given out again, because everything was restored in between.

use std::collections::{BTreeMap, HashMap};

use pim_core::shard::Epoch;
use uuid::Uuid;

/// Of keys that were rewound, the first number under each epoch.
#[derive(Debug, Default)]
pub(crate) struct Superseded(HashMap<Uuid, BTreeMap<Epoch, u64>>);

impl Superseded {
    /// For these keys, of which no event has been noted yet.
    pub(crate) fn of(keys: impl IntoIterator<Item = Uuid>) -> Self {
        Self(keys.into_iter().map(|key| (key, BTreeMap::new())).collect())
    }

    /// How many keys there are.
    pub(crate) fn keys(&self) -> u64 {
        self.0.len() as u64
    }

    /// Takes an event of the log into account.
    pub(crate) fn note(&mut self, key: Uuid, epoch: Epoch, n: u64) {
        if let Some(firsts) = self.0.get_mut(&key) {
            let first = firsts.entry(epoch).or_insert(n);
            *first = n.min(*first);
        }
    }

    /// Whether a later owner has given this number out again, or one before it.
    pub(crate) fn covers(&self, key: Uuid, epoch: Epoch, n: u64) -> bool {
        let Some(firsts) = self.0.get(&key) else { return false };
        firsts.range(Epoch(epoch.0.saturating_add(1))..).any(|(_, first)| *first <= n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_owner_numbers_again_is_superseded_from_there_on() {
        let (key, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut superseded = Superseded::of([key]);
        for (epoch, n) in [(1, 1), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (2, 5), (5, 5), (7, 9)] {
            superseded.note(key, Epoch(epoch), n);
            superseded.note(other, Epoch(epoch), n);
        }
        let left: Vec<_> = [(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (2, 5), (5, 5), (7, 9)]
            .into_iter()
            .filter(|(epoch, n)| !superseded.covers(key, Epoch(*epoch), *n))
            .collect();
        assert_eq!(left, [(1, 2), (2, 3), (2, 4), (5, 5), (7, 9)]);
        assert!(!superseded.covers(other, Epoch(1), 4), "a key that nobody asked for");
    }
}
