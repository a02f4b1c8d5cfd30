//! Periods of history that go: those that ended long enough ago.

use pim_core::clock::Timestamp;

use super::{Budget, retain};
use crate::backend::{Db, DbError, SqlPair, Statement};
use crate::entity::Table;

/// The table of an entity's history.
pub(super) fn name(table: &Table) -> String {
    format!("{}_history", table.name)
}

fn count_of(table: &Table) -> SqlPair {
    SqlPair::generated(format!("SELECT COUNT(*) FROM {} WHERE valid_to < ?", name(table)))
}

fn next_of(table: &Table) -> SqlPair {
    let table = name(table);
    SqlPair::generated(format!(
        "SELECT history_seq FROM {table} WHERE history_seq > ? AND valid_to < ? ORDER BY history_seq LIMIT ?"
    ))
}

fn prune_of(table: &Table) -> SqlPair {
    let table = name(table);
    SqlPair::generated(format!("DELETE FROM {table} WHERE history_seq > ? AND history_seq <= ? AND valid_to < ?"))
}

/// Every statement about one table.
pub(super) fn pairs(table: &Table) -> [SqlPair; 3] {
    [count_of(table), next_of(table), prune_of(table)]
}

/// How many periods ended before.
pub(super) async fn count(db: &Db, table: &Table, before: Timestamp) -> Result<u64, DbError> {
    let rows = db.query(Statement::of(count_of(table)).bind(before)).await?;
    rows.first().map_or(Ok(0), |row| Ok(row.count(0)?))
}

/// Removes them in the order in which they were written: how many have gone, and how many are left.
pub(super) async fn prune(
    db: &Db,
    table: &Table,
    before: Timestamp,
    budget: &mut Budget,
) -> Result<(u64, u64), DbError> {
    let (mut behind, mut gone) = (0_u64, 0_u64);
    while budget.batch() > 0 {
        let next = Statement::of(next_of(table)).bind(behind).bind(before).bind(budget.batch());
        let found = db.query(next).await?;
        let Some(last) = found.last() else { return Ok((gone, 0)) };
        let last = last.count(0)?;
        let prune = Statement::of(prune_of(table)).bind(behind).bind(last).bind(before);
        db.begin().await?.commit_with(vec![retain("history", before), prune]).await?;
        budget.spend(found.len() as u64);
        (behind, gone) = (last, gone + found.len() as u64);
    }
    Ok((gone, count(db, table, before).await?))
}
