//! Connections: many statements in one hop, and a transaction that is rolled back unless it commits.

use std::sync::Arc;

use futures_util::{FutureExt as _, TryStreamExt};
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{
    Arguments as _, AssertSqlSafe, Column as _, Either, Executor as _, Row as _, SqlSafeStr as _, Statement as _,
    TypeInfo as _, ValueRef as _,
};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};

use super::db::Idle;
use crate::backend::{DbError, Described, Engine, Row, SqlPair, Statement, Value};

/// Most statements of a mixed batch that are kept prepared together: a unit of work and its like.
const KEPT_MAX: usize = 24;
/// Most equal statements that go together.
const ALIKE_MAX: usize = 64;

/// One connection. Runs any number of statements in one hop to the engine.
#[derive(Debug)]
pub(crate) struct Conn {
    raw: SqliteConnection,
    /// The file.
    place: String,
    /// Set while a transaction may be open; the next user then rolls back first.
    pub(super) dirty: bool,
}

impl Conn {
    pub(super) const fn new(raw: SqliteConnection, place: String) -> Self {
        Self { raw, place, dirty: false }
    }

    /// What the engine says, with the file where that matters to whoever mends it.
    fn told(&self, error: sqlx::Error) -> DbError {
        match DbError::from(error) {
            DbError::Full { .. } => DbError::Full { place: self.place.clone() },
            other => other,
        }
    }

    /// Runs one statement and returns its rows.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub(crate) async fn query(&mut self, statement: Statement) -> Result<Vec<Row>, DbError> {
        let mut answers = self.hop(std::slice::from_ref(&statement)).await?;
        Ok(answers.pop().unwrap_or_default())
    }

    /// Prepares a statement without running it.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub(crate) async fn describe(&mut self, sql: &SqlPair) -> Result<Vec<Described>, DbError> {
        let text = sql.text(Engine::Sqlite).ok_or(DbError::NoText { engine: "SQLite" })?;
        let prepared = self.raw.prepare(AssertSqlSafe(text).into_sql_str()).await?;
        Ok(prepared.columns().iter().map(|it| Described::of(it.name(), it.type_info().name())).collect())
    }

    /// Runs one statement and returns its first row; the engine stops there.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub(crate) async fn first(&mut self, statement: Statement) -> Result<Option<Row>, DbError> {
        statement.check_sqlite()?;
        let mut arguments = SqliteArguments::default();
        for value in statement.binds() {
            add(&mut arguments, value)?;
        }
        let query = sqlx::query_with(AssertSqlSafe(statement.sqlite_text()), arguments);
        let found = self.raw.fetch_optional(query).await.map_err(|error| self.told(error))?;
        found.as_ref().map(row_of).transpose()
    }

    /// Runs statements in order in one hop and returns the rows of each. Stops at the first that fails.
    ///
    /// # Errors
    /// [`DbError`] as the engine says; what ran before has happened, unless a transaction is rolled back.
    pub(crate) async fn hop(&mut self, statements: &[Statement]) -> Result<Vec<Vec<Row>>, DbError> {
        let mut answers = Vec::with_capacity(statements.len());
        self.answer(statements, &mut answers).await?;
        Ok(answers)
    }

    /// As [`Conn::hop`]; when one fails there are the answers of those before it.
    async fn answer(&mut self, statements: &[Statement], answers: &mut Vec<Vec<Row>>) -> Result<(), DbError> {
        statements.iter().try_for_each(Statement::check_sqlite)?;
        let mut rest = statements;
        while !rest.is_empty() {
            let (length, is_kept) = portion(rest);
            let (now, later) = rest.split_at(length);
            self.portion(now, is_kept, answers).await?;
            rest = later;
        }
        Ok(())
    }

    async fn portion(
        &mut self,
        statements: &[Statement],
        is_kept: bool,
        answers: &mut Vec<Vec<Row>>,
    ) -> Result<(), DbError> {
        let mut text =
            String::with_capacity(statements.iter().map(|statement| statement.sqlite_text().len() + 2).sum());
        let mut arguments = SqliteArguments::default();
        for statement in statements {
            text.push_str(statement.sqlite_text());
            text.push_str(";\n");
            for value in statement.binds() {
                add(&mut arguments, value)?;
            }
        }
        // Generated from our own constants and entity declarations; every value is a bound parameter.
        let query = sqlx::query_with(AssertSqlSafe(text), arguments).persistent(is_kept);
        let answered = answers.len();
        let mut stream = self.raw.fetch_many(query);
        let mut rows = Vec::new();
        let failed = loop {
            match stream.try_next().await {
                Ok(Some(Either::Left(_done))) => answers.push(std::mem::take(&mut rows)),
                Ok(Some(Either::Right(row))) => rows.push(row_of(&row)?),
                Ok(None) => return Ok(()),
                Err(error) => break error,
            }
        };
        drop(stream);
        let failed = self.told(failed);
        // Those before it are answered.
        Err(guarding(statements.get(answers.len() - answered), failed))
    }

    /// Runs a script without parameters, such as a migration.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub(crate) async fn script(&mut self, text: &str) -> Result<(), DbError> {
        let run = self.raw.execute(sqlx::raw_sql(AssertSqlSafe(text.to_owned()))).await;
        run.map(drop).map_err(|error| self.told(error))
    }

    /// Hands a ROLLBACK to the connection's own thread without waiting for it.
    ///
    /// A future that was dropped inside a transaction must give the file's write lock back at once: other processes
    /// wait for it, and this one may not write again for a long time.
    fn abandon(&mut self) {
        if self.dirty {
            // One poll hands the command over. `dirty` stays set, so the next user makes sure of it.
            let _answer_unwanted = self.raw.execute("ROLLBACK").now_or_never();
        }
    }

    /// Leaves no transaction of an earlier user behind.
    pub(super) async fn clean(&mut self) -> Result<(), DbError> {
        if self.dirty {
            // Fails when no transaction is open, which is as good.
            let _none_open = self.script("ROLLBACK").await;
            self.dirty = false;
        }
        Ok(())
    }
}

