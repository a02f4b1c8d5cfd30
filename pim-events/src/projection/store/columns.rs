//! What a read model says of its tables, and what they have.

use std::collections::BTreeSet;

use pim_data::backend::{Engine, SqlPair, Statement, Transaction};

use super::super::rebuild::plain;
use super::super::{Projection, ReadTable};
use super::StoreError;

/// The columns of a table, hidden and generated ones too.
const COLUMNS: SqlPair = SqlPair::of(
    "SELECT column_name::text AS name FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = ?",
    "SELECT name FROM pragma_table_xinfo(?)",
);

/// Refuses a table or column that the read model names and the database has not: its script was changed at the same version, or
/// `tables` was mistyped. Both would show at the first event, as a key that is parked.
pub(super) async fn check(projection: &dyn Projection, engine: Engine, tx: &mut Transaction) -> Result<(), StoreError> {
    for table in projection.tables() {
        let there = columns_of(projection, table, engine, tx).await?;
        if !is_told(table.name) {
            continue;
        }
        let (name, table, columns) = (projection.name(), table.name, table.columns);
        if there.is_empty() {
            return Err(StoreError::Lacks { name, table, column: "*" });
        }
        let mut told = columns.iter().copied().filter(|column| is_told(column) && !ROW_NUMBERS.contains(column));
        let missing = told.find(|column| !there.contains(&plain(column).to_lowercase()));
        if let Some(column) = missing {
            return Err(StoreError::Lacks { name, table, column });
        }
    }
    check_scopes(projection, engine, tx).await
}

/// Refuses a scope over what is not there: a query by it would fail, for whoever asks first.
async fn check_scopes(projection: &dyn Projection, engine: Engine, tx: &mut Transaction) -> Result<(), StoreError> {
    for scope in projection.scopes() {
        let lacks = |column| StoreError::Lacks { name: projection.name(), table: scope.name, column };
        let table = projection.tables().iter().find(|table| table.name == scope.name);
        let there = columns_of(projection, table.ok_or_else(|| lacks("*"))?, engine, tx).await?;
        let mut told = [scope.home, scope.facility].into_iter().flatten();
        if let Some(column) = told.find(|column| !there.contains(&plain(column).to_lowercase())) {
            return Err(lacks(column));
        }
    }
    Ok(())
}

/// What SQLite calls the number of a row, which is no column of its table.
const ROW_NUMBERS: [&str; 3] = ["rowid", "_rowid_", "oid"];

/// Whether a name is written plainly or in double quotes: of others nothing is known here.
fn is_told(name: &str) -> bool {
    let is_word = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_word || (name.len() > 1 && name.starts_with('"') && name.ends_with('"'))
}

async fn columns_of(
    projection: &dyn Projection,
    table: &ReadTable,
    engine: Engine,
    tx: &mut Transaction,
) -> Result<BTreeSet<String>, StoreError> {
    let failed = |source| StoreError::Install { name: projection.name(), source };
    let is_folded = engine == Engine::Postgres && !table.name.starts_with('"');
    let name = if is_folded { table.name.to_lowercase() } else { plain(table.name) };
    let rows = tx.query(Statement::of(COLUMNS).bind(name.as_str())).await.map_err(failed)?;
    rows.iter().map(|row| Ok(row.text(0).map_err(|error| failed(error.into()))?.to_lowercase())).collect()
}
