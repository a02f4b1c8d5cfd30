//! What a statement answers with, found out without running it.

/// How the values of a column reach this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Form {
    /// Whole numbers, instants, booleans.
    Whole,
    /// Text and JSON.
    Text,
    /// Bytes and UUIDs.
    Bytes,
    /// The embedded engine does not say it of an expression.
    Unsaid,
}

/// One column of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Described {
    /// Its name.
    pub name: String,
    /// The form of its values.
    pub form: Form,
}

impl Described {
    /// By the name that the engine has for the column's type.
    pub(super) fn of(name: &str, type_name: &str) -> Self {
        let form = match type_name {
            "INTEGER" | "BOOLEAN" | "BOOL" | "INT2" | "INT4" | "INT8" | "NUMERIC" => Form::Whole,
            "TEXT" | "VARCHAR" | "NAME" | "JSON" | "JSONB" => Form::Text,
            "BLOB" | "BYTEA" | "UUID" => Form::Bytes,
            _ => Form::Unsaid,
        };
        Self { name: name.to_owned(), form }
    }
}
