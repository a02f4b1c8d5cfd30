//! Count and order-free checksum: what tells whether two shards hold the same rows.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use crate::backend::{Row, Value};

/// How many rows, and the sum of their digests, which no order changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) rows: u64,
    pub(super) sum: u128,
}

impl Tally {
    /// Adds a row's columns from `from` on.
    pub(super) fn add(&mut self, table: &str, row: &Row, from: usize) {
        self.add_some(table, row, from..row.len());
    }

    /// Adds a row's first columns.
    pub(super) fn add_first(&mut self, table: &str, row: &Row, count: usize) {
        self.add_some(table, row, 0..count);
    }

    fn add_some(&mut self, table: &str, row: &Row, columns: Range<usize>) {
        let mut hash = Sha256::new();
        hash.update(table.as_bytes());
        for index in columns {
            // Kind and length first, so that no two rows read the same.
            let mut put = |kind: u8, bytes: &[u8]| {
                hash.update([kind]);
                hash.update((bytes.len() as u64).to_be_bytes());
                hash.update(bytes);
            };
            match row.get(index) {
                Value::Null => put(0, &[]),
                Value::Int(number) => put(1, &number.to_be_bytes()),
                Value::Bool(flag) => put(1, &i64::from(*flag).to_be_bytes()),
                Value::Text(text) | Value::Json(text) => put(2, text.as_bytes()),
                Value::Bytes(bytes) => put(3, bytes),
                Value::Uuid(uuid) => put(3, uuid.as_bytes()),
            }
        }
        let digest: [u8; 32] = hash.finalize().into();
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        self.rows += 1;
        self.sum = self.sum.wrapping_add(u128::from_be_bytes(half));
    }

    /// Adds another tally.
    pub(super) fn join(&mut self, other: Self) {
        self.rows += other.rows;
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// The checksum as people compare it.
    pub(super) fn text(&self) -> String {
        format!("{:032x}", self.sum)
    }
}
