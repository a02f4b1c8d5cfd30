//! What a run came to, computed by reading the stores: lost, duplicated, backlog, freshness, and whether the audit verifies.

mod comparison;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use pim_core::clock::Timestamp;
use pim_data::audit::CheckpointError;
use pim_data::backend::{DbError, Statement};
use pim_events::{OutboxError, StatusError, StoreError};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::comparison::{PAGE_KEYS, compare};
use crate::workers::Stores;

/// Most events whose freshness is looked at: the newest ones.
const FRESHNESS_EVENTS_MAX: u32 = 100_000;

/// The state of the stores.
#[derive(Clone, Debug, Serialize)]
pub struct RunSummary {
    /// Facts that units of work committed.
    pub facts: u64,
    /// Facts that a read model does not know although nothing is on its way any more.
    pub lost: u64,
    /// Facts that a read model does not know yet, because something is still on its way.
    pub pending: u64,
    /// Facts that a read model counted more than once.
    pub duplicated: u64,
    /// Events that outboxes still have to send.
    pub outbox_backlog: u64,
    /// Records that consumers still have to read.
    pub consumer_lag: u64,
    /// Keys that consumers hold.
    pub parked_keys: u64,
    /// Whether every audit chain and checkpoint holds.
    pub audit_verified: bool,
    /// Audit records that were checked.
    pub audit_records: u64,
    /// Median time from commit to read model, in milliseconds; none without events.
    pub freshness_p50_ms: Option<f64>,
    /// 99th percentile of the same.
    pub freshness_p99_ms: Option<f64>,
}

impl RunSummary {
    /// Whether every invariant holds.
    #[must_use]
    pub const fn holds(&self) -> bool {
        let nothing_missing = self.lost == 0 && self.duplicated == 0;
        nothing_missing && self.parked_keys == 0 && self.audit_verified
    }
}

/// The summaries that are being computed in a program: one at most, because each reads all of every store. Clones share it.
#[derive(Clone, Debug)]
pub struct Summaries(Arc<Semaphore>);

impl Default for Summaries {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

/// The turn to compute one; the next is free when it is dropped.
#[derive(Debug)]
#[must_use = "the turn ends when it is dropped"]
pub struct SummaryTurn {
    _permit: OwnedSemaphorePermit,
}

impl Summaries {
    /// The turn; none while somebody has it.
    pub fn begin(&self) -> Option<SummaryTurn> {
        Arc::clone(&self.0).try_acquire_owned().ok().map(|_permit| SummaryTurn { _permit })
    }
}

/// A summary that cannot be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SummaryError {
    /// A shard.
    #[error("read a shard")]
    Shard(#[from] DbError),
    /// The audit trail.
    #[error("verify the audit trail")]
    Audit(#[from] CheckpointError),
    /// An outbox.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The read store.
    #[error("read the read models")]
    Store(#[from] StoreError),
    /// The consumers.
    #[error("read the consumers")]
    Status(#[from] StatusError),
}

/// Reads every store. `since` bounds the events whose freshness counts.
///
/// Nothing has to stand still meanwhile: what is written between two looks counts as neither lost nor duplicated.
///
/// # Errors
/// [`SummaryError`] naming the store that does not answer.
pub async fn summarize(stores: &Stores, since: Timestamp) -> Result<RunSummary, SummaryError> {
    let audit = stores.cluster.verify_audit().await?;
    let found = compare(stores, PAGE_KEYS, async || {}).await?;
    let (freshness_p50_ms, freshness_p99_ms) = freshness(stores, since).await?;
    Ok(RunSummary {
        facts: found.facts,
        lost: found.lost,
        pending: found.pending,
        duplicated: found.duplicated,
        outbox_backlog: found.rest.outbox_backlog,
        consumer_lag: found.rest.consumer_lag,
        parked_keys: found.rest.parked_keys,
        audit_verified: audit.verified,
        audit_records: audit.records,
        freshness_p50_ms,
        freshness_p99_ms,
    })
}

async fn freshness(stores: &Stores, since: Timestamp) -> Result<(Option<f64>, Option<f64>), SummaryError> {
    let text = format!(
        "SELECT applied_at - committed_at FROM journey_hops WHERE committed_at >= ? \
         ORDER BY committed_at DESC LIMIT {FRESHNESS_EVENTS_MAX}"
    );
    let select = Statement::of(pim_data::backend::SqlPair::generated(text)).bind(since);
    let rows = stores.reads.query(select).await?;
    let mut ages: Vec<i64> = rows.iter().filter_map(|row| row.int(0).ok()).map(|age| age.max(0)).collect();
    ages.sort_unstable();
    let at = |part: usize| ages.get((ages.len() * part / 100).min(ages.len().saturating_sub(1)));
    #[expect(clippy::cast_precision_loss, reason = "ages are far below 2^52 microseconds")]
    let in_ms = |age: &i64| *age as f64 / 1000.0;
    Ok((at(50).map(in_ms), at(99).map(in_ms)))
}
