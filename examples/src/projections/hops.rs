//! The hops of a request behind the commit: when each event was written, published and applied.

use async_trait::async_trait;
use pim_core::clock::Timestamp;
use pim_data::backend::{Row, SqlPair, Statement};
use pim_events::{ApplyError, Event, Projection, ReadStore, ReadTable, ReadTx};
use serde::Serialize;
use uuid::Uuid;

use super::sight::QueryError;

/// The name of the projection that keeps hops.
pub const HOPS: &str = "journey_hops";

/// Folds every event.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hops;

#[async_trait]
impl Projection for Hops {
    fn name(&self) -> &'static str {
        HOPS
    }

    fn schema(&self) -> SqlPair {
        // By `home` a run's summary counts in pages. When it was applied is this store's own knowledge: a default, not content, so a rebuild may differ in it.
        SqlPair::of(
            "CREATE TABLE journey_hops (
                event_id uuid PRIMARY KEY, request_id uuid NOT NULL, cause uuid, event_type text NOT NULL, home uuid NOT NULL,
                n bigint NOT NULL, origin text NOT NULL, seq bigint NOT NULL, trace text NOT NULL, committed_at bigint NOT NULL,
                published_at bigint,
                applied_at bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
            );
            CREATE INDEX journey_hops_request ON journey_hops (request_id, committed_at);
            CREATE INDEX journey_hops_home ON journey_hops (home);",
            "CREATE TABLE journey_hops (
                event_id BLOB PRIMARY KEY, request_id BLOB NOT NULL, cause BLOB, event_type TEXT NOT NULL, home BLOB NOT NULL,
                n INTEGER NOT NULL, origin TEXT NOT NULL, seq INTEGER NOT NULL, trace TEXT NOT NULL, committed_at INTEGER NOT NULL,
                published_at INTEGER, applied_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER))
            ) WITHOUT ROWID;
            CREATE INDEX journey_hops_request ON journey_hops (request_id, committed_at);
            CREATE INDEX journey_hops_home ON journey_hops (home);",
        )
    }

    fn tables(&self) -> &'static [ReadTable] {
        const COLUMNS: &[&str] = &[
            "event_id",
            "request_id",
            "cause",
            "event_type",
            "home",
            "n",
            "origin",
            "seq",
            "trace",
            "committed_at",
            "published_at",
        ];
        &[ReadTable { name: "journey_hops", columns: COLUMNS }]
    }

    fn handles(&self, _event_type: &str) -> bool {
        true
    }

    async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError> {
        const INSERT: &str = "INSERT INTO journey_hops (event_id, request_id, cause, event_type, home, n, origin, seq, trace, \
                              committed_at, published_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        let enter = |event: &Event| {
            let insert = Statement::same(INSERT).bind(event.id).bind(event.correlation.uuid()).bind(event.causation);
            let insert = insert.bind(event.event_type.as_str()).bind(event.home).bind(event.n);
            let insert = insert.bind(event.origin.to_string()).bind(event.seq);
            insert.bind(event.trace.trace_id().to_string()).bind(event.time).bind(event.published_at)
        };
        let statements: Vec<Statement> = batch.iter().map(enter).collect();
        tx.hop(&statements).await?;
        Ok(())
    }
}

/// One event of a request, with its times.
#[derive(Clone, Debug, Serialize)]
pub struct Hop {
    /// The event.
    pub event_id: Uuid,
    /// The event that caused it.
    pub cause: Option<Uuid>,
    /// What happened.
    pub event: String,
    /// With whose record.
    pub home: Uuid,
    /// Its number there.
    pub n: u64,
    /// Which outbox it left from.
    pub origin: String,
    /// Its place in that outbox.
    pub seq: u64,
    /// Its trace.
    pub trace_id: String,
    /// When the unit of work committed.
    pub committed_at: Timestamp,
    /// When the bus took it.
    pub published_at: Option<Timestamp>,
    /// When this store applied it.
    pub applied_at: Timestamp,
}

/// Most hops of a request that are told.
pub const HOPS_MAX: usize = 1_000;

/// The hops of a request, in the order of their commits, at most [`HOPS_MAX`].
///
/// # Errors
/// [`QueryError`].
pub async fn hops_of(store: &ReadStore, request: Uuid) -> Result<Vec<Hop>, QueryError> {
    const SELECT: &str = "SELECT event_id, cause, event_type, home, n, origin, seq, trace, committed_at, published_at, applied_at \
                          FROM journey_hops WHERE request_id = ? ORDER BY committed_at, n LIMIT ?";
    let hop = |row: &Row| {
        Ok(Hop {
            event_id: row.uuid(0)?,
            cause: row.uuid_or_null(1)?,
            event: row.text(2)?.to_owned(),
            home: row.uuid(3)?,
            n: row.count(4)?,
            origin: row.text(5)?.to_owned(),
            seq: row.count(6)?,
            trace_id: row.text(7)?.to_owned(),
            committed_at: row.time(8)?,
            published_at: row.time(9).ok(),
            applied_at: row.time(10)?,
        })
    };
    let select = Statement::same(SELECT).bind(request).bind(HOPS_MAX as u64);
    store.query(select).await?.iter().map(hop).collect()
}
