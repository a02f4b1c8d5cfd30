//! Following a topic without a position of one's own: for caches that every process keeps for itself.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::task::JoinSet;

use crate::bus::{BusError, Subscriber};
use crate::event::Event;
use crate::pace::{Pace, Stop, rest, sleep, until};

/// Most records that one look reads.
const BATCH_MAX: usize = 500;

type Show = Arc<dyn Fn(Event) -> BoxFuture<'static, ()> + Send + Sync>;

/// Shows every event of a topic that arrives from now on to a closure; remembers nothing across restarts.
///
/// For what may be shown twice or, around a restart, not at all: invalidating a cache, a live view. What must happen once
/// is a [`Projection`](crate::Projection) or a [`CommandHandler`](crate::CommandHandler).
#[must_use = "a tail does nothing until `run`"]
pub struct Tail {
    bus: Arc<dyn Subscriber>,
    topic: String,
    /// Where each partition ended when the tail was made.
    from: Vec<u64>,
}

impl std::fmt::Debug for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tail").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Tail {
    /// Takes the present ends of `topic` as the start. Fill the cache after this, and nothing is missed.
    ///
    /// # Errors
    /// [`BusError`] when there is no such topic or the bus does not answer.
    pub async fn open(bus: Arc<dyn Subscriber>, topic: &str) -> Result<Self, BusError> {
        let mut from = Vec::new();
        for partition in 0..bus.partitions(topic).await? {
            from.push(bus.end_offset(topic, partition).await?);
        }
        Ok(Self { bus, topic: topic.to_owned(), from })
    }

    /// Runs until `shutdown`; each partition waits for what `show` does before it goes on. Records that are no events are
    /// passed over, and so is an event at which `show` panics, which is logged. A bus that does not answer, or panics, is logged
    /// (`tail.waits`) and asked again from the same place, after pauses of up to a second.
    pub async fn run<F>(self, shutdown: impl Future<Output = ()>, show: impl Fn(Event) -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stopper, stop) = Stop::pair();
        let show: Show = Arc::new(move |event| Box::pin(show(event)));
        let mut tasks = JoinSet::new();
        for (partition, from) in (0..).zip(self.from) {
            let (bus, topic) = (Arc::clone(&self.bus), self.topic.clone());
            tasks.spawn(follow(bus, topic, (partition, from), Arc::clone(&show), stop.clone()));
        }
        until(shutdown, stopper, async move { while tasks.join_next().await.is_some() {} }).await;
    }
}

async fn follow(bus: Arc<dyn Subscriber>, topic: String, (partition, mut at): (u16, u64), show: Show, mut stop: Stop) {
    let mut wake = bus.arrivals(&topic, partition);
    let mut pace = Pace::new(Duration::from_secs(1));
    while !stop.is_set() {
        wake.mark_unchanged();
        let fetching = async { bus.fetch(&topic, partition, at, BATCH_MAX).await };
        let Ok(Ok(records)) = AssertUnwindSafe(fetching).catch_unwind().await else {
            pim_core::warn!("tail.waits", partition = partition, code = "bus");
            sleep(pace.pause(), &mut stop).await;
            continue;
        };
        let Some(last) = records.last() else {
            rest(pace.pause(), &mut wake, &mut stop).await;
            continue;
        };
        at = last.offset + 1;
        pace.reset();
        for event in records.iter().filter_map(|record| record.event().ok()) {
            let showing = AssertUnwindSafe(async { show(event).await }).catch_unwind();
            if showing.await.is_err() {
                pim_core::error!("tail.panicked", partition = partition);
            }
        }
    }
}
