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
use std::time::Duration;

use crate::context::{RequestId, SpanId, TraceId};
use crate::identity::Subject;
use crate::role::RoleCode;
use crate::shard::{HomeKey, ShardId};

/// A value that may be shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown(Kind);

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Number(i128),
    Word(&'static str),
    Opaque(String),
}

impl Shown {
    /// Whether it is a number, for formats that tell numbers from text.
    #[must_use]
    pub const fn number(&self) -> Option<i128> {
        match self.0 {
            Kind::Number(number) => Some(number),
            _ => None,
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
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
    &'static str => |it| Kind::Word(it);
    RoleCode => |it| Kind::Word(it.name());
    // In microseconds; the member's name says so.
    Duration => |it| Kind::Number(i128::try_from(it.as_micros()).unwrap_or(i128::MAX));
    RequestId => |it| Kind::Opaque(it.to_string());
    TraceId => |it| Kind::Opaque(it.to_string());
    SpanId => |it| Kind::Opaque(it.to_string());
    ShardId => |it| Kind::Number(i128::from(it.0));
    HomeKey => |it| Kind::Opaque(it.to_string());
    &Subject => |it| Kind::Opaque(it.to_string());
}
