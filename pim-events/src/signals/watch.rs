//! Gauges: what outboxes and consumers look like from outside, whoever holds a lease and whether anybody runs.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use pim_core::clock::Clock;
use pim_core::role::ClosedEnum as _;
use pim_core::signal::{GaugeFamily, LabelSet};
use pim_data::backend::{DbError, Statement};
use tokio::time::Instant;

use super::{Bound, ConsumerKind, EventSignals, SourceLabel, whole};
use crate::bus::{BusError, Subscriber};
use crate::consumer::HoldReason;
use crate::outbox::{OutboxError, Source, Sources};
use crate::pace::{Stop, sleep, until};
use crate::projection::{Known, PartitionStatus, ReadStore, StatusError, StoreError};

/// What has not answered by then is not seen by this look.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

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
    patience: Duration,
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
        let pause = Duration::from_millis(settings.pause_ms.max(100));
        Self { subject, signals: signals.clone(), pause, patience: ANSWERED_WITHIN }
    }

    /// Watches until `shutdown`. A look waits five seconds at most for what it looks at, and for nothing once it is to end.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (stopper, mut stop) = Stop::pair();
        let watching = async {
            while !stop.is_set() {
                tokio::select! {
                    // What does not answer is missed by its own users first, and told by them.
                    _unknown = self.look() => {}
                    () = stop.wait() => return,
                }
                sleep(self.pause, &mut stop).await;
            }
        };
        until(shutdown, stopper, watching).await;
    }

    async fn look(&self) -> Result<(), WatchError> {
        let Some(bound) = &self.signals.0 else { return Ok(()) };
        let until = Instant::now() + self.patience;
        match &self.subject {
            Subject::Outboxes { sources, clock } => outboxes(bound, &sources.now(), clock, until).await,
            Subject::Consumers { store, bus } => {
                // Dead letters are in the store, whether the bus answers or not.
                let (lags, letters) =
                    tokio::join!(consumers(bound, store, bus.as_ref(), until), dead_letters(bound, store, until));
                lags.and(letters.map_err(WatchError::from))
            }
        }
    }
}

async fn outboxes(bound: &Bound, sources: &[Source], clock: &Clock, until: Instant) -> Result<(), WatchError> {
    let now = clock.now();
    let answers = join_all(sources.iter().map(|source| source.status_until(now, until))).await;
    // Also those that are gone: what was said of them last holds no more.
    let mut worst: BTreeMap<SourceLabel, [u64; 3]> = SourceLabel::ALL.iter().map(|label| (*label, [0; 3])).collect();
    let (mut silent, mut outcome) = (BTreeSet::<SourceLabel>::new(), Ok(()));
    for (source, answer) in sources.iter().zip(answers) {
        let label = source.origin.into();
        let status = match answer {
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

async fn consumers(bound: &Bound, store: &ReadStore, bus: &dyn Subscriber, until: Instant) -> Result<(), WatchError> {
    let Known { consumers: all, endless, ageless } = store.known_status(bus, until).await?;
    let now = store.clock().now();
    // How long a consumer has stood before a record that is lost is all that will be known of its age. Of one that was not told
    // this time nothing is known, and the gauge is as it was.
    let lag_ms = |part: &PartitionStatus| {
        let stood = || u64::try_from(now.since(part.moved_at).as_millis()).unwrap_or(u64::MAX);
        part.lag_ms.unwrap_or_else(|| if ageless.is_none() { stood() } else { 0 })
    };
    for kind in ConsumerKind::ALL {
        // A consumer with a read model is a projection.
        let of_kind = all.iter().filter(|it| it.version.is_some() == (*kind == ConsumerKind::Projection));
        let lags = of_kind.map(|it| {
            let records: u64 = it.partitions.iter().map(|part| part.lag).sum();
            (records, it.partitions.iter().map(lag_ms).max().unwrap_or(0))
        });
        let worst = lags.fold((0, 0), |worst, lag| (lag.0.max(worst.0), lag.1.max(worst.1)));
        tell(&bound.lag_records, *kind, worst.0, endless.is_none());
        let is_aged = endless.is_none() && ageless.is_none();
        tell(&bound.lag_seconds, *kind, worst.1.div_ceil(1000), is_aged);
    }
    bound.stopped.get(()).set(whole(all.iter().filter(|it| it.stopped.is_some()).count() as u64));
    endless.or(ageless).map_or(Ok(()), |error| Err(error.into()))
}

async fn dead_letters(bound: &Bound, store: &ReadStore, until: Instant) -> Result<(), StoreError> {
    let now = store.clock().now();
    let held = Statement::same("SELECT reason, count(*), min(since) FROM held_key GROUP BY reason");
    let letters = Statement::same("SELECT count(*), min(at) FROM (SELECT at FROM held_event LIMIT 100000) h");
    let records = Statement::same("SELECT count(*), min(at) FROM (SELECT at FROM dead_record LIMIT 100000) d");
    let answers = store.ask_until(&[held, letters, records], until).await?;
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
