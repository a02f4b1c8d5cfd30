//! The slot in a unit of work that another crate fills.

use std::any::Any;
use std::fmt;

use pim_core::clock::Timestamp;
use pim_core::context::RequestContext;
use pim_core::shard::{HomeKey, Route};

use serde_json::Value as Json;

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
    /// The first number of the home key that belongs to this part; it owns as many as it asked for. Zero in
    /// [`UnitPart::call`]: there the database counts, and tells the part's function.
    pub n_first: u64,
    /// The instant of the unit.
    pub at: Timestamp,
}

/// A part that cannot be written; the whole unit is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a part of the unit cannot be written: {0}")]
pub struct PartError(pub &'static str);

/// A part as one argument of the function that writes it on PostgreSQL.
#[derive(Clone, Debug, PartialEq)]
pub struct PartCall {
    /// The name under which a migration registered the function.
    pub part: &'static str,
    /// Everything that it writes, except what the unit's context and the home key's number say.
    pub data: Json,
}

/// Something that commits together with the rows of a unit, such as its outbox events.
pub trait UnitPart: Any + Send + Sync + fmt::Debug {
    /// How many of the home key's numbers it takes: one for each event.
    fn facts(&self) -> u64;

    /// Its statements, run inside the unit's transaction after the rows.
    ///
    /// # Errors
    /// [`PartError`] refuses the unit.
    fn statements(&mut self, facts: &CommitFacts<'_>) -> Result<Vec<Statement>, PartError>;

    /// Its form on PostgreSQL, where the whole unit is one call; `None` when it has nothing to write.
    ///
    /// A migration creates a function `(context pim_context, data jsonb, n_first bigint) RETURNS void` and registers it with
    /// `SELECT pim_register_part('name', 'function')`. It gets [`PartCall::data`] and the first of the home key's numbers
    /// that belong to this part, which it hands to its rows in order. Of the context it may read `bucket`, `epoch`, `home`,
    /// `at` (microseconds), `user_id`, `role`, `request`, `trace`, and where there is one `behalf` and `cause`. A function that raises
    /// refuses the whole unit. It runs as the application's role, after the unit's rows and before its audit records. Other units may
    /// be in the same transaction: it sets nothing for that, and takes the transaction's number for nobody's.
    ///
    /// # Errors
    /// [`PartError`] refuses the unit, as it does for a part that has no such form.
    fn call(&mut self, _facts: &CommitFacts<'_>) -> Result<Option<PartCall>, PartError> {
        Err(PartError("it has no form for PostgreSQL"))
    }
}
