//! The bus: topics with partitions and offsets, behind a pair of traits that every backend fills.

mod embedded;
mod partition;

pub(crate) use embedded::Keep;
pub use embedded::{BusSettings, BusSettingsError, EmbeddedBus};
pub use partition::partition_of;

use async_trait::async_trait;
use pim_core::clock::Timestamp;
use tokio::sync::watch;
use uuid::Uuid;

use crate::event::{DOMAIN_TOPIC, EnvelopeError, Event, Headers};

/// Topic of operational facts: failover, chaos, deployment.
pub const OPS_TOPIC: &str = "ops.v1";

/// A record on its way to the bus.
#[derive(Clone, Debug)]
pub struct NewRecord {
    /// Where to.
    pub topic: String,
    /// Which key; decides the partition.
    pub key: Uuid,
    /// Attributes.
    pub headers: Headers,
    /// Payload, JSON text.
    pub payload: String,
}

/// A record that the bus holds.
#[derive(Clone, Debug)]
pub struct Record {
    /// Which topic.
    pub topic: String,
    /// Which partition of it.
    pub partition: u16,
    /// Position in the partition.
    pub offset: u64,
    /// Which key.
    pub key: Uuid,
    /// Attributes.
    pub headers: Headers,
    /// Payload, JSON text.
    pub payload: String,
    /// When the bus took it.
    pub at: Timestamp,
}

impl NewRecord {
    /// An event as a record of `topic`.
    #[must_use]
    pub fn of(event: &Event, topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            key: event.home,
            headers: event.headers(),
            payload: event.payload.get().to_owned(),
        }
    }

    /// Bytes of headers and payload.
    #[must_use]
    pub fn size(&self) -> usize {
        self.headers.size() + self.payload.len()
    }
}

impl Record {
    /// The event inside.
    ///
    /// # Errors
    /// [`EnvelopeError`] when the record is none.
    pub fn event(&self) -> Result<Event, EnvelopeError> {
        let event = Event::from_wire(&self.headers, &self.payload)?;
        Ok(Event { published_at: Some(self.at), ..event })
    }
}

/// What became of one record of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// It is durable at this place.
    Stored {
        /// Which partition.
        partition: u16,
        /// Which offset.
        offset: u64,
    },
    /// It will never be taken; trying again does not help.
    Refused(Refusal),
    /// It was not tried, because an earlier record of its key was refused.
    Behind,
}

pim_core::closed_enum! {
    /// Why a bus will never take a record.
    pub enum Refusal {
        /// Larger than the bus takes, or with headers above [`HEADER_BYTES_MAX`](crate::HEADER_BYTES_MAX).
        TooLarge = "too_large",
        /// No such topic.
        UnknownTopic = "unknown_topic",
    }
}

/// What went wrong at the bus. Of one that is open all of it may pass; what never passes is a [`Refusal`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// A setting is out of its bounds.
    #[error(transparent)]
    Settings(#[from] BusSettingsError),
    /// The log could not be opened.
    #[error("open the bus")]
    Open(#[source] pim_data::backend::DbError),
    /// The log could not be read or written.
    #[error("use the bus")]
    Log(#[from] pim_data::backend::DbError),
    /// A record in the log cannot be read.
    #[error("record {partition}/{offset} of the bus cannot be read")]
    Corrupt {
        /// Which partition.
        partition: u16,
        /// Which offset.
        offset: u64,
    },
    /// A segment of the archive is not where it was put; bring the file back.
    #[error("records from {partition}/{offset} on are in archive segment {file}, which is not there")]
    SegmentMissing {
        /// Which partition.
        partition: u16,
        /// Which offset was asked for.
        offset: u64,
        /// Name of the file in the archive's folder.
        file: String,
    },
    /// The archive's folder cannot be used.
    #[error("make room for the archive")]
    Folder(#[source] std::io::Error),
    /// The topic does not exist.
    #[error("no such topic")]
    UnknownTopic,
    /// A [`Publisher`] broke its promise: it answered for fewer or more records than it was given.
    #[error("the bus was given {sent} records and answered for {answered}")]
    Acks {
        /// So many records.
        sent: usize,
        /// So many answers.
        answered: usize,
    },
    /// The bus was closed.
    #[error("bus is closed")]
    Closed,
}

/// Takes records and says durably that it did.
#[async_trait]
pub trait Publisher: Send + Sync + 'static {
    /// Appends `batch` in order; answers one [`Ack`] a record.
    /// When this returns an error or is dropped, any prefix may have been stored.
    ///
    /// # Errors
    /// [`BusError`]; trying the same batch again is right.
    async fn publish(&self, batch: Vec<NewRecord>) -> Result<Vec<Ack>, BusError>;
}

/// Reads records by position.
#[async_trait]
pub trait Subscriber: Send + Sync + 'static {
    /// How many partitions a topic has.
    ///
    /// # Errors
    /// [`BusError::UnknownTopic`], or what kept the bus from answering.
    async fn partitions(&self, topic: &str) -> Result<u16, BusError>;

    /// At most `max` records from `offset` on, in order of offset.
    ///
    /// # Errors
    /// [`BusError`]; trying again is right.
    async fn fetch(&self, topic: &str, partition: u16, offset: u64, max: usize) -> Result<Vec<Record>, BusError>;

    /// The offset that the next record will get.
    ///
    /// # Errors
    /// [`BusError`]; trying again is right.
    async fn end_offset(&self, topic: &str, partition: u16) -> Result<u64, BusError>;

    /// Changes whenever this process has published to the partition; a hint, consumers poll besides.
    fn arrivals(&self, topic: &str, partition: u16) -> watch::Receiver<u64>;
}

/// Topics that every program has.
pub(crate) const fn standard_topics() -> [&'static str; 2] {
    [DOMAIN_TOPIC, OPS_TOPIC]
}
