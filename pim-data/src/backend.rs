//! The one room that speaks to a database driver: values, rows, statements, and databases in files.

mod conn;
mod db;
mod group;
mod sql;
mod value;

pub use conn::{Conn, ReadGuard, Transaction};
pub use db::{Db, DbError, DbSettings};
pub(crate) use group::{End, Member};
pub use sql::{SqlPair, Statement};
pub use value::{ColumnError, Row, Value};
