//! Indexes that a read model's script has got since its tables were made.

use pim_data::backend::{DbError, SqlPair, Statement, Transaction};

use super::green::Green;
use super::pages::plain;
use crate::projection::ReadTable;

/// Those of a table: their names, and what makes them.
const INDEXES: SqlPair = SqlPair::of(
    "SELECT indexname::text, indexdef FROM pg_indexes WHERE schemaname = current_schema() AND tablename::text = ?
     ORDER BY 1",
    "SELECT name, sql FROM sqlite_schema
     WHERE type = 'index' AND tbl_name = ? COLLATE NOCASE AND sql IS NOT NULL ORDER BY 1",
);

/// Makes the indexes of the new table that the live one lacks, which keeps its own: somebody may have added them by hand.
pub(super) async fn add_missing(green: &Green, tx: &mut Transaction, table: &ReadTable) -> Result<(), DbError> {
    let is_folded = green.schema().is_some() && !table.name.starts_with('"');
    let name = if is_folded { table.name.to_lowercase() } else { plain(table.name) };
    let asked = || Statement::of(INDEXES).bind(name.as_str());
    let mut live = Vec::new();
    for row in tx.query(asked()).await? {
        live.push(row.text(0)?.to_owned());
    }
    for row in green.store.db().query(asked()).await? {
        if !live.iter().any(|name| row.text(0).is_ok_and(|new| new == name)) {
            tx.script(&of_live(row.text(1)?, green.schema())).await?;
        }
    }
    Ok(())
}

/// What makes an index of the new tables' schema makes one of the live table without it.
fn of_live(makes: &str, schema: Option<&str>) -> String {
    schema.map_or_else(|| makes.to_owned(), |schema| makes.replacen(&format!(" ON {schema}."), " ON ", 1))
}
