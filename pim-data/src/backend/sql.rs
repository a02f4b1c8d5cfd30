//! Statements with their parameters.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::{DbError, Engine, Value};

/// The text of one statement for each engine. Parameters are bare `?`, in order, so that statements can be joined into one
/// hop; for PostgreSQL they are numbered.
///
/// Whole numbers are `bigint` there, UUIDs `uuid`, bytes `bytea`, JSON `jsonb`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlPair {
    postgres: Option<Cow<'static, str>>,
    sqlite: Option<Cow<'static, str>>,
}

impl SqlPair {
    /// A text for each engine.
    #[must_use]
    pub const fn of(postgres: &'static str, sqlite: &'static str) -> Self {
        Self { postgres: Some(Cow::Borrowed(postgres)), sqlite: Some(Cow::Borrowed(sqlite)) }
    }

    /// One text that both engines understand.
    #[must_use]
    pub const fn same(text: &'static str) -> Self {
        Self::of(text, text)
    }

    /// A statement for the embedded engine alone.
    #[must_use]
    pub const fn sqlite(text: &'static str) -> Self {
        Self { postgres: None, sqlite: Some(Cow::Borrowed(text)) }
    }

    /// A statement for PostgreSQL alone.
    #[must_use]
    pub const fn postgres(text: &'static str) -> Self {
        Self { postgres: Some(Cow::Borrowed(text)), sqlite: None }
    }

    /// A statement that was generated, for example from the columns of an entity, and that both engines understand. Never
    /// from a caller's input.
    #[must_use]
    pub fn generated(text: String) -> Self {
        Self { postgres: Some(Cow::Owned(text.clone())), sqlite: Some(Cow::Owned(text)) }
    }

    /// As [`SqlPair::postgres`], generated.
    #[must_use]
    pub fn generated_postgres(text: String) -> Self {
        Self { postgres: Some(Cow::Owned(text)), sqlite: None }
    }

    /// As [`SqlPair::sqlite`], generated.
    #[must_use]
    pub fn generated_sqlite(text: String) -> Self {
        Self { postgres: None, sqlite: Some(Cow::Owned(text)) }
    }

    /// Two statements that answer the same, each on its engine.
    #[must_use]
    pub fn joined(postgres: Self, sqlite: Self) -> Self {
        Self { postgres: postgres.postgres, sqlite: sqlite.sqlite }
    }

    /// The text as it is sent to an engine, where there is one.
    #[must_use]
    pub fn text(&self, engine: Engine) -> Option<String> {
        match engine {
            Engine::Postgres => self.postgres.as_deref().map(numbered),
            Engine::Sqlite => self.sqlite.as_deref().map(str::to_owned),
        }
    }
}

/// One statement with its parameters.
///
/// ```
/// use pim_data::backend::{SqlPair, Statement};
///
/// const TOUCH: SqlPair = SqlPair::same("UPDATE stock SET seen = ? WHERE id = ?");
/// let statement = Statement::of(TOUCH).bind(1_i64).bind("bolts");
/// assert_eq!(statement.binds().len(), 2);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use = "a statement does nothing until it is run"]
pub struct Statement {
    sql: SqlPair,
    binds: Vec<Value>,
}

impl Statement {
    /// A statement without parameters so far.
    pub const fn of(sql: SqlPair) -> Self {
        Self { sql, binds: Vec::new() }
    }

    /// Shorthand for a fixed text that both engines understand.
    pub const fn same(text: &'static str) -> Self {
        Self::of(SqlPair::same(text))
    }

    /// Shorthand for a fixed text of the embedded engine.
    pub const fn sqlite(text: &'static str) -> Self {
        Self::of(SqlPair::sqlite(text))
    }

    /// Adds the next parameter.
    pub fn bind(mut self, value: impl Into<Value>) -> Self {
        self.binds.push(value.into());
        self
    }

    /// Adds several parameters.
    pub fn bind_all(mut self, values: impl IntoIterator<Item = Value>) -> Self {
        self.binds.extend(values);
        self
    }

    /// Its text without the parameters.
    pub(crate) fn into_pair(self) -> SqlPair {
        self.sql
    }

    /// Its parameters.
    #[must_use]
    pub fn binds(&self) -> &[Value] {
        &self.binds
    }

    /// For the embedded engine; [`Statement::check_sqlite`] has said that there is one.
    pub(super) fn sqlite_text(&self) -> &str {
        self.sql.sqlite.as_deref().unwrap_or_default()
    }

    pub(super) fn check_sqlite(&self) -> Result<(), DbError> {
        if self.sql.sqlite.is_some() { Ok(()) } else { Err(DbError::NoText { engine: "SQLite" }) }
    }

    /// For PostgreSQL, with numbered parameters.
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "only the server's backend asks"))]
    pub(super) fn postgres_text(&self) -> Result<String, DbError> {
        self.sql.text(Engine::Postgres).ok_or(DbError::NoText { engine: "PostgreSQL" })
    }
}

/// `?` as `$1`, `$2` …, except in quoted text.
fn numbered(text: &str) -> String {
    let mut made = String::with_capacity(text.len() + 16);
    let (mut number, mut quoted) = (0, false);
    for part in text.chars() {
        match part {
            '?' if !quoted => {
                number += 1;
                let _infallible = write!(made, "${number}");
            }
            other => {
                quoted ^= other == '\'';
                made.push(other);
            }
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::numbered;

    #[test]
    fn parameters_are_numbered_outside_quotes_only() {
        assert_eq!(numbered("SELECT ?, '?''?', ? FROM t"), "SELECT $1, '?''?', $2 FROM t");
    }
}
