//! The order of a key, decided: follows, repeats, gap, or rewound. Pure.

use pim_core::shard::Epoch;

/// How far a consumer has applied one key: the last n, and the ownership epoch it was written under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Head {
    /// Ownership epoch of the last applied event.
    pub epoch: Epoch,
    /// Its n; 0 before the first.
    pub n: u64,
}

/// How an event stands to the head of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// It is the next one.
    Follows,
    /// It was applied before.
    Repeats,
    /// Something between the head and it is missing.
    Gap,
    /// Its numbering contradicts what was applied: history was restored or lost somewhere.
    Rewound,
}

impl Head {
    /// Before the first event.
    pub const START: Self = Self { epoch: Epoch(0), n: 0 };

    /// How an event with this epoch and n stands to this head.
    ///
    /// ```
    /// use pim_core::shard::Epoch;
    /// use pim_events::{Head, Order};
    ///
    /// let head = Head { epoch: Epoch(2), n: 7 };
    /// assert_eq!(head.order(Epoch(2), 8), Order::Follows);
    /// assert_eq!(head.order(Epoch(2), 7), Order::Repeats);
    /// assert_eq!(head.order(Epoch(3), 9), Order::Gap);
    /// assert_eq!(head.order(Epoch(3), 7), Order::Rewound);
    /// assert_eq!(head.order(Epoch(1), 8), Order::Rewound);
    /// ```
    #[must_use]
    pub fn order(self, epoch: Epoch, n: u64) -> Order {
        if epoch > self.epoch && n <= self.n {
            return Order::Rewound;
        }
        if n <= self.n {
            return Order::Repeats;
        }
        if epoch < self.epoch {
            // An owner that had lost the bucket numbered on: two histories claim the same n.
            return Order::Rewound;
        }
        if n == self.n + 1 { Order::Follows } else { Order::Gap }
    }
}
