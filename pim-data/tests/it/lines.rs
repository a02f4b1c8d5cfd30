//! What a program says in its log while a test listens.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex};

use pim_core::log::Admitted;
use pim_core::log::tracing::field::{Field, Visit};
use pim_core::log::tracing::span::{Attributes, Id, Record};
use pim_core::log::tracing::subscriber::DefaultGuard;
use pim_core::log::tracing::{Dispatch, Event, Metadata, Subscriber};

type Line = BTreeMap<&'static str, String>;

/// Lines by their members; clones share them.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<Line>>>);

impl Lines {
    /// What this thread says from now on, until the guard is dropped.
    pub(crate) fn listen() -> (Self, DefaultGuard) {
        // With one subscriber known, a test beside this one that reaches an event first has it never told to anybody.
        static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(Lines::default()));
        LazyLock::force(&SECOND);
        let lines = Self::default();
        let listening = pim_core::log::tracing::subscriber::set_default(lines.clone());
        (lines, listening)
    }

    /// Those of one event.
    pub(crate) fn of(&self, event: &str) -> Vec<Line> {
        let all = self.0.lock().expect("no panic");
        all.iter().filter(|line| line.get("event").is_some_and(|it| it == event)).cloned().collect()
    }
}

struct Members<'a>(&'a mut Line);

impl Visit for Members<'_> {
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        if let Some(shown) = Admitted::behind(value) {
            self.0.insert(field.name(), shown.to_string());
        }
    }
    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

impl Subscriber for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line::new();
        event.record(&mut Members(&mut line));
        self.0.lock().expect("no panic").push(line);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
