//! Runs command handlers: one worker for each of them and each partition.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use pim_core::identity::Actor;
use pim_data::cluster::Cluster;
use tokio::task::JoinSet;

use super::CommandHandler;
use super::sink::CommandSink;
use crate::bus::Subscriber;
use crate::consumer::ledger::{self, Place, Standing};
use crate::consumer::{ConsumerSettings, ConsumerSettingsError, Engine, HOUR_MS, Worker, in_bounds};
use crate::event::Registry;
use crate::pace::{Stop, until};
use crate::projection::{ReadStore, RunnerError, StoreError};

/// How commands run.
#[derive(Clone, Debug)]
pub struct CommandSettings {
    /// The service that acts.
    pub service: Actor,
    /// How long one command may take, 10 milliseconds to an hour; it is cut short then. One that always takes longer, although
    /// its shard answers, parks its key.
    pub patience: Duration,
    /// How its events are read.
    pub consumer: ConsumerSettings,
}

impl CommandSettings {
    /// The defaults, acting as `service`.
    #[must_use]
    pub fn of(service: Actor) -> Self {
        let consumer = ConsumerSettings { batch_max: 64, ..ConsumerSettings::default() };
        Self { service, patience: Duration::from_secs(5), consumer }
    }

    fn check(&self) -> Result<(), ConsumerSettingsError> {
        let patience_ms = u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX);
        in_bounds(&[("patience", patience_ms, 10, HOUR_MS)])?;
        self.consumer.check()
    }
}

/// Whether a read model has the name.
async fn has_model(store: &ReadStore, name: &str) -> Result<bool, StoreError> {
    let rows = store.query(ledger::standing(name)).await?;
    Ok(Standing::of(&rows)?.version > 0)
}

/// Runs commands that events drive.
#[must_use = "a runner does nothing until `run`"]
pub struct CommandRunner {
    workers: Vec<Worker<CommandSink>>,
}

impl std::fmt::Debug for CommandRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommandRunner").field("workers", &self.workers.len()).finish()
    }
}

impl CommandRunner {
    /// Prepares to run `handlers`. Heads, checkpoints and parked keys are kept in `store`; what makes a command
    /// happen once is kept on its own shard.
    ///
    /// # Errors
    /// [`RunnerError`] names the setting that is out of its bounds, the topic that cannot be followed, or the name that two
    /// handlers share, or a handler and a read model of the store.
    pub async fn open(
        cluster: &Cluster,
        store: &ReadStore,
        bus: Arc<dyn Subscriber>,
        registry: &Registry,
        handlers: Vec<Arc<dyn CommandHandler>>,
        settings: &CommandSettings,
    ) -> Result<Self, RunnerError> {
        settings.check()?;
        let mut workers: Vec<Worker<CommandSink>> = Vec::new();
        for handler in handlers {
            let (consumer, topic) = (handler.name(), handler.topic());
            if workers.iter().any(|worker| worker.place.consumer == consumer) {
                return Err(RunnerError::Twice { name: consumer });
            }
            if !registry.has_any(topic, |event_type| handler.handles(event_type)) {
                return Err(RunnerError::HandlesNothing { name: consumer, topic });
            }
            if has_model(store, consumer).await? {
                return Err(RunnerError::ReadModel { name: consumer });
            }
            let sink = CommandSink::new(handler, cluster.clone(), settings);
            let engine = Arc::new(Engine {
                sink,
                db: store.db().clone(),
                registry: registry.clone(),
                settings: settings.consumer.clone(),
                clock: store.clock().clone(),
                signals: store.signals().clone(),
                superseded: Arc::default(),
                told_outdated: AtomicBool::default(),
            });
            let partitions = bus.partitions(topic).await.map_err(|source| RunnerError::Bus { topic, source })?;
            workers.extend((0..partitions).map(|partition| Worker {
                engine: Arc::clone(&engine),
                bus: Arc::clone(&bus),
                place: Place { consumer, topic: topic.to_owned(), partition },
            }));
        }
        Ok(Self { workers })
    }

    /// Runs until `shutdown`; then ends after the steps in hand. Dropping it is safe at any point.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (stopper, stop) = Stop::pair();
        let mut tasks: JoinSet<()> = self.workers.into_iter().map(|worker| worker.run(stop.clone())).collect();
        until(shutdown, stopper, async move { while tasks.join_next().await.is_some() {} }).await;
    }
}