/// How many statements go together, and whether their text is worth keeping prepared.
///
/// A connection keeps what it has prepared by its whole text. Long batches of any length would each be kept as one of a
/// kind (measured: 300 MiB after seeding), so equal statements go in powers of two, and mixed ones are not kept.
fn portion(statements: &[Statement]) -> (usize, bool) {
    if statements.len() <= KEPT_MAX {
        return (statements.len(), true);
    }
    let first = statements[0].sqlite_text();
    let alike = statements.iter().take(ALIKE_MAX).take_while(|statement| statement.sqlite_text() == first).count();
    if alike >= 8 { (1 << alike.ilog2(), true) } else { (KEPT_MAX.min(statements.len()), false) }
}

/// What a guard refuses is the row of the table that it was given: the engine repeats no values, and so names none.
fn guarding(statement: Option<&Statement>, error: DbError) -> DbError {
    match (error, statement.map(Statement::binds)) {
        (DbError::Refused { rule, unique }, Some([Value::Text(table)])) if rule.contains("pim_guard") => {
            DbError::Refused { rule: format!("{table}_row.{rule}"), unique }
        }
        (error, _) => error,
    }
}

fn add(arguments: &mut SqliteArguments, value: &Value) -> Result<(), DbError> {
    let added = match value {
        Value::Null => arguments.add(None::<i64>),
        Value::Int(number) => arguments.add(*number),
        Value::Bool(flag) => arguments.add(i64::from(*flag)),
        Value::Text(text) | Value::Json(text) => arguments.add(text.clone()),
        Value::Bytes(bytes) => arguments.add(bytes.clone()),
        Value::Uuid(uuid) => arguments.add(uuid.as_bytes().to_vec()),
    };
    added.map_err(|source| DbError::from(sqlx::Error::Encode(source)))
}

fn row_of(row: &SqliteRow) -> Result<Row, DbError> {
    let mut values = Vec::with_capacity(row.len());
    for column in row.columns() {
        let index = column.ordinal();
        let raw = row.try_get_raw(index)?;
        let value = if raw.is_null() {
            Value::Null
        } else {
            // The value's own type, not the column's: an expression has none.
            match raw.type_info().name() {
                "INTEGER" | "BOOLEAN" => Value::Int(row.try_get_unchecked(index)?),
                "BLOB" => Value::Bytes(row.try_get_unchecked(index)?),
                _ => Value::Text(row.try_get_unchecked(index)?),
            }
        };
        values.push(value);
    }
    Ok(Row::new(values))
}

