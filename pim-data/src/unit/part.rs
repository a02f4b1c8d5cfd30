//! The slot in a unit of work that another crate fills.

use std::any::Any;
use std::fmt;

use pim_core::clock::Timestamp;
use pim_core::context::RequestContext;
use pim_core::shard::{HomeKey, Route};

use crate::backend::Statement;

/// What a part learns when its unit commits.
#[derive(Debug)]
#[non_exhaustive]
pub struct CommitFacts<'a> {
    /// For which request.
    pub cx: &'a RequestContext,
    /// Whose rows.
    pub home: HomeKey,
    /// On which shard, in which bucket, under which epoch.
    pub route: Route,
    /// The first number of the home key that belongs to this part; it owns as many as it asked for.
    pub n_first: u64,
    /// The instant of the unit.
    pub at: Timestamp,
}

/// A part that cannot be written; the whole unit is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a part of the unit cannot be written: {0}")]
pub struct PartError(pub &'static str);

/// Something that commits together with the rows of a unit, such as its outbox events.
pub trait UnitPart: Any + Send + Sync + fmt::Debug {
    /// How many of the home key's numbers it takes: one for each event.
    fn facts(&self) -> u64;

    /// Its statements, run inside the unit's transaction after the rows.
    ///
    /// # Errors
    /// [`PartError`] refuses the unit.
    fn statements(&mut self, facts: &CommitFacts<'_>) -> Result<Vec<Statement>, PartError>;
}
