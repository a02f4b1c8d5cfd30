//! Gauges: what outboxes and consumers look like from outside, whoever holds a lease and whether anybody runs.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use pim_core::clock::Clock;
use pim_core::role::ClosedEnum as _;
use pim_core::signal::{GaugeFamily, LabelSet};
use pim_data::backend::{DbError, Statement};

use super::{Bound, ConsumerKind, EventSignals, SourceLabel, whole};
use crate::bus::{BusError, Subscriber};
use crate::consumer::HoldReason;
use crate::outbox::{OutboxError, Source, Sources};
use crate::pace::{Stop, sleep, until};
use crate::projection::{PartitionStatus, ReadStore, StatusError, StoreError};

/// How often a watch looks.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatchSettings {
    /// Pause between two looks, in milliseconds; at least 100.
    pub pause_ms: u64,
}

impl Default for WatchSettings {
    fn default() -> Self {
        Self { pause_ms: 5_000 }
    }
}

enum Subject {
    Outboxes { sources: Sources, clock: Clock },
    Consumers { store: ReadStore, bus: Arc<dyn Subscriber> },
}

/// Why a look did not see everything; what it did not see has its gauges as they were, and everything else is told.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Status(#[from] StatusError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Sets gauges from time to time.
#[must_use = "a watch does nothing until `run`"]
pub struct Watch {
    subject: Subject,
    signals: EventSignals,
    pause: Duration,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("pause", &self.pause).finish_non_exhaustive()
    }
}

impl Watch {
    /// Watches outboxes: runs beside a relay, and sees those that it does not serve as well.
    pub fn of_outboxes(
        sources: impl Into<Sources>,
        clock: Clock,
        signals: &EventSignals,
        settings: &WatchSettings,
    ) -> Self {
        Self::of(Subject::Outboxes { sources: sources.into(), clock }, signals, settings)
    }

    /// Watches the consumers of a read store: runs beside projections.
    pub fn of_consumers(
        store: &ReadStore,
        bus: Arc<dyn Subscriber>,
        signals: &EventSignals,
        settings: &WatchSettings,
    ) -> Self {
        Self::of(Subject::Consumers { store: store.clone(), bus }, signals, settings)
    }

    fn of(subject: Subject, signals: &EventSignals, settings: &WatchSettings) -> Self {
        Self { subject, signals: signals.clone(), pause: Duration::from_millis(settings.pause_ms.max(100)) }
    }

    /// Watches until `shutdown`.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (stopper, mut stop) = Stop::pair();
        let watching = async {
            while !stop.is_set() {
                // What does not answer is missed by its own users first, and told by them.
                let _unknown = self.look().await;
                sleep(self.pause, &mut stop).await;
            }
        };
        until(shutdown, stopper, watching).await;
    }

    async fn look(&self) -> Result<(), WatchError> {
        let Some(bound) = &self.signals.0 else { return Ok(()) };
        match &self.subject {
            Subject::Outboxes { sources, clock } => outboxes(bound, &sources.now(), clock).await,
            Subject::Consumers { store, bus } => {
                // Dead letters are in the store, whether the bus answers or not.
                let lags = consumers(bound, store, bus.as_ref()).await;
                dead_letters(bound, store).await?;
                lags
            }
        }
    }
}

async fn outboxes(bound: &Bound, sources: &[Source], clock: &Clock) -> Result<(), WatchError> {
    // Also those that are gone: what was said of them last holds no more.
    let mut worst: BTreeMap<SourceLabel, [u64; 3]> = SourceLabel::ALL.iter().map(|label| (*label, [0; 3])).collect();
    let (mut silent, mut outcome) = (BTreeSet::<SourceLabel>::new(), Ok(()));
    for source in sources {
        let label = source.origin.into();
        let status = match source.status(clock.now()).await {
            Ok(status) => status,
            Err(error) => {
                silent.insert(label);
                outcome = outcome.and(Err(error.into()));
                continue;
            }
        };
        let of_label = worst.entry(label).or_default();
        let found = [status.oldest_unsent_ms.div_ceil(1000), status.backlog, status.held];
        for (worst, found) in of_label.iter_mut().zip(found) {
            *worst = found.max(*worst);
        }
    }
    for (label, [oldest, backlog, held]) in worst {
        let is_whole = !silent.contains(&label);
        tell(&bound.oldest_unsent, label, oldest, is_whole);
        tell(&bound.backlog, label, backlog, is_whole);
        tell(&bound.held, label, held, is_whole);
    }
    outcome
}