/// The writer of a database, inside a transaction. Dropping it rolls back.
#[derive(Debug)]
#[must_use = "a transaction that is dropped is rolled back"]
pub(crate) struct Transaction {
    conn: OwnedMutexGuard<Conn>,
}

impl Transaction {
    pub(super) async fn begin(
        mut conn: OwnedMutexGuard<Conn>,
        first: &[Statement],
    ) -> Result<(Self, Vec<Vec<Row>>), DbError> {
        conn.clean().await?;
        // Before the first await inside the transaction: a dropped future must not leave it open unnoticed.
        conn.dirty = true;
        let mut statements = Vec::with_capacity(first.len() + 1);
        statements.push(Statement::sqlite("BEGIN IMMEDIATE"));
        statements.extend_from_slice(first);
        let mut begun = Self { conn };
        let mut answers = begun.conn.hop(&statements).await?;
        answers.drain(..1.min(answers.len()));
        Ok((begun, answers))
    }

    /// Runs one statement.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub(crate) async fn query(&mut self, statement: Statement) -> Result<Vec<Row>, DbError> {
        self.conn.query(statement).await
    }

    /// Runs statements in order in one hop.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub(crate) async fn hop(&mut self, statements: &[Statement]) -> Result<Vec<Vec<Row>>, DbError> {
        self.conn.hop(statements).await
    }

    /// Runs a script without parameters.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub(crate) async fn script(&mut self, text: &str) -> Result<(), DbError> {
        self.conn.script(text).await
    }

    /// Runs the last statements and commits, in one hop.
    ///
    /// # Errors
    /// [`DbError`] as the engine says; nothing was committed then, unless the error is about the commit itself.
    pub(crate) async fn commit_with(mut self, mut last: Vec<Statement>) -> Result<Vec<Vec<Row>>, DbError> {
        last.push(Statement::sqlite("COMMIT"));
        let mut answers = Vec::with_capacity(last.len());
        let done = self.conn.answer(&last, &mut answers).await;
        let is_at_commit = answers.len() + 1 == last.len();
        done.map_err(|error| match error {
            // The log may have all of it although the file system says that it failed: whoever finds it after a crash goes by it.
            DbError::Engine(_) if is_at_commit => DbError::Commit(Arc::new(error)),
            error => error,
        })?;
        self.conn.dirty = false;
        Ok(answers)
    }

    /// Commits.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub(super) async fn commit(self) -> Result<(), DbError> {
        self.commit_with(Vec::new()).await.map(drop)
    }

    /// Rolls back now rather than when the writer is next used.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub(crate) async fn rollback(mut self) -> Result<(), DbError> {
        self.conn.clean().await
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        self.conn.abandon();
    }
}

/// A reading connection, lent for a while.
#[derive(Debug)]
pub(crate) struct ReadGuard {
    pub(super) conn: Option<Conn>,
    pub(super) home: Idle,
    pub(super) _slot: OwnedSemaphorePermit,
}

impl ReadGuard {
    /// Runs one statement.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub(crate) async fn query(&mut self, statement: Statement) -> Result<Vec<Row>, DbError> {
        self.conn()?.query(statement).await
    }

    /// Runs one statement and returns its first row; the engine stops there.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub(crate) async fn first(&mut self, statement: Statement) -> Result<Option<Row>, DbError> {
        self.conn()?.first(statement).await
    }

    /// Runs statements in order in one hop, within one snapshot.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub(crate) async fn snapshot(&mut self, statements: &[Statement]) -> Result<Vec<Vec<Row>>, DbError> {
        let conn = self.conn()?;
        conn.dirty = true;
        let mut all = Vec::with_capacity(statements.len() + 2);
        all.push(Statement::sqlite("BEGIN"));
        all.extend_from_slice(statements);
        all.push(Statement::sqlite("COMMIT"));
        let mut answers = conn.hop(&all).await?;
        conn.dirty = false;
        answers.pop();
        answers.drain(..1.min(answers.len()));
        Ok(answers)
    }

    pub(super) fn conn(&mut self) -> Result<&mut Conn, DbError> {
        self.conn.as_mut().ok_or(DbError::Closed)
    }
}

impl Drop for ReadGuard {
    fn drop(&mut self) {
        if let Some(mut conn) = self.conn.take() {
            conn.abandon();
            self.home.give_back(conn);
        }
    }
}
