//! PostgreSQL: a server behind a name, its connections opened by tasks of their own and bounded in number and time.

mod codec;
mod conn;
mod db;
mod pool;
mod refusal;

pub(super) use db::{Db, ReadGuard, Transaction};
