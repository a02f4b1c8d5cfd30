//! One database in one snapshot, read page by page.

use pim_core::shard::{Bucket, Lane, ShardId};
use serde_json::Value as Json;
use uuid::Uuid;

use super::ledger::{Change, Ledger, Side};
use crate::audit::chain::hex;
use crate::audit::verify::{Chains, RECORDS};
use crate::backend::{Db, DbError, Engine, Row, Snapshot, SqlPair, Statement, Value};
use crate::cluster::CONTROL;
use crate::entity::{Table, digest_of, select_list};
use crate::retention::{RETAINED, Retained};

/// Buckets whose rows are to be read here.
const OWNED: SqlPair = SqlPair::same("SELECT bucket FROM pim_bucket_owned WHERE state IN ('owned', 'draining')");
/// For this snapshot alone: history is read as somebody who may see all of it.
const SEE_ALL: SqlPair = SqlPair::postgres("SELECT set_config('app.scope', 'all', true)");
const NUMBERS: SqlPair = SqlPair::of(
    "SELECT bucket, key, n FROM key_head WHERE bucket IN (SELECT value::bigint FROM jsonb_array_elements_text(?)) \
     AND (bucket, key) > (?, ?) ORDER BY bucket, key LIMIT ?",
    "SELECT bucket, key, n FROM key_head WHERE bucket IN (SELECT value FROM json_each(?)) \
     AND (bucket, key) > (?, ?) ORDER BY bucket, key LIMIT ?",
);

/// As far as a clock is set back at most, in microseconds.
const SKEW_MAX_US: i64 = 3_600_000_000;
/// Columns of a row before its own.
const STANDARD: usize = 6;

fn history_of(table: &Table) -> SqlPair {
    let columns = select_list(table);
    SqlPair::generated(format!(
        "SELECT {columns}, r.bucket, r.history_seq, r.valid_from, r.valid_to FROM {}_history r \
         WHERE r.history_seq > ? AND (r.valid_from >= ? OR r.valid_to IS NULL) ORDER BY r.history_seq LIMIT ?",
        table.name
    ))
}

fn rows_of(table: &Table) -> SqlPair {
    let columns = select_list(table);
    SqlPair::generated(format!(
        "SELECT {columns}, r.bucket FROM {}_row r WHERE r.id > ? ORDER BY r.id LIMIT ?",
        table.name
    ))
}

