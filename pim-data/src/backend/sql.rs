//! Statements with their parameters.

use std::borrow::Cow;

use super::Value;

/// The text of one statement for each engine. Parameters are bare `?`, in order, so that statements can be joined into one hop.
///
/// Only the embedded engine is there so far; the text for PostgreSQL joins it together with that backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlPair {
    sqlite: Cow<'static, str>,
}

impl SqlPair {
    /// A statement for the embedded engine.
    #[must_use]
    pub const fn sqlite(text: &'static str) -> Self {
        Self { sqlite: Cow::Borrowed(text) }
    }

    /// A statement that was generated, for example from the columns of an entity. Never from a caller's input.
    #[must_use]
    pub fn generated(text: String) -> Self {
        Self { sqlite: Cow::Owned(text) }
    }

    pub(super) fn text(&self) -> &str {
        &self.sqlite
    }
}

/// One statement with its parameters.
///
/// ```
/// use pim_data::backend::{SqlPair, Statement};
///
/// const TOUCH: SqlPair = SqlPair::sqlite("UPDATE stock SET seen = ? WHERE id = ?");
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

    /// Shorthand for a fixed text.
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

    /// Its parameters.
    #[must_use]
    pub fn binds(&self) -> &[Value] {
        &self.binds
    }

    pub(super) fn text(&self) -> &str {
        self.sql.text()
    }
}
