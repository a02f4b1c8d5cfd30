//! The relay: reads behind the cursor, publishes in order, moves the cursor. It leases outboxes, it never claims rows.

mod hold;
mod task;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use pim_core::signal::Spans;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Source, Sources};
use crate::bus::Publisher;
use crate::pace::{Stop, Stopper, until};
use crate::signals::EventSignals;
use task::Task;

/// How a relay reads, and for how long it holds a lease without a word.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelaySettings {
    /// Most events that are published at once: 1 to 10,000.
    pub batch_max: usize,
    /// Longest pause between two looks at a quiet outbox, in milliseconds: 1 to an hour.
    pub pause_max_ms: u64,
    /// After this time without renewal another relay takes over, in milliseconds: 10 to an hour.
    pub lease_ms: u64,
    /// How long a moved cursor may stay unwritten, in milliseconds: up to an hour. After a crash these events are published
    /// again.
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

/// A setting that is out of its bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("relay setting {key} must be between {min} and {max}, not {found}")]
pub struct RelaySettingsError {
    /// Which setting.
    pub key: &'static str,
    /// Its least value.
    pub min: u64,
    /// Its largest value.
    pub max: u64,
    /// What it is.
    pub found: u64,
}

const HOUR_MS: u64 = 3_600_000;
/// Shortest and longest time that an outbox has to end in.
const ENDING: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

impl RelaySettings {
    /// Refuses what is out of its bounds, for programs that want to know before they open anything: a batch of none would look
    /// like an empty outbox, and the cursor would pass what was never sent.
    ///
    /// # Errors
    /// [`RelaySettingsError`] names the setting and its bounds.
    pub fn check(&self) -> Result<(), RelaySettingsError> {
        let bounds = [
            ("batch_max", self.batch_max as u64, 1, 10_000),
            ("pause_max_ms", self.pause_max_ms, 1, HOUR_MS),
            ("lease_ms", self.lease_ms, 10, HOUR_MS),
            ("cursor_delay_ms", self.cursor_delay_ms, 0, HOUR_MS),
        ];
        let broken = bounds.into_iter().find(|(_, found, min, max)| found < min || found > max);
        broken.map_or(Ok(()), |(key, found, min, max)| Err(RelaySettingsError { key, min, max, found }))
    }

    const fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    /// How long an outbox may take to end: hardly longer than its lease, which another relay can have then.
    fn ending_max(&self) -> Duration {
        self.lease().clamp(ENDING.0, ENDING.1)
    }

    const fn cursor_delay(&self) -> Duration {
        Duration::from_millis(self.cursor_delay_ms)
    }
}

/// Brings the events of outboxes to the bus: in order within each key, at least once.
///
/// Several relays, also in several processes, may run over the same outboxes; each outbox is served by one at a time.
/// One that comes back from the dead can only repeat what the outbox says, and its cursor writes are refused.
///
/// One over a cluster follows its map: it serves the shards that are added, and by the servers that are named.
#[must_use = "a relay does nothing until `run`"]
pub struct Relay {
    sources: Sources,
    bus: Arc<dyn Publisher>,
    settings: RelaySettings,
    owner: Uuid,
    signals: EventSignals,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("outboxes", &self.sources.now().len()).finish()
    }
}

impl Relay {
    /// A relay over `sources`: some outboxes, or those of a cluster.
    ///
    /// # Errors
    /// [`RelaySettingsError`] names the setting and its bounds.
    pub fn new(
        sources: impl Into<Sources>,
        bus: &Arc<dyn Publisher>,
        settings: &RelaySettings,
    ) -> Result<Self, RelaySettingsError> {
        settings.check()?;
        let (sources, settings, owner) = (sources.into(), settings.clone(), Uuid::new_v4());
        Ok(Self { sources, bus: Arc::clone(bus), settings, owner, signals: EventSignals::unbound() })
    }

    /// Tells `signals` what happens.
    pub fn with_signals(mut self, signals: &EventSignals) -> Self {
        self.signals = signals.clone();
        self
    }

    /// Runs until `shutdown`; then writes its cursors and gives its leases back. Where bus or database do not answer it ends within
    /// five seconds all the same, and what it did not write down is sent again. Dropping it is safe at any point.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (stopper, stop) = Stop::pair();
        until(shutdown, stopper, self.serve(stop)).await;
    }

    async fn serve(mut self, mut stop: Stop) {
        let mut served: Vec<Served> = Vec::new();
        let mut tasks = JoinSet::new();
        while !stop.is_set() {
            let sources = self.sources.now();
            for gone in served.iter_mut().filter(|it| !sources.iter().any(|source| source.is(&it.source))) {
                gone.end(self.settings.ending_max());
            }
            // An outbox that is read another way by now is served again once nobody serves it: both would hold one lease.
            for source in sources {
                if !served.iter().any(|it| it.source.origin == source.origin) {
                    served.push(self.begin(source, &mut tasks));
                }
            }
            tokio::select! {
                () = stop.wait() => {}
                () = self.sources.changed() => {}
                () = until_due(&served) => served.iter_mut().for_each(Served::cut_short),
                Some(ended) = tasks.join_next_with_id() => {
                    let ended = ended.map_or_else(|error| error.id(), |(id, ())| id);
                    served.retain(|it| it.task.id() != ended);
                }
            }
        }
        served.iter_mut().for_each(|it| it.end(self.settings.ending_max()));
        while !tasks.is_empty() {
            tokio::select! {
                _ended = tasks.join_next() => {}
                () = until_due(&served) => served.iter_mut().for_each(Served::cut_short),
            }
        }
    }

    fn begin(&self, source: Source, tasks: &mut JoinSet<()>) -> Served {
        let (stopper, stop) = Stop::pair();
        let mut task = Task::new(source.clone(), Arc::clone(&self.bus), self.settings.clone(), self.owner, stop);
        task.signals = self.signals.clone();
        Served { source, stopper, task: tasks.spawn(task.run()), is_told: false, due: None }
    }
}

/// Waits until one of them has to be cut short.
async fn until_due(served: &[Served]) {
    match served.iter().filter_map(|it| it.due).min() {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// An outbox with a task.
struct Served {
    source: Source,
    stopper: Stopper,
    task: AbortHandle,
    /// Whether it is told to end.
    is_told: bool,
    /// Until when it may take its time for that.
    due: Option<Instant>,
}

impl Served {
    /// Tells it to end. Where it is read no more, or the bus is away, nobody may answer: it is waited for no longer than this.
    fn end(&mut self, patience: Duration) {
        if !self.is_told {
            self.stopper.stop();
            (self.is_told, self.due) = (true, Some(Instant::now() + patience));
        }
    }

    fn cut_short(&mut self) {
        if self.due.take_if(|due| *due <= Instant::now()).is_some() {
            self.task.abort();
        }
    }
}
