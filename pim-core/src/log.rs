//! Log events whose values are admitted by type: what [`Shown`] cannot be made of does not compile into a line.
//!
//! ```
//! use pim_core::shard::ShardId;
//! pim_core::warn!("shop closes", shard_id = ShardId(3), waiting = 12_u64, reason = "stock-taking");
//! ```
//!
//! A text that is made at run time is refused, whatever it holds:
//!
//! ```compile_fail
//! let name = String::from("Ada Quillfeather");
//! pim_core::warn!("shop closes", name = name);
//! ```
//!
//! The events travel through [`tracing`]; whoever writes them down tells ours from those of others by [`Admitted`], a type that
//! only these macros make. Our own crates may not use `tracing`'s macros (`clippy.toml`): those take anything.

use std::error::Error;
use std::fmt;

#[doc(hidden)]
pub use tracing;

use crate::redact::Shown;

/// A value on its way to a log line, admitted by type.
#[derive(Debug)]
pub struct Admitted(Shown);

impl Admitted {
    /// Admits a value.
    #[doc(hidden)]
    pub fn of(value: impl Into<Shown>) -> Self {
        Self(value.into())
    }

    /// The form in which `tracing` carries it without looking at it.
    #[doc(hidden)]
    #[must_use]
    pub const fn carried(&self) -> &(dyn Error + 'static) {
        self
    }

    /// The value behind what a visitor of an event was given, when it came from these macros.
    #[must_use]
    pub fn behind<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e Shown> {
        error.downcast_ref::<Self>().map(|admitted| &admitted.0)
    }
}

impl fmt::Display for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

// Errors are the one kind of value that tracing hands on with its type.
impl Error for Admitted {}

/// Something that operators want to see, and may miss under load: it is limited by rate.
#[macro_export]
macro_rules! info {
    ($event:literal $(, $name:ident = $value:expr)* $(,)?) => { $crate::__emit!(INFO, $event $(, $name = $value)*) };
}

/// Something that went wrong and was dealt with.
#[macro_export]
macro_rules! warn {
    ($event:literal $(, $name:ident = $value:expr)* $(,)?) => { $crate::__emit!(WARN, $event $(, $name = $value)*) };
}

/// Something that went wrong and needs a person.
#[macro_export]
macro_rules! error {
    ($event:literal $(, $name:ident = $value:expr)* $(,)?) => { $crate::__emit!(ERROR, $event $(, $name = $value)*) };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __emit {
    ($level:ident, $event:literal $(, $name:ident = $value:expr)*) => {{
        $crate::log::tracing::event!(
            $crate::log::tracing::Level::$level,
            event = $crate::log::Admitted::of($event).carried(),
            $($name = $crate::log::Admitted::of($value).carried(),)*
        );
    }};
}
