//! PostgreSQL: a server behind a name, its connections opened by tasks of their own and bounded in number and time.

mod codec;
mod conn;
mod db;
mod opening;
mod pool;
mod refusal;
mod target;

pub(super) use db::{Db, ReadGuard, Transaction};
