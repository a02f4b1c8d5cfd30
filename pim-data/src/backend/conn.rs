//! Transactions, reads and held snapshots, dispatched to the engine.

use tokio::time::Instant;

#[cfg(feature = "postgres")]
use super::postgres;
use super::{DbError, Row, Statement, sqlite};

/// A transaction. Dropping it rolls back.
///
/// On the embedded engine it is the only writer of its file. On PostgreSQL others write at the same time, under READ
/// COMMITTED: what must not change meanwhile has to be locked. There a failed statement also fails the transaction.
#[derive(Debug)]
#[must_use = "a transaction that is dropped is rolled back"]
pub struct Transaction(pub(super) OpenTransaction);

#[derive(Debug)]
pub(super) enum OpenTransaction {
    Sqlite(sqlite::Transaction),
    #[cfg(feature = "postgres")]
    Postgres(postgres::Transaction),
}

impl Transaction {
    /// Runs one statement.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub async fn query(&mut self, statement: Statement) -> Result<Vec<Row>, DbError> {
        match &mut self.0 {
            OpenTransaction::Sqlite(tx) => tx.query(statement).await,
            #[cfg(feature = "postgres")]
            OpenTransaction::Postgres(tx) => tx.query(statement).await,
        }
    }

    /// Runs statements in order: in one hop on the embedded engine, one a trip on a server.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub async fn hop(&mut self, statements: &[Statement]) -> Result<Vec<Vec<Row>>, DbError> {
        match &mut self.0 {
            OpenTransaction::Sqlite(tx) => tx.hop(statements).await,
            #[cfg(feature = "postgres")]
            OpenTransaction::Postgres(tx) => tx.hop(statements).await,
        }
    }

    /// Runs a script without parameters.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub async fn script(&mut self, text: &str) -> Result<(), DbError> {
        match &mut self.0 {
            OpenTransaction::Sqlite(tx) => tx.script(text).await,
            #[cfg(feature = "postgres")]
            OpenTransaction::Postgres(tx) => tx.script(text).await,
        }
    }

    /// Runs the last statements and commits.
    ///
    /// # Errors
    /// [`DbError`] as the engine says; nothing was committed then, unless [`DbError::is_ambiguous`].
    pub async fn commit_with(self, last: Vec<Statement>) -> Result<Vec<Vec<Row>>, DbError> {
        match self.0 {
            OpenTransaction::Sqlite(tx) => tx.commit_with(last).await,
            #[cfg(feature = "postgres")]
            OpenTransaction::Postgres(tx) => tx.commit_with(last).await,
        }
    }

    /// Commits.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub async fn commit(self) -> Result<(), DbError> {
        self.commit_with(Vec::new()).await.map(drop)
    }

    /// Rolls back now rather than when the connection is next used.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub async fn rollback(self) -> Result<(), DbError> {
        match self.0 {
            OpenTransaction::Sqlite(tx) => tx.rollback().await,
            #[cfg(feature = "postgres")]
            OpenTransaction::Postgres(tx) => tx.rollback().await,
        }
    }
}

/// A reading connection, lent for a while.
#[derive(Debug)]
pub struct ReadGuard(pub(super) Reader);

#[derive(Debug)]
pub(super) enum Reader {
    Sqlite(sqlite::ReadGuard),
    #[cfg(feature = "postgres")]
    Postgres(postgres::ReadGuard),
}

impl ReadGuard {
    /// Runs one statement.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub async fn query(&mut self, statement: Statement) -> Result<Vec<Row>, DbError> {
        match &mut self.0 {
            Reader::Sqlite(reader) => reader.query(statement).await,
            #[cfg(feature = "postgres")]
            Reader::Postgres(reader) => reader.query(statement).await,
        }
    }

    /// Runs one statement and returns its first row; the engine stops there.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub async fn first(&mut self, statement: Statement) -> Result<Option<Row>, DbError> {
        match &mut self.0 {
            Reader::Sqlite(reader) => reader.first(statement).await,
            #[cfg(feature = "postgres")]
            Reader::Postgres(reader) => reader.first(statement).await,
        }
    }

    /// Runs statements in order within one snapshot.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub async fn snapshot(&mut self, statements: &[Statement]) -> Result<Vec<Vec<Row>>, DbError> {
        match &mut self.0 {
            Reader::Sqlite(reader) => reader.snapshot(statements).await,
            #[cfg(feature = "postgres")]
            Reader::Postgres(reader) => reader.snapshot(statements).await,
        }
    }
}

impl ReadGuard {
    /// Begins a transaction and calls a function with one JSON argument in the same trip. For servers alone.
    ///
    /// # Errors
    /// [`DbError::NoText`] on the embedded engine, [`DbError::Late`], or as the engine says.
    #[cfg_attr(
        not(feature = "postgres"),
        expect(clippy::unused_async, unused_variables, reason = "the same form with and without the feature")
    )]
    pub(crate) async fn begin_calling(
        self,
        until: Instant,
        function: &'static str,
        argument: &str,
    ) -> Result<(Transaction, Vec<Row>), DbError> {
        match self.0 {
            Reader::Sqlite(_) => Err(DbError::NoText { engine: "SQLite" }),
            #[cfg(feature = "postgres")]
            Reader::Postgres(writer) => {
                let (tx, rows) = writer.begin_calling(until, function, argument).await?;
                Ok((Transaction(OpenTransaction::Postgres(tx)), rows))
            }
        }
    }
}

/// A connection that keeps one snapshot until it is dropped.
#[derive(Debug)]
pub(crate) struct Snapshot(pub(super) Holder);

#[derive(Debug)]
pub(super) enum Holder {
    Sqlite(sqlite::Conn),
    #[cfg(feature = "postgres")]
    Postgres(postgres::ReadGuard),
}

impl Snapshot {
    pub(crate) async fn query(&mut self, statement: Statement) -> Result<Vec<Row>, DbError> {
        match &mut self.0 {
            Holder::Sqlite(conn) => conn.query(statement).await,
            #[cfg(feature = "postgres")]
            Holder::Postgres(reader) => reader.query(statement).await,
        }
    }
}
