//! Removing history and audit records whose time is over, so that the trail still verifies.
//!
//! A run verifies the trail first: what is broken is not purged, or its traces would go with it. Then it signs, outside of
//! the databases, the last record of each chain that will go, and only then removes, in batches of their own
//! transactions. Whoever is killed in between leaves records that may go already; the next run goes on. The newest record of
//! a chain always stays, because the next one is tied to it.
//!
//! ```no_run
//! # use pim_core::{context::RequestContext, rbac::{Permit, Write}};
//! # use pim_data::{cluster::Cluster, retention::{RetentionError, RetentionPolicy}};
//! # async fn f(cluster: Cluster, cx: RequestContext, permit: Permit<Write>) -> Result<(), RetentionError> {
//! let policy = RetentionPolicy::default();
//! println!("{} rows would go", cluster.plan_retention(&policy).await?.rows());
//! while cluster.run_retention(&cx, &permit, &policy).await?.left() > 0 {}
//! # Ok(())
//! # }
//! ```

mod error;
mod history;
mod trail;

pub use error::RetentionError;

use std::time::Duration;

use pim_core::clock::Timestamp;
use pim_core::context::RequestContext;
use pim_core::rbac::{Permit, Scope, Write};
use pim_core::shard::ShardId;
use serde::Serialize;

use self::trail::Lane;
use crate::audit::{Purge, Reason, VerifyReport};
use crate::backend::{ColumnError, DbError, Row, SqlPair, Statement};
use crate::cluster::{CONTROL, Cluster};
use crate::entity::Table;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Audit records are never kept for less.
pub const AUDIT_KEPT_MIN: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// History is never kept for less.
pub const HISTORY_KEPT_MIN: Duration = DAY;
/// Largest batch: a batch holds the embedded engine's writer.
pub const BATCH_ROWS_MAX: u32 = 5_000;

/// How long things are kept, and how much one run may remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// How long audit records are kept: 90 days unless told otherwise, never less.
    pub audit: Duration,
    /// How long periods of history are kept after their end: 365 days unless told otherwise, at least a day. What a row is
    /// now is always kept.
    pub history: Duration,
    /// Rows that one transaction removes, 1 to [`BATCH_ROWS_MAX`].
    pub batch_rows: u32,
    /// Rows that one run removes at most; the next one goes on.
    pub rows_max: u64,
}

impl Default for RetentionPolicy {
    fn default() -> Self {
        Self { audit: AUDIT_KEPT_MIN, history: 365 * DAY, batch_rows: 500, rows_max: 50_000 }
    }
}

impl RetentionPolicy {
    fn check(&self) -> Result<(), RetentionError> {
        let too_short = |what, asked: Duration, least: Duration| {
            let days = |duration: Duration| duration.as_secs() / DAY.as_secs();
            Err(RetentionError::TooShort { what, asked_days: days(asked), least_days: days(least) })
        };
        if self.audit < AUDIT_KEPT_MIN {
            return too_short("audit records", self.audit, AUDIT_KEPT_MIN);
        }
        if self.history < HISTORY_KEPT_MIN {
            return too_short("history", self.history, HISTORY_KEPT_MIN);
        }
        if !(1..=BATCH_ROWS_MAX).contains(&self.batch_rows) {
            return Err(RetentionError::Batch { most: BATCH_ROWS_MAX });
        }
        Ok(())
    }
}

/// What a run removed, or would.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RetentionReport {
    /// Whether nothing was removed because nothing should be.
    pub dry_run: bool,
    /// Audit records of before this instant go.
    pub audit_before: Timestamp,
    /// Periods of history that ended before this instant go.
    pub history_before: Timestamp,
    /// Number of the checkpoint with the tombstones that this run has signed; none when nothing new has to go.
    pub tombstone: Option<u64>,
    /// By database and table; those without such rows are left out.
    pub items: Vec<RetentionItem>,
}

