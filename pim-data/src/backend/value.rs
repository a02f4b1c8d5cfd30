//! Values and rows, the same for every engine.

use pim_core::clock::Timestamp;
use uuid::Uuid;

/// One value of a column or parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// A whole number; instants are microseconds since the Unix epoch.
    Int(i64),
    /// A boolean; the embedded engine keeps 0 and 1.
    Bool(bool),
    /// Text, also decimals.
    Text(String),
    /// JSON text; the embedded engine keeps it as text.
    Json(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A UUID; the embedded engine keeps its 16 bytes.
    Uuid(Uuid),
}

macro_rules! from_value {
    ($($source:ty => |$it:ident| $make:expr;)+) => {$(
        impl From<$source> for Value {
            fn from($it: $source) -> Self {
                $make
            }
        }
    )+};
}

from_value! {
    i64 => |it| Self::Int(it);
    i32 => |it| Self::Int(i64::from(it));
    u8 => |it| Self::Int(i64::from(it));
    u16 => |it| Self::Int(i64::from(it));
    u32 => |it| Self::Int(i64::from(it));
    bool => |it| Self::Bool(it);
    &str => |it| Self::Text(it.to_owned());
    String => |it| Self::Text(it);
    Vec<u8> => |it| Self::Bytes(it);
    &[u8] => |it| Self::Bytes(it.to_vec());
    &[u8; 32] => |it| Self::Bytes(it.to_vec());
    Uuid => |it| Self::Uuid(it);
    Timestamp => |it| Self::Int(it.as_micros());
}

/// Unsigned numbers are stored as signed ones: counters here stay far below 2^63.
impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A column that does not hold what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {index} is not {wanted}")]
#[non_exhaustive]
pub struct ColumnError {
    /// Position in the row.
    pub index: usize,
    /// What was asked for.
    pub wanted: &'static str,
}

/// One row of an answer, by position.
#[derive(Clone, Debug, PartialEq)]
pub struct Row(Vec<Value>);

impl Row {
    pub(crate) const fn new(values: Vec<Value>) -> Self {
        Self(values)
    }

    /// The value at a position; `Null` behind the last.
    #[must_use]
    pub fn get(&self, index: usize) -> &Value {
        self.0.get(index).unwrap_or(&Value::Null)
    }

    /// Number of columns.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no columns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A whole number; a boolean is 0 or 1.
    ///
    /// # Errors
    /// [`ColumnError`] when it is something else.
    pub fn int(&self, index: usize) -> Result<i64, ColumnError> {
        match self.get(index) {
            Value::Int(number) => Ok(*number),
            Value::Bool(flag) => Ok(i64::from(*flag)),
            _ => Err(ColumnError { index, wanted: "a whole number" }),
        }
    }

    /// A whole number that is not negative.
    ///
    /// # Errors
    /// [`ColumnError`] when it is something else.
    pub fn count(&self, index: usize) -> Result<u64, ColumnError> {
        u64::try_from(self.int(index)?).map_err(|_| ColumnError { index, wanted: "a number from zero" })
    }

    /// Text.
    ///
    /// # Errors
    /// [`ColumnError`] when it is something else.
    pub fn text(&self, index: usize) -> Result<&str, ColumnError> {
        match self.get(index) {
            Value::Text(text) | Value::Json(text) => Ok(text),
            _ => Err(ColumnError { index, wanted: "text" }),
        }
    }

    /// Text, or nothing.
    ///
    /// # Errors
    /// [`ColumnError`] when it is something else.
    pub fn text_or_null(&self, index: usize) -> Result<Option<&str>, ColumnError> {
        if *self.get(index) == Value::Null { Ok(None) } else { self.text(index).map(Some) }
    }

    /// Bytes.
    ///
    /// # Errors
    /// [`ColumnError`] when it is something else.
    pub fn bytes(&self, index: usize) -> Result<&[u8], ColumnError> {
        match self.get(index) {
            Value::Bytes(bytes) => Ok(bytes),
            Value::Uuid(uuid) => Ok(uuid.as_bytes()),
            _ => Err(ColumnError { index, wanted: "bytes" }),
        }
    }

    /// A UUID, stored as 16 bytes.
    ///
    /// # Errors
    /// [`ColumnError`] when it is something else.
    pub fn uuid(&self, index: usize) -> Result<Uuid, ColumnError> {
        Uuid::from_slice(self.bytes(index)?).map_err(|_| ColumnError { index, wanted: "a uuid" })
    }

    /// A UUID, or nothing.
    ///
    /// # Errors
    /// [`ColumnError`] when it is something else.
    pub fn uuid_or_null(&self, index: usize) -> Result<Option<Uuid>, ColumnError> {
        if *self.get(index) == Value::Null { Ok(None) } else { self.uuid(index).map(Some) }
    }

    /// An instant, stored as microseconds.
    ///
    /// # Errors
    /// [`ColumnError`] when it is something else.
    pub fn time(&self, index: usize) -> Result<Timestamp, ColumnError> {
        self.int(index).map(Timestamp::from_micros)
    }

    /// 32 bytes, such as a SHA-256.
    ///
    /// # Errors
    /// [`ColumnError`] when it is something else.
    pub fn digest(&self, index: usize) -> Result<[u8; 32], ColumnError> {
        self.bytes(index)?.try_into().map_err(|_| ColumnError { index, wanted: "32 bytes" })
    }
}
