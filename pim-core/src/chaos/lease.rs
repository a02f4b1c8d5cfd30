//! What strikes, how often, and until when.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::problem::{self, IntoProblem, Problem};

/// Longest life of a lease; an experiment that needs more renews it.
pub const LEASE_MAX: Duration = Duration::from_secs(15 * 60);
/// Longest latency that is added to one call.
pub const LATENCY_MAX: Duration = Duration::from_secs(30);

crate::closed_enum! {
    /// The kinds of fault, without their size.
    pub enum FaultKind {
        /// The call takes longer.
        Latency = "latency",
        /// The call fails.
        Error = "error",
        /// The call hangs until the lease ends.
        Stall = "stall",
    }
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call takes so much longer, but not beyond the end of the lease.
    Latency(Duration),
    /// The call fails.
    Error,
    /// The call hangs until the lease ends.
    Stall,
}

impl Fault {
    /// Its kind.
    #[must_use]
    pub const fn kind(self) -> FaultKind {
        match self {
            Self::Latency(_) => FaultKind::Latency,
            Self::Error => FaultKind::Error,
            Self::Stall => FaultKind::Stall,
        }
    }
}

/// How many of a hundred calls are struck, spread evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u8);

impl Share {
    /// Every call.
    pub const ALL: Self = Self(100);

    /// So many of a hundred.
    ///
    /// # Errors
    /// [`LeaseError::Share`] for none or more than a hundred.
    pub const fn percent(percent: u8) -> Result<Self, LeaseError> {
        if matches!(percent, 1..=100) { Ok(Self(percent)) } else { Err(LeaseError::Share) }
    }

    /// Calls of a hundred.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Whether the call with this number, from zero, is among the struck.
    pub(super) const fn strikes(self, call: u64) -> bool {
        let (call, share) = (call % 100, self.0 as u64);
        (call + 1) * share / 100 > call * share / 100
    }
}

/// A fault in force at one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lease {
    /// What strikes.
    pub fault: Fault,
    /// How often.
    pub share: Share,
    /// When it began.
    pub began_at: Timestamp,
    /// When it ends by itself.
    pub ends_at: Timestamp,
}

/// A lease that is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// Without an end, or too far away.
    #[error("a lease lasts between one millisecond and {} seconds", LEASE_MAX.as_secs())]
    Duration,
    /// No latency, or too much.
    #[error("an added latency is between one millisecond and {} seconds", LATENCY_MAX.as_secs())]
    Latency,
    /// No share of the calls, or more than all.
    #[error("a share is between 1 and 100 percent")]
    Share,
}

impl IntoProblem for LeaseError {
    fn into_problem(self) -> Problem {
        Problem::of(problem::INVALID_BODY).detail(self.to_string())
    }
}
