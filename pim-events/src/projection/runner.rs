//! Runs projections: one worker for each of them and each partition.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use pim_data::backend::Transaction;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Projection, ReadStore, StoreError};
use crate::bus::{BusError, Subscriber};
use crate::consumer::ledger::Place;
use crate::consumer::{
    Ahead, ApplyError, ConsumerSettings, ConsumerSettingsError, Engine, PATIENCE, Sink, Worker, guarded,
};
use crate::event::{Event, Registry};
use crate::pace::{GoesOn, Stop, until};
use crate::signals::ConsumerKind;

/// Why projections cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunnerError {
    /// A read model is not as the program needs it.
    #[error("prepare the read models")]
    Store(#[from] StoreError),
    /// The bus does not have the topic, or does not answer.
    #[error("find the partitions of topic {topic}")]
    Bus {
        /// Which topic.
        topic: &'static str,
        /// Why.
        #[source]
        source: BusError,
    },
    /// A setting is out of its bounds.
    #[error(transparent)]
    Settings(#[from] ConsumerSettingsError),
    /// A command handler has the name of a read model of the store, and would share its place in the log.
    #[error(
        "{name} is the name of a read model of this store: give the handler another, or retire the model \
         (`ReadStore::retire`) where no program has it any more"
    )]
    ReadModel {
        /// Which name.
        name: &'static str,
    },
    /// It would pass every event without a sign, as with a type that was mistyped, or not registered.
    #[error("{name} handles none of the event types that are registered for topic {topic}")]
    HandlesNothing {
        /// Which consumer.
        name: &'static str,
        /// The topic that it follows.
        topic: &'static str,
    },
    /// Two consumers share a name, and would share their place in the log.
    #[error("consumer {name} is there twice")]
    Twice {
        /// Which name.
        name: &'static str,
    },
}

/// Keeps read models up to date.
#[must_use = "a runner does nothing until `run`"]
pub struct ProjectionRunner {
    workers: Vec<Worker<ProjectionSink>>,
}

impl std::fmt::Debug for ProjectionRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProjectionRunner").field("workers", &self.workers.len()).finish()
    }
}

impl ProjectionRunner {
    /// Makes the tables of `projections` where they are missing, and prepares to run them.
    ///
    /// # Errors
    /// [`RunnerError`] names the setting, read model or topic that is not as it must be.
    pub async fn open(
        store: &ReadStore,
        bus: Arc<dyn Subscriber>,
        registry: &Registry,
        projections: Vec<Arc<dyn Projection>>,
        settings: &ConsumerSettings,
    ) -> Result<Self, RunnerError> {
        settings.check()?;
        let mut workers: Vec<Worker<ProjectionSink>> = Vec::new();
        for projection in projections {
            let (consumer, topic) = (projection.name(), projection.topic());
            if workers.iter().any(|worker| worker.place.consumer == consumer) {
                return Err(RunnerError::Twice { name: consumer });
            }
            if !registry.has_any(topic, |event_type| projection.handles(event_type)) {
                return Err(RunnerError::HandlesNothing { name: consumer, topic });
            }
            store.install(projection.as_ref()).await?;
            let engine = Arc::new(engine(store, registry, projection, settings));
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
    ///
    /// A projection whose read model has got another version meanwhile stands still, and tells so once (`consumer.outdated`):
    /// whoever has that version goes on with it.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (stopper, stop) = Stop::pair();
        let mut tasks: JoinSet<()> = self.workers.into_iter().map(|worker| worker.run(stop.clone())).collect();
        until(shutdown, stopper, async move { while tasks.join_next().await.is_some() {} }).await;
    }
}

pub(super) fn engine(
    store: &ReadStore,
    registry: &Registry,
    projection: Arc<dyn Projection>,
    settings: &ConsumerSettings,
) -> Engine<ProjectionSink> {
    Engine {
        sink: ProjectionSink { projection, patience: settings.apply_max() },
        db: store.db().clone(),
        registry: registry.clone(),
        settings: settings.clone(),
        clock: store.clock().clone(),
        signals: store.signals().clone(),
        superseded: Arc::default(),
        told_outdated: AtomicBool::default(),
    }
}

/// A projection as the place where events take effect.
pub(super) struct ProjectionSink {
    projection: Arc<dyn Projection>,
    patience: Duration,
}

#[async_trait]
impl Sink for ProjectionSink {
    const PREPARES: bool = false;
    const KIND: ConsumerKind = ConsumerKind::Projection;

    fn version(&self) -> Option<u32> {
        Some(self.projection.version())
    }

    fn handles(&self, event_type: &str) -> bool {
        self.projection.handles(event_type)
    }

    async fn prepare(&self, _: &[Event], _: &Ahead<'_>, _: GoesOn<'_>) -> Result<bool, ApplyError> {
        Ok(true)
    }

    async fn apply(&self, tx: &mut Transaction, events: &[Event]) -> Result<(), ApplyError> {
        // Cut short it has written nothing: the transaction is not its own to commit.
        let applied = timeout(self.patience, guarded(self.projection.apply(tx, events))).await;
        applied.unwrap_or(Err(ApplyError::Later { code: PATIENCE }))
    }
}
