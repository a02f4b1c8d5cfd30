//! Comparing read models: counts, and a hash that does not depend on the order of rows.

use pim_data::backend::{Engine, Row, Transaction, Value};
use sha2::{Digest, Sha256};

use super::pages::Pages;
use crate::projection::{ReadTable, StoreError};

const PAGE_ROWS: u64 = 2000;

/// One table, in a few bytes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TableSummary {
    /// Its name.
    pub table: &'static str,
    /// How many rows it has.
    pub rows: u64,
    /// Sum of the rows' SHA-256, in hex: the same for the same rows in any order.
    pub hash: String,
}

/// Counts and hashes tables that nobody else writes meanwhile.
pub(super) async fn summarise(
    tx: &mut Transaction,
    engine: Engine,
    tables: &'static [ReadTable],
) -> Result<Vec<TableSummary>, StoreError> {
    let mut all = Vec::with_capacity(tables.len());
    for (index, table) in tables.iter().enumerate() {
        let mut pages = Pages::open(tx, engine, (index, table), PAGE_ROWS).await?;
        let (mut rows, mut sum) = (0_u64, [0_u128; 2]);
        loop {
            let page = pages.next(tx).await?;
            if page.is_empty() {
                break;
            }
            for row in &page {
                let digest = digest(row, table.columns.len());
                for (half, total) in digest.chunks_exact(16).zip(&mut sum) {
                    *total = total.wrapping_add(u128::from_be_bytes(half.try_into().unwrap_or_default()));
                }
            }
            rows += page.len() as u64;
        }
        pages.close(tx).await?;
        all.push(TableSummary { table: table.name, rows, hash: format!("{:032x}{:032x}", sum[0], sum[1]) });
    }
    Ok(all)
}

const ZERO: [u8; 8] = 0_i64.to_be_bytes();
const ONE: [u8; 8] = 1_i64.to_be_bytes();

fn digest(row: &Row, columns: usize) -> [u8; 32] {
    let mut hash = Sha256::new();
    for index in 0..columns {
        // Kind and length first, so that no two rows read the same.
        let (kind, bytes): (u8, &[u8]) = match row.get(index) {
            Value::Null => (0, &[]),
            Value::Int(number) => (1, &number.to_be_bytes()),
            // A boolean and a UUID read the same on an engine that has no such types.
            Value::Bool(flag) => (1, if *flag { &ONE } else { &ZERO }),
            Value::Text(text) | Value::Json(text) => (2, text.as_bytes()),
            Value::Bytes(bytes) => (3, bytes),
            Value::Uuid(uuid) => (3, uuid.as_bytes()),
        };
        hash.update([kind]);
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    }
    hash.finalize().into()
}
