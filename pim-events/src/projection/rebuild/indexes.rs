//! Indexes that a read model's script has got since its tables were made.

use std::collections::BTreeSet;

use pim_data::backend::{DbError, SqlPair, Statement, Transaction};

use super::green::Green;
use super::pages::plain;
use crate::projection::ReadTable;

/// Those of a table: their names, and what makes them.
const INDEXES: SqlPair = SqlPair::of(
    "SELECT indexname::text AS name, indexdef AS sql FROM pg_indexes WHERE schemaname = current_schema() AND tablename::text = ?
     ORDER BY 1",
    "SELECT name, sql FROM sqlite_schema
     WHERE type = 'index' AND tbl_name = ? COLLATE NOCASE AND sql IS NOT NULL ORDER BY 1",
);

/// The names that indexes have already, of any table: they are one name's in a schema, or a file.
const TAKEN: SqlPair = SqlPair::of(
    "SELECT c.relname::text AS name FROM pg_class c WHERE c.relnamespace = (SELECT n.oid FROM pg_namespace n
       WHERE n.nspname = current_schema())",
    "SELECT lower(name) AS name FROM sqlite_schema",
);

/// Makes the indexes of the new table that the live one lacks, which keeps its own: somebody may have added them by hand. A name that
/// something else has is told: the live table never got that index either.
pub(super) async fn add_missing(green: &Green, tx: &mut Transaction, table: &ReadTable) -> Result<(), DbError> {
    let is_folded = green.schema().is_some() && !table.name.starts_with('"');
    let name = if is_folded { table.name.to_lowercase() } else { plain(table.name) };
    let (mut live, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for row in tx.query(Statement::of(INDEXES).bind(name.as_str())).await? {
        live.insert(as_kept(green, row.text(0)?));
    }
    for row in tx.query(Statement::of(TAKEN)).await? {
        taken.insert(row.text(0)?.to_owned());
    }
    for row in green.store.db().query(Statement::of(INDEXES).bind(name.as_str())).await? {
        let index = as_kept(green, row.text(0)?);
        if !taken.contains(&index) {
            tx.script(&of_live(row.text(1)?, green.schema())).await?;
        } else if !live.contains(&index) {
            pim_core::warn!("rebuild.index_name_taken", table = table.name);
        }
    }
    Ok(())
}

/// A name as it is told from others.
fn as_kept(green: &Green, index: &str) -> String {
    if green.schema().is_some() { index.to_owned() } else { index.to_ascii_lowercase() }
}

/// What makes an index of the new tables' schema makes one of the live table without it.
fn of_live(makes: &str, schema: Option<&str>) -> String {
    let Some(schema) = schema else { return makes.to_owned() };
    // Of a partitioned table each partition would need its own by hand.
    let makes = makes.replacen(&format!(" ON ONLY {schema}."), " ON ", 1);
    makes.replacen(&format!(" ON {schema}."), " ON ", 1)
}
