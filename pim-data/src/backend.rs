//! The one room that speaks to database drivers: values, rows, statements, and databases, the same for either engine.

mod conn;
mod db;
mod describe;
mod dial;
mod error;
#[cfg(feature = "postgres")]
mod postgres;
mod resolver;
mod secret;
mod sql;
mod sqlite;
mod value;

pub(crate) use conn::Snapshot;
pub use conn::{ReadGuard, Transaction};
pub use db::{Db, DbSettings, Engine, ServerSettings};
pub use describe::{Described, Form};
pub(crate) use dial::{Demand, Dial};
pub use error::{DbError, Driver, NotLetIn};
pub use resolver::{Resolver, SystemResolver};
pub use secret::{EnvSecrets, FileSecrets, SecretError, Secrets};
pub(crate) use sql::numbered;
pub use sql::{SqlPair, Statement};
pub(crate) use sqlite::{End, Member};
pub use value::{ColumnError, Row, Value};