/// Sets a gauge. What is not seen as a whole is at least what is seen of it, and no better than it was.
fn tell<L: LabelSet + Copy>(family: &GaugeFamily<L>, label: L, found: u64, is_whole: bool) {
    let (gauge, found) = (family.get(label), whole(found));
    gauge.set(if is_whole { found } else { found.max(gauge.get()) });
}

async fn consumers(bound: &Bound, store: &ReadStore, bus: &dyn Subscriber) -> Result<(), WatchError> {
    let (all, unknown) = store.known_status(bus).await?;
    let now = store.clock().now();
    // A record that cannot be read is as old at least as its consumer has stood before it.
    let lag_ms = |part: &PartitionStatus| {
        let stood = || u64::try_from(now.since(part.moved_at).as_millis()).unwrap_or(u64::MAX);
        part.lag_ms.unwrap_or_else(stood)
    };
    for kind in ConsumerKind::ALL {
        // A consumer with a read model is a projection.
        let of_kind = all.iter().filter(|it| it.version.is_some() == (*kind == ConsumerKind::Projection));
        let lags = of_kind.map(|it| {
            let records: u64 = it.partitions.iter().map(|part| part.lag).sum();
            (records, it.partitions.iter().map(lag_ms).max().unwrap_or(0))
        });
        let worst = lags.fold((0, 0), |worst, lag| (lag.0.max(worst.0), lag.1.max(worst.1)));
        tell(&bound.lag_records, *kind, worst.0, unknown.is_none());
        tell(&bound.lag_seconds, *kind, worst.1.div_ceil(1000), unknown.is_none());
    }
    bound.stopped.get(()).set(whole(all.iter().filter(|it| it.stopped.is_some()).count() as u64));
    unknown.map_or(Ok(()), |error| Err(error.into()))
}

async fn dead_letters(bound: &Bound, store: &ReadStore) -> Result<(), StoreError> {
    let now = store.clock().now();
    let held = Statement::same("SELECT reason, count(*), min(since) FROM held_key GROUP BY reason");
    let letters = Statement::same("SELECT count(*), min(at) FROM (SELECT at FROM held_event LIMIT 100000) h");
    let records = Statement::same("SELECT count(*), min(at) FROM (SELECT at FROM dead_record LIMIT 100000) d");
    let answers = store.db().read().await?.snapshot(&[held, letters, records]).await?;
    let [held, letters, records] = &answers[..] else { return Err(DbError::Closed.into()) };
    for reason in HoldReason::ALL {
        let row = held.iter().find(|row| row.text(0).is_ok_and(|name| name == reason.name()));
        let since = row.and_then(|row| row.time(2).ok());
        bound.parked_keys.get(*reason).set(whole(row.and_then(|row| row.count(1).ok()).unwrap_or(0)));
        bound.parked_oldest.get(*reason).set(since.map_or(0, |since| whole(now.since(since).as_secs())));
    }
    let counted = |rows: &[pim_data::backend::Row]| whole(rows.first().and_then(|row| row.count(0).ok()).unwrap_or(0));
    bound.dead_letters.get(()).set(counted(letters));
    bound.dead_records.get(()).set(counted(records));
    let oldest = [letters, records].into_iter().filter_map(|rows| rows.first()?.time(1).ok()).min();
    bound.dead_oldest.get(()).set(oldest.map_or(0, |at| whole(now.since(at).as_secs())));
    Ok(())
}
