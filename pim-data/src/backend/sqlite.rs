//! SQLite: a database in a file, with one writer that shares its commits and a bounded set of readers.

mod conn;
mod db;
mod group;

pub(super) use conn::{Conn, ReadGuard, Transaction};
pub(super) use db::Db;
pub(crate) use group::{End, Member};
