//! Which tables go with a bucket, and in what order.

use crate::entity::{self, Table};
use crate::schema::Schema;

/// How a table's rows belong to a bucket.
#[derive(Clone, Copy, Debug)]
pub enum Belongs {
    /// By a column that holds the home key; a row changes only in units that number an event of its key.
    Key(&'static str),
    /// By a column `bucket`; rows are written once, and told apart by these columns.
    Bucket(&'static [&'static str]),
}

/// A table of another crate whose rows go with their bucket.
#[derive(Clone, Copy, Debug)]
pub struct MovedTable {
    /// Its name.
    pub name: &'static str,
    /// Every column that is copied.
    pub columns: &'static [&'static str],
    /// How its rows belong to a bucket. The column should be indexed.
    pub belongs: Belongs,
}

/// What a part of a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// An entity's rows, which other rows may refer to.
    Row,
    /// Their history: the rows' triggers write some too, so it is replaced after them.
    History,
    /// Anything else.
    Plain,
}

/// A table whose rows are found by home key.
#[derive(Clone, Debug)]
pub(super) struct KeyPart {
    pub(super) table: String,
    pub(super) key: String,
    pub(super) columns: Vec<String>,
    /// In which order rows are read, and so written.
    pub(super) order: String,
    pub(super) role: Role,
    /// An entity's rows and their history share a number: what one row and its past are is replaced together.
    pub(super) group: usize,
}

/// A table whose rows are found by bucket.
#[derive(Clone, Debug)]
pub(super) struct BucketPart {
    pub(super) table: &'static str,
    pub(super) columns: Vec<String>,
    pub(super) identity: &'static [&'static str],
}

/// Everything that moves.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) keys: Vec<KeyPart>,
    pub(super) buckets: Vec<BucketPart>,
}

impl Layout {
    pub(super) fn of(schema: &Schema) -> Self {
        let (entities, others) = schema.movable();
        let mut keys: Vec<KeyPart> = entities.iter().enumerate().map(|(group, table)| rows_of(table, group)).collect();
        keys.extend(entities.iter().enumerate().map(|(group, table)| history_of(table, group)));
        keys.push(plain("key_head", "key", &["key", "bucket", "n"], entities.len()));
        let idempotency = ["scope", "bucket", "body", "status", "answer", "n", "request_id", "created_at"];
        let mut buckets = vec![by_bucket("idempotency", &["scope"], &idempotency)];
        for other in others {
            match other.belongs {
                Belongs::Key(key) => {
                    let group = entities.len() + keys.len();
                    keys.push(plain(other.name, key, other.columns, group));
                }
                Belongs::Bucket(identity) => buckets.push(by_bucket(other.name, identity, other.columns)),
            }
        }
        Self { keys, buckets }
    }

    /// The entities' base tables.
    pub(super) fn rows(&self) -> impl DoubleEndedIterator<Item = &KeyPart> {
        self.keys.iter().filter(|part| part.role == Role::Row)
    }

    /// The tables whose length both ends must agree on: the entities' rows, and records with what tells one from another.
    pub(super) fn counted(&self) -> impl Iterator<Item = (&str, &'static [&'static str])> {
        let rows = self.rows().map(|part| (part.table.as_str(), [].as_slice()));
        rows.chain(self.buckets.iter().map(|part| (part.table, part.identity)))
    }
}

fn rows_of(table: &Table, group: usize) -> KeyPart {
    let columns = entity::all_columns(table).map(str::to_owned).collect();
    let (name, order) = (format!("{}_row", table.name), "id".to_owned());
    KeyPart { table: name, key: "home_key".to_owned(), columns, order, role: Role::Row, group }
}

fn history_of(table: &Table, group: usize) -> KeyPart {
    let columns = entity::all_columns(table).chain(["valid_from", "valid_to"]).map(str::to_owned).collect();
    let (name, order) = (format!("{}_history", table.name), "history_seq".to_owned());
    KeyPart { table: name, key: "home_key".to_owned(), columns, order, role: Role::History, group }
}

fn plain(table: &str, key: &str, columns: &[&str], group: usize) -> KeyPart {
    let columns = columns.iter().map(|&column| column.to_owned()).collect();
    let (table, key) = (table.to_owned(), key.to_owned());
    KeyPart { table, order: key.clone(), key, columns, role: Role::Plain, group }
}

fn by_bucket(table: &'static str, identity: &'static [&'static str], columns: &[&str]) -> BucketPart {
    BucketPart { table, columns: columns.iter().map(|&column| column.to_owned()).collect(), identity }
}

/// Buckets as SQL. Numbers, and so never anybody's input.
pub(super) fn list_of(buckets: &[pim_core::shard::Bucket]) -> String {
    buckets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// So many parameters.
pub(super) fn marks(count: usize) -> String {
    vec!["?"; count].join(", ")
}
