//! Events of `tracing` as lines: ours with their static codes and numbers, those of others with their texts redacted.

use pim_core::clock::Clock;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::LogWriter;

/// Targets whose text fields are static codes: our own crates.
const OURS: &str = "pim_";
/// Text fields of ours that hold a stable code and nothing else.
const CODES: &[&str] =
    &["action", "code", "consumer", "point", "reason", "resource", "role", "stage", "store", "topic"];
/// Fields of ours that are shown by their text form: opaque ids, and messages, which are literals.
const FORMS: &[&str] = &["message", "origin", "request_id", "subject"];

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
        let target = event.metadata().target();
        let mut members = Members { ours: target.starts_with(OURS), json: Map::new() };
        event.record(&mut members);
        let mut line = Map::new();
        line.insert("at".to_owned(), Value::from(self.clock.now().to_string()));
        line.insert("level".to_owned(), Value::from(level_of(*event.metadata().level())));
        line.insert("service".to_owned(), Value::from(self.writer.service()));
        line.insert("target".to_owned(), Value::from(target));
        line.extend(members.json);
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

/// Collects an event's fields: numbers and booleans as they are, texts only where they are known to be codes.
struct Members {
    ours: bool,
    json: Map<String, Value>,
}

impl Members {
    fn put(&mut self, field: &Field, value: Value) {
        let name = if field.name() == "message" { "event" } else { field.name() };
        self.json.insert(name.to_owned(), value);
    }

    fn put_text(&mut self, field: &Field, text: &str, allowed: &[&str]) {
        let is_allowed = self.ours && allowed.contains(&field.name());
        self.put(field, Value::from(if is_allowed { text } else { "[redacted]" }));
    }
}

impl Visit for Members {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::from(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_text(field, value, CODES);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // `%` and `?` both come this way, so anything could: only what is known to be an id or a literal passes.
        self.put_text(field, &format!("{value:?}"), FORMS);
    }
}
