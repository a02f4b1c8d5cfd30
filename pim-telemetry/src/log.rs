//! Flat JSON lines, written by a thread of their own; a slow terminal blocks nobody, and what is dropped is counted.

mod layer;
mod pace;
mod writer;

pub(crate) use layer::JsonLayer;
pub(crate) use pace::{Origin, Verdict};
pub use writer::LogWriter;

use std::fmt::Write as _;

use pim_core::clock::Timestamp;
use pim_core::redact::Shown;

/// How lines are logged.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// Which events, in the form of `tracing_subscriber::EnvFilter`.
    pub filter: String,
    /// Most lines that wait to be written.
    pub queue_max: usize,
    /// Lines of level INFO and below that one event may have a second; the rest is suppressed and counted.
    pub info_per_second_max: u32,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: "info".to_owned(), queue_max: 4096, info_per_second_max: 500 }
    }
}

/// One line of known members. `at`, `level`, `service` and `event` come first; members that are absent are left out.
#[must_use]
pub fn line(
    at: Timestamp,
    level: &'static str,
    service: &'static str,
    event: &'static str,
    members: &[(&'static str, Option<Shown>)],
) -> String {
    let mut text = format!(r#"{{"at":"{at}","level":"{level}","service":"{service}","event":"{event}""#);
    for (name, value) in members {
        let Some(value) = value.as_ref().filter(|value| !value.is_absent()) else { continue };
        let value = serde_json::to_value(value).unwrap_or_default();
        let _infallible = write!(text, r#","{name}":{value}"#);
    }
    text.push('}');
    text
}