pub(super) fn pairs(tables: &[&'static Table]) -> Vec<SqlPair> {
    let of_tables = tables.iter().flat_map(|table| [history_of(table), rows_of(table)]);
    [OWNED, SEE_ALL, NUMBERS].into_iter().chain(of_tables).collect()
}

/// A snapshot of one database.
#[derive(Debug)]
pub(super) struct View {
    shard: Option<u16>,
    snapshot: Snapshot,
    owned: Vec<bool>,
    retained: Retained,
}

impl View {
    pub(super) async fn of(db: &Db, source: ShardId) -> Result<Self, DbError> {
        let mut snapshot = db.hold().await?;
        if db.engine() == Engine::Postgres {
            snapshot.query(Statement::of(SEE_ALL)).await?;
        }
        let mut owned = vec![false; Bucket::COUNT];
        for row in snapshot.query(Statement::of(OWNED)).await? {
            if let Some(is_owned) = owned.get_mut(usize::try_from(row.count(0)?).unwrap_or(usize::MAX)) {
                *is_owned = true;
            }
        }
        let mut retained = Retained::default();
        for row in snapshot.query(Statement::of(RETAINED)).await? {
            retained.note(&row)?;
        }
        Ok(Self { shard: (source != CONTROL).then_some(source.0), snapshot, owned, retained })
    }

    pub(super) const fn retained(&self) -> Retained {
        self.retained
    }

    fn is_owned(&self, bucket: i64) -> bool {
        usize::try_from(bucket).ok().and_then(|bucket| self.owned.get(bucket).copied()).unwrap_or_default()
    }

    /// The records of a lane.
    pub(super) async fn records(
        &mut self,
        lane: Lane,
        page: i64,
        mut chains: Option<&mut Chains<'_>>,
        ledger: &mut Ledger,
    ) -> Result<(), DbError> {
        let mut behind = 0_u64;
        loop {
            let asked = Statement::of(RECORDS).bind(lane.get()).bind(behind).bind(page);
            let rows = self.snapshot.query(asked).await?;
            for row in &rows {
                let body: Json = serde_json::from_str(row.text(4)?).unwrap_or_default();
                behind = row.count(1)?;
                if let Some(chains) = chains.as_deref_mut() {
                    chains.check(self.shard, row, &body)?;
                }
                ledger.record(self.shard, row.uuid(8)?, behind, &body);
            }
            if is_last(&rows, page) {
                return Ok(());
            }
        }
    }

    /// The numbers of the home keys of a lane.
    pub(super) async fn numbers(&mut self, lane: Lane, page: i64, ledger: &mut Ledger) -> Result<(), DbError> {
        let lane = u16::from(lane.get());
        let buckets: Vec<u16> = (0..64).map(|place| place * 64 + lane).collect();
        let buckets = Value::Json(Json::from(buckets).to_string());
        let mut behind = (-1_i64, Uuid::nil());
        loop {
            let asked = Statement::of(NUMBERS).bind(buckets.clone()).bind(behind.0).bind(behind.1).bind(page);
            let rows = self.snapshot.query(asked).await?;
            for row in &rows {
                behind = (row.int(0)?, row.uuid(1)?);
                if let (true, Some(bucket)) = (self.is_owned(behind.0), bucket(behind.0)) {
                    ledger.number(self.shard, bucket, behind.1, row.count(2)?);
                }
            }
            if is_last(&rows, page) {
                return Ok(());
            }
        }
    }

    /// The periods of an entity's history.
    pub(super) async fn history(
        &mut self,
        table: &'static Table,
        page: i64,
        ledger: &mut Ledger,
    ) -> Result<(), DbError> {
        let own = STANDARD + table.columns.len();
        let mut behind = 0_u64;
        loop {
            let asked = Statement::of(history_of(table)).bind(behind).bind(ledger.since()).bind(page);
            let rows = self.snapshot.query(asked).await?;
            for row in &rows {
                behind = row.count(own + 1)?;
                if !self.is_owned(row.int(own)?) {
                    continue;
                }
                let digest = digest(table, row);
                let change = change(table, row, &digest)?;
                if is_kept(row.int(own + 2)?, change.at, ledger.since()) {
                    ledger.add(Side::History, &change, 0);
                }
                if *row.get(own + 3) == Value::Null {
                    ledger.add(Side::Open, &change, 0);
                }
            }
            if is_last(&rows, page) {
                return Ok(());
            }
        }
    }

    /// The rows of an entity.
    pub(super) async fn rows(&mut self, table: &'static Table, page: i64, ledger: &mut Ledger) -> Result<(), DbError> {
        let mut behind = Uuid::nil();
        loop {
            let rows = self.snapshot.query(Statement::of(rows_of(table)).bind(behind).bind(page)).await?;
            for row in &rows {
                behind = row.uuid(0)?;
                if self.is_owned(row.int(STANDARD + table.columns.len())?) {
                    let digest = digest(table, row);
                    ledger.add(Side::Row, &change(table, row, &digest)?, 0);
                }
            }
            if is_last(&rows, page) {
                return Ok(());
            }
        }
    }
}

/// Whether a period is compared: it began since then, and was not written before by a clock that was set back. Rows that are
/// changed by hand keep the instant of the unit before, and are compared.
fn is_kept(valid_from: i64, written_at: i64, since: i64) -> bool {
    valid_from >= since && (written_at >= since || valid_from - written_at > SKEW_MAX_US)
}

fn is_last(rows: &[Row], page: i64) -> bool {
    rows.len() < usize::try_from(page).unwrap_or(usize::MAX)
}

fn bucket(number: i64) -> Option<Bucket> {
    Bucket::new(u16::try_from(number).ok()?).ok()
}

/// Of what a row holds; of what it cannot hold, something that no record tells of.
fn digest(table: &'static Table, row: &Row) -> String {
    digest_of(table, row, STANDARD).map_or_else(|_| String::new(), |digest| hex(&digest))
}

fn change<'d>(table: &'static Table, row: &Row, digest: &'d str) -> Result<Change<'d>, DbError> {
    Ok(Change { entity: table.name, id: row.uuid(0)?, version: row.count(3)?, at: row.int(5)?, digest })
}