/// Rows of one table of one database.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RetentionItem {
    /// Which shard; `None` for the control database.
    pub shard: Option<u16>,
    /// Which table.
    pub table: String,
    /// How many rows have gone; for a plan, how many would.
    pub rows: u64,
    /// How many rows are left for the next run.
    pub left: u64,
}

impl RetentionReport {
    /// Rows that have gone; for a plan, rows that would.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.items.iter().map(|item| item.rows).sum()
    }

    /// Rows that are left for the next run.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.items.iter().map(|item| item.left).sum()
    }

    fn of(dry_run: bool, policy: &RetentionPolicy, now: Timestamp) -> Self {
        let (audit_before, history_before) = (now.minus(policy.audit), now.minus(policy.history));
        Self { dry_run, audit_before, history_before, tombstone: None, items: Vec::new() }
    }

    fn add(&mut self, source: ShardId, table: &str, rows: u64, left: u64) {
        if rows + left > 0 {
            let shard = (source != CONTROL).then_some(source.0);
            self.items.push(RetentionItem { shard, table: table.to_owned(), rows, left });
        }
    }
}

/// From when on nothing was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Retained {
    /// Audit records since then are all there; `None` when none was ever removed.
    pub audit_since: Option<Timestamp>,
    /// Periods of history that ended since then are all there; `None` when none was ever removed.
    pub history_since: Option<Timestamp>,
}

impl Retained {
    /// Takes over what one database says, if that is later.
    pub(crate) fn note(&mut self, row: &Row) -> Result<(), ColumnError> {
        let since = Some(row.time(1)?);
        let known = if row.text(0)? == "audit" { &mut self.audit_since } else { &mut self.history_since };
        *known = since.max(*known);
        Ok(())
    }
}

/// How far a run may still go.
#[derive(Debug)]
struct Budget {
    batch: u64,
    left: u64,
}

impl Budget {
    /// Size of the next batch; zero when the run is over.
    fn batch(&self) -> u64 {
        self.batch.min(self.left)
    }

    fn spend(&mut self, rows: u64) {
        self.left = self.left.saturating_sub(rows);
    }
}

impl Cluster {
    /// Counts what [`Cluster::run_retention`] would remove; changes nothing.
    ///
    /// # Errors
    /// [`RetentionError`] for a policy out of its bounds, a database that does not answer, or
    /// [one](RetentionError::NotOwner) that this program may remove nothing from.
    pub async fn plan_retention(&self, policy: &RetentionPolicy) -> Result<RetentionReport, RetentionError> {
        policy.check()?;
        self.may_remove()?;
        let mut report = RetentionReport::of(true, policy, self.clock().now());
        let lanes = self.lanes_to_purge(report.audit_before).await?;
        for source in self.sources() {
            let rows = lanes.iter().filter(|lane| lane.source == source).map(Lane::rows).sum();
            report.add(source, "audit", rows, 0);
            let Some(shard) = self.shard(source) else { continue };
            for table in self.schema().tables_of(source == CONTROL) {
                let rows = history::count(shard.governed(), table, report.history_before).await;
                report.add(source, &history::name(table), rows.map_err(RetentionError::of(source))?, 0);
            }
        }
        Ok(report)
    }

