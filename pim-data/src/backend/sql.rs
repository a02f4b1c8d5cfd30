//! Statements with their parameters.

use std::fmt::Write as _;
use std::sync::Arc;

use super::{DbError, Engine, Value};

/// The text of one statement for each engine. Parameters are bare `?`, in order, so that statements can be joined into one
/// hop; for PostgreSQL they are numbered.
///
/// Whole numbers are `bigint` there, UUIDs `uuid`, bytes `bytea`, JSON `jsonb`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlPair {
    postgres: Option<Text>,
    sqlite: Option<Text>,
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum Text {
    Fixed(&'static str),
    Made(Arc<str>),
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Text {}

impl Text {
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Fixed(text) => text,
            Self::Made(text) => text,
        }
    }

    fn numbered(&self) -> Self {
        if self.as_str().contains('?') { Self::Made(numbered(self.as_str()).into()) } else { self.clone() }
    }
}

impl SqlPair {
    /// A text for each engine.
    #[must_use]
    pub const fn of(postgres: &'static str, sqlite: &'static str) -> Self {
        Self { postgres: Some(Text::Fixed(postgres)), sqlite: Some(Text::Fixed(sqlite)) }
    }

    /// One text that both engines understand.
    #[must_use]
    pub const fn same(text: &'static str) -> Self {
        Self::of(text, text)
    }

    /// A statement for the embedded engine alone.
    #[must_use]
    pub const fn sqlite(text: &'static str) -> Self {
        Self { postgres: None, sqlite: Some(Text::Fixed(text)) }
    }

    /// A statement for PostgreSQL alone.
    #[must_use]
    pub const fn postgres(text: &'static str) -> Self {
        Self { postgres: Some(Text::Fixed(text)), sqlite: None }
    }

    /// A statement that was generated, for example from the columns of an entity, and that both engines understand. Never
    /// from a caller's input.
    #[must_use]
    pub fn generated(text: String) -> Self {
        let text = Text::Made(text.into());
        Self { postgres: Some(text.clone()), sqlite: Some(text) }
    }

    /// As [`SqlPair::postgres`], generated. Its parameters are numbered here and now: it is worth keeping.
    #[must_use]
    pub fn generated_postgres(text: String) -> Self {
        Self { postgres: Some(Text::Made(text.into()).numbered()), sqlite: None }
    }

    /// As [`SqlPair::sqlite`], generated.
    #[must_use]
    pub fn generated_sqlite(text: String) -> Self {
        Self { postgres: None, sqlite: Some(Text::Made(text.into())) }
    }

    /// Two statements that answer the same, each on its engine.
    #[must_use]
    pub fn joined(postgres: Self, sqlite: Self) -> Self {
        Self { postgres: postgres.postgres, sqlite: sqlite.sqlite }
    }

    /// The text as it is sent to an engine, where there is one.
    #[must_use]
    pub fn text(&self, engine: Engine) -> Option<String> {
        let text = match engine {
            Engine::Postgres => self.postgres.as_ref().map(Text::numbered),
            Engine::Sqlite => self.sqlite.clone(),
        };
        text.map(|text| text.as_str().to_owned())
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

    /// Its texts, as they were given, and which engine each is for.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (Engine, &str)> {
        let texts = [(Engine::Postgres, &self.sql.postgres), (Engine::Sqlite, &self.sql.sqlite)];
        texts.into_iter().filter_map(|(engine, text)| Some((engine, text.as_ref()?.as_str())))
    }

    /// The same behind the text of its engine in `front`, whose parameters come first.
    pub(crate) fn behind(self, front: &SqlPair, mut binds: Vec<Value>) -> Self {
        let join = |front: &Option<Text>, own: Option<Text>| {
            let (front, own) = (front.as_ref()?, own?);
            Some(Text::Made(format!("{}{}", front.as_str(), own.as_str()).into()))
        };
        let postgres = join(&front.postgres, self.sql.postgres);
        let sqlite = join(&front.sqlite, self.sql.sqlite);
        binds.extend(self.binds);
        Self { sql: SqlPair { postgres, sqlite }, binds }
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
        self.sql.sqlite.as_ref().map_or("", Text::as_str)
    }

    pub(super) fn check_sqlite(&self) -> Result<(), DbError> {
        if self.sql.sqlite.is_some() { Ok(()) } else { Err(DbError::NoText { engine: "SQLite" }) }
    }

    /// For PostgreSQL, with numbered parameters.
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "only the server's backend asks"))]
    pub(super) fn postgres_text(&self) -> Result<Text, DbError> {
        self.sql.postgres.as_ref().map(Text::numbered).ok_or(DbError::NoText { engine: "PostgreSQL" })
    }
}

/// `?` as `$1`, `$2` …, except in quoted text.
pub(crate) fn numbered(text: &str) -> String {
    let mut made = String::with_capacity(text.len() + 16);
    let (mut number, mut quoted) = (0, false);
    for (place, part) in text.split('?').enumerate() {
        if place > 0 && quoted {
            made.push('?');
        } else if place > 0 {
            number += 1;
            let _infallible = write!(made, "${number}");
        }
        made.push_str(part);
        quoted ^= part.matches('\'').count() % 2 == 1;
    }
    made
}

#[cfg(test)]
mod tests {
    use super::numbered;

    #[test]
    fn parameters_are_numbered_outside_quotes_only() {
        assert_eq!(numbered("SELECT ?, '?''?', ? FROM t"), "SELECT $1, '?''?', $2 FROM t");
        assert_eq!(numbered("?"), "$1");
        assert_eq!(numbered("'?'?"), "'?'$1");
        assert_eq!(numbered("SELECT 1"), "SELECT 1");
    }
}
