#![doc = include_str!("../README.md")]

mod bus;
mod consumer;
mod dead_letter;
mod event;
mod outbox;
mod pace;
mod projection;
mod retention;
pub mod signals;

pub use bus::{
    Ack, BusError, BusSettings, BusSettingsError, EmbeddedBus, NewRecord, OPS_TOPIC, Publisher, Record, Refusal,
    Subscriber, partition_of,
};
pub use consumer::{
    ApplyError, CommandHandler, CommandRunner, CommandSettings, ConsumerSettings, ConsumerSettingsError, Disposition,
    Effect, FailureClass, Head, HoldReason, KeyState, Order, Tail, Target,
};
pub use dead_letter::{
    DeadLetter, DeadPlace, DeadRecord, HeldKey, HeldPlace, LIST_MAX, ReplayPlan, ReplaySelection, ReplayedKey,
    UnparkError,
};
pub use event::{
    DOMAIN_TOPIC, DecodeError, DomainEvent, EnvelopeError, Event, HEADER_BYTES_MAX, Headers, Origin, ParseOriginError,
    Registry, RegistryBuilder, RegistryError, UpcastError,
};
pub use outbox::{
    AppendError, AppendExt, Backlog, EVENT_BYTES_MAX, EVENTS_PER_UNIT_MAX, EventsExt, OutboxError, OutboxOutlet,
    OutboxStatus, Relay, RelaySettings, RelaySettingsError, Source, Sources,
};
pub use projection::{
    ConsumerStatus, PartitionStatus, Projection, ProjectionRunner, READ_MODEL_BEHIND, ReadStore, ReadTable, ReadTx,
    Rebuild, RebuildError, RebuildReport, RebuildState, RunnerError, StatusError, StoreError, TableSummary, Verdict,
};
pub use retention::{Retention, RetentionError, RetentionSettings, RetentionSettingsError};
