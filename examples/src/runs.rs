//! What a run came to, computed by reading the stores: lost, duplicated, backlog, freshness, and whether the audit verifies.

use std::collections::BTreeMap;

use pim_core::clock::Timestamp;
use pim_data::audit::CheckpointError;
use pim_data::backend::{DbError, Statement};
use pim_events::{OutboxError, Source, StatusError, StoreError};
use serde::Serialize;
use uuid::Uuid;

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
/// # Errors
/// [`SummaryError`] naming the store that does not answer.
pub async fn summarize(stores: &Stores, since: Timestamp) -> Result<RunSummary, SummaryError> {
    let now = stores.cluster.clock().now();
    let mut outbox_backlog = 0;
    for source in Source::all(&stores.cluster) {
        outbox_backlog += source.status(now).await?.backlog;
    }
    let consumers = stores.reads.status(&stores.bus).await?;
    let consumer_lag: u64 = consumers.iter().flat_map(|consumer| &consumer.partitions).map(|part| part.lag).sum();
    let parked_keys = consumers.iter().map(|consumer| consumer.held_keys).sum();
    let audit = stores.cluster.verify_audit().await?;
    let (facts, missing, duplicated) = compare(stores).await?;
    // Only when nothing is on its way any more is what is missing lost.
    let is_quiet = outbox_backlog == 0 && consumer_lag == 0;
    let (lost, pending) = if is_quiet { (missing, 0) } else { (0, missing) };
    let (freshness_p50_ms, freshness_p99_ms) = freshness(stores, since).await?;
    Ok(RunSummary {
        facts,
        lost,
        pending,
        duplicated,
        outbox_backlog,
        consumer_lag,
        parked_keys,
        audit_verified: audit.verified,
        audit_records: audit.records,
        freshness_p50_ms,
        freshness_p99_ms,
    })
}

/// Compares, key by key, the n that shards gave out with the events that read models know: as rows of one model, and as a
/// sum that another one keeps, which would count a repeated application twice.
async fn compare(stores: &Stores) -> Result<(u64, u64, u64), SummaryError> {
    let mut known: BTreeMap<Uuid, u64> = BTreeMap::new();
    let counted = stores.reads.query(Statement::same("SELECT home, COUNT(*) FROM journey_hops GROUP BY home")).await?;
    for row in counted {
        known.insert(row.uuid(0).map_err(DbError::from)?, row.count(1).map_err(DbError::from)?);
    }
    let (mut facts, mut lost, mut duplicated) = (0, 0, 0);
    for source in stores.cluster.sources() {
        let Some(db) = stores.cluster.database(source) else { continue };
        for row in db.query(Statement::same("SELECT key, n FROM key_head")).await? {
            let n = row.count(1).map_err(DbError::from)?;
            let rows = known.get(&row.uuid(0).map_err(DbError::from)?).copied().unwrap_or(0);
            facts += n;
            lost += n.saturating_sub(rows);
            duplicated += rows.saturating_sub(n);
        }
    }
    let summed = Statement::same("SELECT COALESCE(SUM(events), 0) FROM shard_distribution");
    let summed = stores.reads.query(summed).await?.first().map_or(Ok(0), |row| row.count(0)).map_err(DbError::from)?;
    Ok((facts, lost.max(facts.saturating_sub(summed)), duplicated.max(summed.saturating_sub(facts))))
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
