//! Whether an event is applied, skipped, or held beside its key's held sequence. Pure.

use pim_core::shard::Epoch;
use uuid::Uuid;

use super::head::{Head, Order};

pim_core::closed_enum! {
    /// Why a key is held.
    pub enum HoldReason {
        /// An event of it could not be applied.
        Poison = "poison",
        /// An event of it is missing.
        Gap = "gap",
        /// Its numbering contradicts what was applied.
        Rewound = "rewound",
        /// It is being applied again, in order.
        Draining = "draining",
    }
}

/// What to do with one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Apply it; the head moves.
    Apply,
    /// Skip it; it was applied before.
    Duplicate,
    /// Keep it in the key's held sequence; the head stays.
    Hold(HoldReason),
}

/// Head and hold of one key, as one transaction sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyState {
    /// How far it is applied.
    pub head: Head,
    /// The id of the event that it is applied to; none before the first, and where it is not known.
    pub head_event: Option<Uuid>,
    /// Why it is held, if it is.
    pub hold: Option<HoldReason>,
    /// The last event in its held sequence, if it is held.
    pub held_last: Option<Head>,
}

impl Default for KeyState {
    fn default() -> Self {
        Self { head: Head::START, head_event: None, hold: None, held_last: None }
    }
}

impl KeyState {
    /// Takes the next event of the key and says what to do with it, assuming that applying works.
    ///
    /// A key that gives numbers out again comes by its head once more, under a risen epoch or with another event: however it was
    /// set back, that is told from a repeat.
    pub fn take(&mut self, epoch: Epoch, n: u64, event: Uuid) -> Disposition {
        let order = match self.head.order(epoch, n) {
            Order::Repeats if n == self.head.n && self.head_event.is_some_and(|known| known != event) => Order::Rewound,
            order => order,
        };
        match (self.hold, order) {
            (_, Order::Repeats) => Disposition::Duplicate,
            (_, Order::Rewound) => self.join(HoldReason::Rewound, epoch, n),
            (Some(HoldReason::Rewound), _) => self.join(HoldReason::Rewound, epoch, n),
            // A higher owner that numbers again what is held already: rewound, though the head is below.
            (Some(_), _) if self.held_last.is_some_and(|last| epoch > last.epoch && n <= last.n) => {
                self.join(HoldReason::Rewound, epoch, n)
            }
            (Some(HoldReason::Poison), _) => self.join(HoldReason::Poison, epoch, n),
            (_, Order::Follows) => {
                self.head = Head { epoch, n };
                self.head_event = Some(event);
                Disposition::Apply
            }
            (Some(HoldReason::Draining), Order::Gap) => self.join(HoldReason::Draining, epoch, n),
            (_, Order::Gap) => self.join(HoldReason::Gap, epoch, n),
        }
    }

    /// Puts an event that failed into the held sequence.
    pub fn park(&mut self, epoch: Epoch, n: u64) {
        let _ = self.join(HoldReason::Poison, epoch, n);
    }

    fn join(&mut self, reason: HoldReason, epoch: Epoch, n: u64) -> Disposition {
        let event = Head { epoch, n };
        self.hold = Some(reason);
        self.held_last = Some(self.held_last.map_or(event, |last| last.max(event)));
        Disposition::Hold(reason)
    }
}
