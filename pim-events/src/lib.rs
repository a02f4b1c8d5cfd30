#![doc = include_str!("../README.md")]

mod bus;
mod consumer;
mod event;
mod outbox;
mod pace;
mod projection;

pub use bus::{
    Ack, BusError, BusSettings, EmbeddedBus, NewRecord, OPS_TOPIC, Publisher, Record, Refusal, Subscriber, partition_of,
};
pub use consumer::{ApplyError, ConsumerSettings, Disposition, FailureClass, Head, HoldReason, KeyState, Order};
pub use event::{
    DOMAIN_TOPIC, DecodeError, DomainEvent, EnvelopeError, Event, HEADER_BYTES_MAX, Headers, Origin, ParseOriginError,
    Registry, RegistryBuilder, RegistryError, UpcastError,
};
pub use outbox::{OutboxError, OutboxStatus, Relay, RelaySettings, Source, migrations};
pub use projection::{
    ConsumerStatus, PartitionStatus, Projection, ProjectionRunner, ReadStore, ReadTable, ReadTx, RunnerError,
    StatusError, StoreError,
};
