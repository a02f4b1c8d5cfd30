//! What a run came to, computed by reading the stores: lost, duplicated, backlog, freshness, and whether the audit verifies.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use pim_core::clock::Timestamp;
use pim_data::audit::CheckpointError;
use pim_data::backend::{DbError, Statement};
use pim_events::{Backlog, OutboxError, StatusError, StoreError};
use serde::Serialize;
use tokio::time::Instant;
use uuid::Uuid;

use crate::workers::Stores;

/// How long it is waited for the outboxes to answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
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
/// Nothing has to stand still meanwhile: what is written between two looks counts as neither lost nor duplicated.
///
/// # Errors
/// [`SummaryError`] naming the store that does not answer.
pub async fn summarize(stores: &Stores, since: Timestamp) -> Result<RunSummary, SummaryError> {
    let audit = stores.cluster.verify_audit().await?;
    let found = look(stores, async || {}).await?;
    let (freshness_p50_ms, freshness_p99_ms) = freshness(stores, since).await?;
    Ok(RunSummary {
        facts: found.facts,
        lost: found.lost,
        pending: found.pending,
        duplicated: found.duplicated,
        outbox_backlog: found.outbox_backlog,
        consumer_lag: found.consumer_lag,
        parked_keys: found.parked_keys,
        audit_verified: audit.verified,
        audit_records: audit.records,
        freshness_p50_ms,
        freshness_p99_ms,
    })
}

/// What shards gave out against what read models know.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    facts: u64,
    lost: u64,
    pending: u64,
    duplicated: u64,
    outbox_backlog: u64,
    consumer_lag: u64,
    parked_keys: u64,
}

/// Compares them, `between` any two looks.
///
/// What a read model knew before shards said what they gave out can only be more when something was applied twice. What they
/// had given out before nothing was on its way any more, a read model knows from then on, unless it is lost.
async fn look(stores: &Stores, between: impl AsyncFn()) -> Result<Found, SummaryError> {
    let before = Known::by(stores).await?;
    between().await;
    let given = Given::by(stores).await?;
    between().await;
    let mut found = Found { facts: given.facts, duplicated: before.beyond(&given), ..Found::default() };
    found.outbox_backlog = Backlog::of(&stores.cluster, Instant::now() + ANSWERED_WITHIN).await.into_events()?;
    // After the outboxes: what has left them is on the bus.
    let consumers = stores.reads.status(&stores.bus).await?;
    found.consumer_lag = consumers.iter().flat_map(|consumer| &consumer.partitions).map(|part| part.lag).sum();
    found.parked_keys = consumers.iter().map(|consumer| consumer.held_keys).sum();
    between().await;
    let missing = match before.missing(&given) {
        0 => 0,
        _ => Known::by(stores).await?.missing(&given),
    };
    let is_quiet = found.outbox_backlog == 0 && found.consumer_lag == 0;
    (found.lost, found.pending) = if is_quiet { (missing, 0) } else { (0, missing) };
    Ok(found)
}

/// Events that shards gave out, key by key.
struct Given {
    heads: BTreeMap<Uuid, u64>,
    facts: u64,
}

impl Given {
    async fn by(stores: &Stores) -> Result<Self, SummaryError> {
        let mut heads = BTreeMap::new();
        for source in stores.cluster.sources() {
            let Some(db) = stores.cluster.database(source) else { continue };
            for row in db.query(Statement::same("SELECT key, n FROM key_head")).await? {
                let (key, n) = (row.uuid(0).map_err(DbError::from)?, row.count(1).map_err(DbError::from)?);
                // While its bucket moves a key is on two shards, and one of them may be behind.
                heads.entry(key).and_modify(|known: &mut u64| *known = n.max(*known)).or_insert(n);
            }
        }
        let facts = heads.values().sum();
        Ok(Self { heads, facts })
    }
}

/// Events that read models know: as rows of one model, key by key, and as a sum that another one keeps, which would count a
/// repeated application twice.
struct Known {
    rows: BTreeMap<Uuid, u64>,
    sum: u64,
}

impl Known {
    async fn by(stores: &Stores) -> Result<Self, SummaryError> {
        let mut rows = BTreeMap::new();
        let counted = Statement::same("SELECT home, COUNT(*) FROM journey_hops GROUP BY home");
        for row in stores.reads.query(counted).await? {
            rows.insert(row.uuid(0).map_err(DbError::from)?, row.count(1).map_err(DbError::from)?);
        }
        let summed = Statement::same("SELECT COALESCE(SUM(events), 0) FROM shard_distribution");
        let summed = stores.reads.query(summed).await?;
        let sum = summed.first().map_or(Ok(0), |row| row.count(0)).map_err(DbError::from)?;
        Ok(Self { rows, sum })
    }

    fn of(&self, key: &Uuid) -> u64 {
        self.rows.get(key).copied().unwrap_or(0)
    }

    /// What was given out and is not known.
    fn missing(&self, given: &Given) -> u64 {
        let rows: u64 = given.heads.iter().map(|(key, n)| n.saturating_sub(self.of(key))).sum();
        rows.max(given.facts.saturating_sub(self.sum))
    }

    /// What is known more than once.
    fn beyond(&self, given: &Given) -> u64 {
        let rows: u64 = given.heads.iter().map(|(key, n)| self.of(key).saturating_sub(*n)).sum();
        rows.max(self.sum.saturating_sub(given.facts))
    }
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
