//! What `services` shows: the ready page, a status line a second, the summary; for people or as JSON lines.

mod flags;
mod page;
mod restore;
mod run;
mod status;
mod summary;

pub(crate) use flags::Settings;
pub use flags::{Flags, Lasting, Traffic};
pub use run::main;
