//! The seam to whoever sends a shard's events: a bucket changes hands only when nothing of it waits there.

use std::fmt;

use async_trait::async_trait;
use pim_core::shard::Bucket;

use crate::backend::{Db, DbError};

/// What is left of some buckets' events in a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outflow {
    /// Everything has been published.
    Dry,
    /// Something has yet to be published.
    Waiting,
    /// An event was refused, and its key waits for an operator: the bucket cannot move.
    Parked,
}

/// Knows what a shard has yet to send. pim-events implements it over its outbox.
#[async_trait]
pub trait Outlet: fmt::Debug + Send + Sync {
    /// What is left of these buckets' events in this shard.
    ///
    /// # Errors
    /// [`DbError`] when the shard does not answer.
    async fn outflow(&self, shard: &Db, buckets: &[Bucket]) -> Result<Outflow, DbError>;
}
