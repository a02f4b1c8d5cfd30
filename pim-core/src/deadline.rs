//! How long a request may still take, handed on in milliseconds from hop to hop.

mod layer;

pub use layer::{DEADLINE_HEADER, DeadlineLayer, WithDeadline};

use std::time::Duration;

use tokio::time::Instant;

/// The moment at which an answer is of no more use.
///
/// ```
/// use std::time::Duration;
/// use pim_core::deadline::Deadline;
///
/// let deadline = Deadline::after(Duration::from_secs(5));
/// assert!(deadline.remaining().is_some());
/// assert!(deadline.capped(Duration::ZERO).remaining().is_none());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

/// Longer than any request, shorter than what an instant can hold.
const BUDGET_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl Deadline {
    /// A deadline `budget` from now, at most a day.
    #[must_use]
    pub fn after(budget: Duration) -> Self {
        Self(Instant::now() + budget.min(BUDGET_MAX))
    }

    /// The earlier of this deadline and `budget` from now.
    #[must_use]
    pub fn capped(self, budget: Duration) -> Self {
        self.min(Self::after(budget))
    }

    /// What is left; `None` once it has passed.
    #[must_use]
    pub fn remaining(self) -> Option<Duration> {
        let left = self.0.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// The instant itself, for `tokio::time::timeout_at`.
    #[must_use]
    pub const fn instant(self) -> Instant {
        self.0
    }
}
