//! Flat JSON lines, written by a thread of their own; a slow terminal blocks nobody, and what is dropped is counted.

mod layer;
mod writer;

pub(crate) use layer::JsonLayer;
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
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: "info".to_owned(), queue_max: 4096 }
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
        let Some(value) = value else { continue };
        // Admitted values are numbers, static words and opaque ids: none needs escaping, and none can hold a quote.
        let _infallible = match value.number() {
            Some(number) => write!(text, r#","{name}":{number}"#),
            None => write!(text, r#","{name}":{}"#, serde_json::Value::from(value.to_string())),
        };
    }
    text.push('}');
    text
}
