//! What shards gave out against what read models know: key by key, in pages, so that no number of keys fills the memory.

use std::collections::BTreeMap;
use std::time::Duration;

use pim_data::backend::{DbError, Row, Statement};
use pim_events::Backlog;
use tokio::time::Instant;
use uuid::Uuid;

use super::SummaryError;
use crate::workers::Stores;

/// Keys of one page: as many as read models know, and of each shard.
pub(super) const PAGE_KEYS: u32 = 10_000;
/// How long it is waited for the outboxes to answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) facts: u64,
    pub(super) lost: u64,
    pub(super) pending: u64,
    pub(super) duplicated: u64,
    /// What was on its way: the most of all looks.
    pub(super) rest: Rest,
}

/// What is on its way or held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rest {
    pub(super) outbox_backlog: u64,
    pub(super) consumer_lag: u64,
    pub(super) parked_keys: u64,
}

impl Rest {
    async fn of(stores: &Stores) -> Result<Self, SummaryError> {
        let outbox_backlog = Backlog::of(&stores.cluster, Instant::now() + ANSWERED_WITHIN).await.into_events()?;
        // After the outboxes: what has left them is on the bus.
        let consumers = stores.reads.status(&stores.bus).await?;
        let consumer_lag = consumers.iter().flat_map(|consumer| &consumer.partitions).map(|part| part.lag).sum();
        let parked_keys = consumers.iter().map(|consumer| consumer.held_keys).sum();
        Ok(Self { outbox_backlog, consumer_lag, parked_keys })
    }

    const fn is_quiet(&self) -> bool {
        self.outbox_backlog == 0 && self.consumer_lag == 0
    }

    fn at_most(self, other: Self) -> Self {
        Self {
            outbox_backlog: self.outbox_backlog.max(other.outbox_backlog),
            consumer_lag: self.consumer_lag.max(other.consumer_lag),
            parked_keys: self.parked_keys.max(other.parked_keys),
        }
    }
}

/// Compares them, `between` any two looks, so many keys at once.
///
/// What a read model knew before shards said what they gave out can only be more when something was applied twice. What they
/// had given out before nothing was on its way any more, a read model knows from then on, unless it is lost. Both hold for each
/// page by itself, and for the sum that another read model keeps, which would count a repeated application twice.
pub(super) async fn compare(stores: &Stores, page_keys: u32, between: impl AsyncFn()) -> Result<Found, SummaryError> {
    let sum = known_sum(stores).await?;
    let mut found = Found::default();
    let mut next = Some(Uuid::nil());
    // Each page begins behind the one before, and keys end.
    while let Some(first) = next {
        let last = compare_page(stores, (first, page_keys), &mut found, &between).await?;
        next = last.as_u128().checked_add(1).map(Uuid::from_u128);
    }
    found.duplicated = found.duplicated.max(sum.saturating_sub(found.facts));
    let rest = Rest::of(stores).await?;
    found.rest = found.rest.at_most(rest);
    between().await;
    let missing = match found.facts.saturating_sub(sum) {
        0 => 0,
        _ => found.facts.saturating_sub(known_sum(stores).await?),
    };
    let place = if rest.is_quiet() { &mut found.lost } else { &mut found.pending };
    *place = missing.max(*place);
    Ok(found)
}

/// Compares the keys from one on: the last that was compared.
async fn compare_page(
    stores: &Stores,
    (first, page_keys): (Uuid, u32),
    found: &mut Found,
    between: &impl AsyncFn(),
) -> Result<Uuid, SummaryError> {
    let last = last_of(stores, first, page_keys).await?;
    let before = known(stores, (first, last), page_keys).await?;
    // A full page ends where its knowledge does.
    let is_full = before.len() >= usize::try_from(page_keys).unwrap_or(usize::MAX);
    let last = before.last_key_value().filter(|_| is_full).map_or(last, |(key, _)| *key);
    between().await;
    let given = given(stores, (first, last)).await?;
    between().await;
    found.facts += given.values().sum::<u64>();
    found.duplicated += beyond(&before, &given);
    if missing(&before, &given) > 0 {
        let rest = Rest::of(stores).await?;
        found.rest = found.rest.at_most(rest);
        between().await;
        let missing = missing(&known(stores, (first, last), u32::MAX).await?, &given);
        *(if rest.is_quiet() { &mut found.lost } else { &mut found.pending }) += missing;
    }
    Ok(last)
}

type Heads = BTreeMap<Uuid, u64>;

/// The last key of a page that no shard has more than `page_keys` of.
pub(super) async fn last_of(stores: &Stores, first: Uuid, page_keys: u32) -> Result<Uuid, SummaryError> {
    const LAST: &str = "SELECT key FROM key_head WHERE key >= ? ORDER BY key LIMIT 1 OFFSET ?";
    let mut last = Uuid::max();
    for source in stores.cluster.sources() {
        let Some(db) = stores.cluster.database(source) else { continue };
        let rows = db.query(Statement::same(LAST).bind(first).bind(page_keys.saturating_sub(1))).await?;
        if let Some(row) = rows.first() {
            last = last.min(row.uuid(0).map_err(DbError::from)?);
        }
    }
    Ok(last)
}

/// Events that shards gave out.
pub(super) async fn given(stores: &Stores, (first, last): (Uuid, Uuid)) -> Result<Heads, SummaryError> {
    const GIVEN: &str = "SELECT key, n FROM key_head WHERE key BETWEEN ? AND ?";
    let mut heads = Heads::new();
    for source in stores.cluster.sources() {
        let Some(db) = stores.cluster.database(source) else { continue };
        for row in db.query(Statement::same(GIVEN).bind(first).bind(last)).await? {
            let (key, n) = (row.uuid(0).map_err(DbError::from)?, row.count(1).map_err(DbError::from)?);
            // While its bucket moves a key is on two shards, and one of them may be behind.
            heads.entry(key).and_modify(|known: &mut u64| *known = n.max(*known)).or_insert(n);
        }
    }
    Ok(heads)
}

/// Events that a read model knows as rows, of at most so many keys.
async fn known(stores: &Stores, (first, last): (Uuid, Uuid), keys_max: u32) -> Result<Heads, SummaryError> {
    const KNOWN: &str = "SELECT home, COUNT(*) FROM journey_hops WHERE home BETWEEN ? AND ? \
                         GROUP BY home ORDER BY home LIMIT ?";
    let rows = stores.reads.query(Statement::same(KNOWN).bind(first).bind(last).bind(keys_max)).await?;
    let of = |row: &Row| Ok::<_, DbError>((row.uuid(0)?, row.count(1)?));
    Ok(rows.iter().map(of).collect::<Result<Heads, DbError>>()?)
}

/// Events that a read model has counted.
async fn known_sum(stores: &Stores) -> Result<u64, SummaryError> {
    let summed = Statement::same("SELECT COALESCE(SUM(events), 0) FROM shard_distribution");
    let rows = stores.reads.query(summed).await?;
    Ok(rows.first().map_or(Ok(0), |row| row.count(0)).map_err(DbError::from)?)
}

fn of(heads: &Heads, key: &Uuid) -> u64 {
    heads.get(key).copied().unwrap_or(0)
}

/// What was given out and is not known.
fn missing(known: &Heads, given: &Heads) -> u64 {
    given.iter().map(|(key, n)| n.saturating_sub(of(known, key))).sum()
}

/// What is known more than once.
fn beyond(known: &Heads, given: &Heads) -> u64 {
    given.iter().map(|(key, n)| of(known, key).saturating_sub(*n)).sum()
}
