//! The relay: reads behind the cursor, publishes in order, moves the cursor. It leases outboxes, it never claims rows.

mod hold;
mod task;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use pim_core::signal::Spans;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::Source;
use crate::bus::Publisher;
use crate::pace::{Stop, until};
use crate::signals::EventSignals;
use task::Task;

/// How a relay reads, and for how long it holds a lease without a word.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelaySettings {
    /// Most events that are published at once.
    pub batch_max: usize,
    /// Longest pause between two looks at a quiet outbox, in milliseconds.
    pub pause_max_ms: u64,
    /// After this time without renewal another relay takes over, in milliseconds.
    pub lease_ms: u64,
    /// How long a moved cursor may stay unwritten, in milliseconds. After a crash these events are published again.
    pub cursor_delay_ms: u64,
    /// Where the spans of what was published go.
    #[serde(skip)]
    pub spans: Spans,
}

impl Default for RelaySettings {
    fn default() -> Self {
        Self { batch_max: 500, pause_max_ms: 1000, lease_ms: 2000, cursor_delay_ms: 50, spans: Spans::default() }
    }
}

impl RelaySettings {
    const fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    const fn cursor_delay(&self) -> Duration {
        Duration::from_millis(self.cursor_delay_ms)
    }
}

/// Brings the events of some outboxes to the bus: in order within each key, at least once.
///
/// Several relays, also in several processes, may run over the same outboxes; each outbox is served by one at a time.
/// One that comes back from the dead can only repeat what the outbox says, and its cursor writes are refused.
#[must_use = "a relay does nothing until `run`"]
pub struct Relay {
    tasks: Vec<Task>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("outboxes", &self.tasks.len()).finish()
    }
}

impl Relay {
    /// A relay over `sources`.
    pub fn new(sources: Vec<Source>, bus: &Arc<dyn Publisher>, settings: &RelaySettings) -> Self {
        let owner = Uuid::new_v4();
        let task = |source| Task::new(source, Arc::clone(bus), settings.clone(), owner);
        Self { tasks: sources.into_iter().map(task).collect() }
    }

    /// Tells `signals` what happens.
    pub fn with_signals(mut self, signals: &EventSignals) -> Self {
        for task in &mut self.tasks {
            task.signals = signals.clone();
        }
        self
    }

    /// Runs until `shutdown`; then writes its cursors and gives its leases back. Dropping it is safe at any point.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (stopper, stop) = Stop::pair();
        let mut tasks: JoinSet<()> = self.tasks.into_iter().map(|task| task.run(stop.clone())).collect();
        until(shutdown, stopper, async move { while tasks.join_next().await.is_some() {} }).await;
    }
}
