//! A bus that faults may strike: what the relay publishes through and what consumers fetch from.

use std::sync::Arc;

use async_trait::async_trait;
use pim_events::{Ack, BusError, NewRecord, Publisher, Record, Subscriber};
use tokio::sync::watch;

use super::ChaosPoint;
use crate::signals::Hub;

/// Publishes, unless a fault at [`ChaosPoint::OutboxRelay`] strikes. What is not published stays in the outbox.
pub struct StruckPublisher {
    inner: Arc<dyn Publisher>,
    hub: Hub,
}

impl StruckPublisher {
    /// Before a bus.
    #[must_use]
    pub fn before(inner: Arc<dyn Publisher>, hub: Hub) -> Self {
        Self { inner, hub }
    }
}

#[async_trait]
impl Publisher for StruckPublisher {
    async fn publish(&self, batch: Vec<NewRecord>) -> Result<Vec<Ack>, BusError> {
        self.hub.chaos().inject(ChaosPoint::OutboxRelay).await.map_err(|_| struck())?;
        self.inner.publish(batch).await
    }
}

/// Fetches, unless a fault at [`ChaosPoint::Consumer`] strikes. What is not fetched stays in the log.
pub struct StruckSubscriber {
    inner: Arc<dyn Subscriber>,
    hub: Hub,
}

impl StruckSubscriber {
    /// Before a bus.
    #[must_use]
    pub fn before(inner: Arc<dyn Subscriber>, hub: Hub) -> Self {
        Self { inner, hub }
    }
}

#[async_trait]
impl Subscriber for StruckSubscriber {
    async fn partitions(&self, topic: &str) -> Result<u16, BusError> {
        self.inner.partitions(topic).await
    }

    async fn fetch(&self, topic: &str, partition: u16, offset: u64, max: usize) -> Result<Vec<Record>, BusError> {
        self.hub.chaos().inject(ChaosPoint::Consumer).await.map_err(|_| struck())?;
        self.inner.fetch(topic, partition, offset, max).await
    }

    async fn end_offset(&self, topic: &str, partition: u16) -> Result<u64, BusError> {
        self.inner.end_offset(topic, partition).await
    }

    fn arrivals(&self, topic: &str, partition: u16) -> watch::Receiver<u64> {
        self.inner.arrivals(topic, partition)
    }
}

/// Both sides try again, as they do for a bus that is away.
const fn struck() -> BusError {
    BusError::Closed
}
