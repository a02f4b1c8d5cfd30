//! Events of `tracing` as lines: what was admitted by type as it is, everything else redacted unless it is on the list.

use std::time::Instant;

use pim_core::clock::Clock;
use pim_core::log::Admitted;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::LogWriter;
use super::pace::{Origin, Verdict};

/// Fields of others that are known to hold numbers and nothing else, by target.
const LISTED: &[(&str, &[&str])] = &[
    ("sqlx::query", &["elapsed_secs", "rows_affected", "rows_returned"]),
    ("sqlx::pool::acquire", &["acquired_after_secs", "slow_acquire_threshold_secs"]),
];
/// Members that are the line's own: a field of such a name is shown behind `field.`.
const OWN: &[&str] = &["at", "level", "service", "target", "suppressed"];
/// Stands where a value was.
const REDACTED: &str = "[redacted]";

/// Writes each event as one line.
pub(crate) struct JsonLayer {
    writer: LogWriter,
    clock: Clock,
}

impl JsonLayer {
    pub(crate) const fn new(writer: LogWriter) -> Self {
        Self { writer, clock: Clock::system() }
    }
}

impl<S: Subscriber> Layer<S> for JsonLayer {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let metadata = event.metadata();
        let is_limited = *metadata.level() >= Level::INFO;
        let verdict = if is_limited {
            self.writer.verdict(Origin::Callsite(metadata.callsite()), Instant::now())
        } else {
            Verdict::Write { suppressed: 0 }
        };
        let Verdict::Write { suppressed } = verdict else { return };
        let mut members = Members { target: metadata.target(), json: Map::new(), redacted: 0 };
        event.record(&mut members);
        let mut line = Map::new();
        line.insert("at".to_owned(), Value::from(self.clock.now().to_string()));
        line.insert("level".to_owned(), Value::from(level_of(*metadata.level())));
        line.insert("service".to_owned(), Value::from(self.writer.service()));
        line.insert("target".to_owned(), Value::from(metadata.target()));
        line.extend(members.json);
        if suppressed > 0 {
            line.insert("suppressed".to_owned(), Value::from(suppressed));
        }
        self.writer.count_redacted(members.redacted);
        self.writer.take(Value::Object(line).to_string());
    }
}

const fn level_of(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// Collects an event's fields.
struct Members<'e> {
    target: &'e str,
    json: Map<String, Value>,
    redacted: u64,
}

impl Members<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        let name = match field.name() {
            // Ours come with the event's name first; of others the message is all that they have of one.
            "message" if !self.json.contains_key("event") => "event".to_owned(),
            "event" if !self.json.contains_key("event") => "event".to_owned(),
            name if name == "message" || name == "event" || OWN.contains(&name) => format!("field.{name}"),
            name => name.to_owned(),
        };
        self.json.insert(name, value);
    }

    /// A value of others: shown when its field is on the list.
    fn put_foreign(&mut self, field: &Field, value: impl Into<Value>) {
        let is_listed = LISTED.iter().any(|(target, fields)| *target == self.target && fields.contains(&field.name()));
        if is_listed {
            self.put(field, value.into());
        } else {
            self.redact(field);
        }
    }

    fn redact(&mut self, field: &Field) {
        self.redacted += 1;
        self.put(field, Value::from(REDACTED));
    }
}

impl Visit for Members<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put_foreign(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put_foreign(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put_foreign(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put_foreign(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        match Admitted::behind(value) {
            Some(shown) if shown.is_absent() => {}
            Some(shown) => self.put(field, serde_json::to_value(shown).unwrap_or_default()),
            None => self.redact(field),
        }
    }

    fn record_str(&mut self, field: &Field, _value: &str) {
        self.redact(field);
    }

    fn record_debug(&mut self, field: &Field, _value: &dyn std::fmt::Debug) {
        // `%` and `?` both come this way, so anything could.
        self.redact(field);
    }
}