    /// Removes what is past its time, at most [`RetentionPolicy::rows_max`] rows; run it again while something is left. The
    /// permit must reach every row. Neither buckets move nor is a backup taken meanwhile.
    ///
    /// # Errors
    /// [`RetentionError`]; what has gone by then had its tombstone, and running it again goes on.
    pub async fn run_retention(
        &self,
        cx: &RequestContext,
        permit: &Permit<Write>,
        policy: &RetentionPolicy,
    ) -> Result<RetentionReport, RetentionError> {
        policy.check()?;
        if *permit.scope() != Scope::All {
            return Err(RetentionError::Scope);
        }
        self.may_remove()?;
        let _alone = self.0.directory.moving()?.ok_or(RetentionError::Busy)?;
        let verified = self.verify_audit().await?;
        if let Some(finding) = verified.findings.into_iter().next() {
            return Err(RetentionError::Broken { finding });
        }
        let mut report = RetentionReport::of(false, policy, self.clock().now());
        let lanes = self.lanes_to_purge(report.audit_before).await?;
        let ends: Vec<String> = lanes.iter().filter(|lane| lane.is_new).map(Lane::text).collect();
        if !ends.is_empty() {
            let (user, request) = (cx.actor().subject().as_str().to_owned(), cx.request_id().to_string());
            let purge = Purge { before: report.audit_before.as_micros(), user, request, ends };
            report.tombstone = Some(self.sign_audit(Some(Reason::Purge(purge))).await?);
        }
        let mut budget = Budget { batch: policy.batch_rows.into(), left: policy.rows_max };
        for source in self.sources() {
            let Some(shard) = self.shard(source) else { continue };
            let lanes = lanes.iter().filter(|lane| lane.source == source);
            let (mut rows, mut left) = (0, 0);
            for lane in lanes {
                let gone = lane.purge(shard.governed(), report.audit_before, &mut budget).await;
                let gone = gone.map_err(RetentionError::of(source))?;
                (rows, left) = (rows + gone, left + lane.rows() - gone);
            }
            report.add(source, "audit", rows, left);
            for table in self.schema().tables_of(source == CONTROL) {
                let gone = history::prune(shard.governed(), table, report.history_before, &mut budget).await;
                let (rows, left) = gone.map_err(RetentionError::of(source))?;
                report.add(source, &history::name(table), rows, left);
            }
        }
        Ok(report)
    }

    /// From when on audit and history of all databases are complete.
    ///
    /// # Errors
    /// [`DbError`] of the first database that fails, also where one is not open here: it may have let go of more.
    pub async fn retained(&self) -> Result<Retained, DbError> {
        self.is_whole().await?;
        let mut retained = Retained::default();
        for source in self.sources() {
            let Some(db) = self.database(source) else { continue };
            for row in db.query(Statement::of(RETAINED)).await? {
                retained.note(&row)?;
            }
        }
        Ok(retained)
    }

    /// Whoever may not would see no row of history, and have signed that records go before he is told.
    fn may_remove(&self) -> Result<(), RetentionError> {
        let is_denied = |source: &ShardId| self.shard(*source).is_some_and(|shard| !shard.is_governed());
        self.sources().find(is_denied).map_or(Ok(()), |source| Err(RetentionError::NotOwner(source)))
    }

    async fn lanes_to_purge(&self, before: Timestamp) -> Result<Vec<Lane>, RetentionError> {
        let signed = self.checkpointed(&mut VerifyReport::default()).await?;
        let mut lanes = Vec::new();
        for source in self.sources() {
            let Some(db) = self.database(source) else { continue };
            let found = trail::lanes(&db, source, before, &signed.tombstones).await;
            lanes.extend(found.map_err(RetentionError::of(source))?);
        }
        Ok(lanes)
    }
}

pub(crate) const RETAINED: SqlPair = SqlPair::same("SELECT what, since FROM pim_retained");
const RETAIN: SqlPair = SqlPair::same(
    "INSERT INTO pim_retained AS r (what, since) VALUES (?, ?) \
     ON CONFLICT (what) DO UPDATE SET since = excluded.since WHERE excluded.since > r.since",
);

/// Writes down from when on a database is complete, before anything older goes.
fn retain(what: &'static str, since: Timestamp) -> Statement {
    Statement::of(RETAIN).bind(what).bind(since)
}

/// Every statement of this room.
pub(crate) fn pairs(tables: &[&'static Table]) -> Vec<SqlPair> {
    let of_tables = tables.iter().flat_map(|table| history::pairs(table));
    [RETAINED, RETAIN].into_iter().chain(trail::pairs()).chain(of_tables).collect()
}
