//! What `/metrics` answers: OpenMetrics with examples to a scraper that asks for it, the plain text format to everybody else.
//!
//! ```
//! use pim_core::signal::SignalRegistry;
//! use pim_telemetry::exposition::{Format, render};
//! use pim_telemetry::trace::TraceStore;
//!
//! let (registry, traces) = (SignalRegistry::new(), TraceStore::new(1000));
//! let format = Format::accepted("application/openmetrics-text; version=1.0.0, text/plain; q=0.5");
//! assert_eq!(format, Format::OpenMetrics);
//! assert_eq!(render(&registry, format, &traces), "# EOF\n");
//! assert_eq!(Format::accepted("*/*"), Format::Plain);
//! ```

mod accept;
mod sample;

pub(crate) use sample::{labels, split_example};

use std::collections::HashSet;

use pim_core::signal::SignalRegistry;

use crate::trace::TraceStore;

/// In which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0: histograms carry examples, each with the trace of one request.
    OpenMetrics,
    /// The text format 0.0.4, which knows no examples.
    Plain,
}

impl Format {
    /// The form that an `Accept` header prefers; plain text when it says nothing of either.
    #[must_use]
    pub fn accepted(header: &str) -> Self {
        accept::preferred(header)
    }

    /// Its media type, for the answer's `Content-Type`.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Everything that is bound, in one form. An example is shown for as long as `traces` keep a span of its trace, so that each
/// of them leads somewhere.
#[must_use]
pub fn render(registry: &SignalRegistry, format: Format, traces: &TraceStore) -> String {
    let text = registry.encode();
    match format {
        Format::OpenMetrics => with_kept_examples(&text, traces),
        Format::Plain => as_plain(&text),
    }
}

fn with_kept_examples(text: &str, traces: &TraceStore) -> String {
    let kept: HashSet<String> = traces.trace_ids().into_iter().map(|trace| trace.to_string()).collect();
    let mut shown = String::with_capacity(text.len());
    for line in text.lines() {
        let (sample, example) = split_example(line);
        let is_kept = example
            .is_some_and(|example| labels(example).any(|(name, value)| name == "trace_id" && kept.contains(value)));
        shown.push_str(if is_kept { line } else { sample });
        shown.push('\n');
    }
    shown
}

/// Counters have the name of their samples there; units, examples and the end mark are not known.
fn as_plain(text: &str) -> String {
    let typed = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"));
    let counters: HashSet<&str> = typed.collect();
    let mut plain = String::with_capacity(text.len());
    for line in text.lines().filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF") {
        let told = line.strip_prefix("# HELP ").map(|rest| ("# HELP ", rest));
        let told = told.or_else(|| line.strip_prefix("# TYPE ").map(|rest| ("# TYPE ", rest)));
        match told.and_then(|(what, rest)| Some((what, rest.split_once(' ')?))) {
            Some((what, (name, rest))) if counters.contains(name) => {
                plain.extend([what, name, "_total ", rest]);
            }
            Some(_) => plain.push_str(line),
            None => plain.push_str(split_example(line).0),
        }
        plain.push('\n');
    }
    plain
}
