//! How keys and events spread over the shards.

use std::collections::BTreeMap;

use async_trait::async_trait;
use pim_data::backend::{Row, SqlPair, Statement};
use pim_events::{ApplyError, Event, Projection, ReadStore, ReadTable, ReadTx};
use serde::Serialize;

use super::sight::QueryError;

/// Folds every event; a key is counted by its first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Distribution;

#[async_trait]
impl Projection for Distribution {
    fn name(&self) -> &'static str {
        "shard_distribution"
    }

    fn schema(&self) -> SqlPair {
        SqlPair::of(
            "CREATE TABLE shard_distribution (
                origin text NOT NULL, bucket bigint NOT NULL, keys bigint NOT NULL, events bigint NOT NULL,
                PRIMARY KEY (origin, bucket)
            )",
            "CREATE TABLE shard_distribution (
                origin TEXT NOT NULL, bucket INTEGER NOT NULL, keys INTEGER NOT NULL, events INTEGER NOT NULL,
                PRIMARY KEY (origin, bucket)
            ) WITHOUT ROWID;",
        )
    }

    fn tables(&self) -> &'static [ReadTable] {
        &[ReadTable { name: "shard_distribution", columns: &["origin", "bucket", "keys", "events"] }]
    }

    fn handles(&self, _event_type: &str) -> bool {
        true
    }

    async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError> {
        let mut sums: BTreeMap<(String, u16), [i64; 2]> = BTreeMap::new();
        for event in batch {
            let sum = sums.entry((event.origin.to_string(), event.bucket.get())).or_default();
            sum[0] += i64::from(event.n == 1);
            sum[1] += 1;
        }
        const ADD: &str = "INSERT INTO shard_distribution VALUES (?, ?, ?, ?) ON CONFLICT (origin, bucket) DO UPDATE SET \
                           keys = shard_distribution.keys + excluded.keys, events = shard_distribution.events + excluded.events";
        let add = |((origin, bucket), sum): ((String, u16), [i64; 2])| {
            Statement::same(ADD).bind(origin).bind(bucket).bind_all(sum.map(Into::into))
        };
        let statements: Vec<Statement> = sums.into_iter().map(add).collect();
        tx.hop(&statements).await?;
        Ok(())
    }
}

/// One origin.
#[derive(Clone, Debug, Serialize)]
pub struct DistributionLine {
    /// A shard, or the control database.
    pub origin: String,
    /// Home keys.
    pub keys: u64,
    /// Events.
    pub events: u64,
    /// Buckets with at least one key.
    pub buckets: u64,
}

/// Every origin.
///
/// # Errors
/// [`QueryError`].
pub async fn distribution(store: &ReadStore) -> Result<Vec<DistributionLine>, QueryError> {
    const SELECT: &str =
        "SELECT origin, SUM(keys), SUM(events), COUNT(*) FROM shard_distribution GROUP BY origin ORDER BY origin";
    let line = |row: &Row| {
        let (keys, events, buckets) = (row.count(1)?, row.count(2)?, row.count(3)?);
        Ok(DistributionLine { origin: row.text(0)?.to_owned(), keys, events, buckets })
    };
    store.query(Statement::same(SELECT)).await?.iter().map(line).collect()
}
