//! What may enter a log line, metric, trace or header: numbers, durations, static words, opaque ids. Nothing else compiles.
//!
//! There is no implementation for `String`, `&str` of a shorter life, `Debug` or `Display`, so a name or an address cannot get
//! into a signal by way of this room.
//!
//! ```
//! use pim_core::redact::Shown;
//! assert_eq!(Shown::from(42_u64).to_string(), "42");
//! assert_eq!(Shown::from("retry").to_string(), "retry");
//! ```
//!
//! ```compile_fail
//! use pim_core::redact::Shown;
//! let name = String::from("Ada Quillfeather");
//! let _refused = Shown::from(name);
//! ```

use std::fmt;
use std::panic::Location;
use std::time::Duration;

use uuid::Uuid;

use crate::context::{RequestId, SpanId, TraceId};
use crate::identity::Subject;
use crate::role::RoleCode;
use crate::shard::{HomeKey, ShardId};

/// A value that may be shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown(Kind);

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Absent,
    Flag(bool),
    Number(i128),
    Word(&'static str),
    Opaque(String),
}

impl Shown {
    /// Whether there is nothing to show, so that its member is left out.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        matches!(self.0, Kind::Absent)
    }
}

/// Numbers as numbers, flags as booleans, everything else as text.
impl serde::Serialize for Shown {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Kind::Absent => to.serialize_none(),
            Kind::Flag(flag) => to.serialize_bool(*flag),
            Kind::Number(number) => match (u64::try_from(*number), i64::try_from(*number)) {
                (Ok(number), _) => to.serialize_u64(number),
                (_, Ok(number)) => to.serialize_i64(number),
                _ => to.serialize_u64(u64::MAX),
            },
            Kind::Word(word) => to.serialize_str(word),
            Kind::Opaque(id) => to.serialize_str(id),
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Absent => Ok(()),
            Kind::Flag(flag) => write!(f, "{flag}"),
            Kind::Number(number) => write!(f, "{number}"),
            Kind::Word(word) => f.write_str(word),
            Kind::Opaque(id) => f.write_str(id),
        }
    }
}

macro_rules! shown {
    ($($source:ty => |$it:ident| $make:expr;)+) => {$(
        impl From<$source> for Shown {
            fn from($it: $source) -> Self {
                Self($make)
            }
        }
    )+};
}

shown! {
    u8 => |it| Kind::Number(i128::from(it));
    u16 => |it| Kind::Number(i128::from(it));
    u32 => |it| Kind::Number(i128::from(it));
    u64 => |it| Kind::Number(i128::from(it));
    i64 => |it| Kind::Number(i128::from(it));
    usize => |it| Kind::Number(i128::try_from(it).unwrap_or(i128::MAX));
    bool => |it| Kind::Flag(it);
    &'static str => |it| Kind::Word(it);
    RoleCode => |it| Kind::Word(it.name());
    // In microseconds; the member's name says so.
    Duration => |it| Kind::Number(i128::try_from(it.as_micros()).unwrap_or(i128::MAX));
    RequestId => |it| Kind::Opaque(it.to_string());
    TraceId => |it| Kind::Opaque(it.to_string());
    SpanId => |it| Kind::Opaque(it.to_string());
    ShardId => |it| Kind::Number(i128::from(it.0));
    Uuid => |it| Kind::Opaque(it.to_string());
    HomeKey => |it| Kind::Opaque(it.to_string());
    &Subject => |it| Kind::Opaque(it.to_string());
    // File and line of a program's source: made by the compiler.
    &Location<'_> => |it| Kind::Opaque(format!("{}:{}", it.file(), it.line()));
}

impl<T: Into<Self>> From<Option<T>> for Shown {
    fn from(it: Option<T>) -> Self {
        it.map_or(Self(Kind::Absent), Into::into)
    }
}
