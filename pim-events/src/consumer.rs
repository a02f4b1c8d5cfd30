//! Applying what the bus delivers: order per key, failure classes, holds, and commands that events drive.

mod command;
mod engine;
mod head;
mod hold;
mod inbox;
pub(crate) mod ledger;
mod superseded;
mod tail;
mod worker;

pub use command::{CommandHandler, CommandRunner, CommandSettings, Effect, Target};
pub use head::{Head, Order};
pub use hold::{Disposition, HoldReason, KeyState};
pub use tail::Tail;

pub(crate) use engine::{Ahead, Engine, Sink, Step};
pub(crate) use superseded::{Superseded, TooMany};
pub(crate) use worker::Worker;

use std::future::Future;
use std::time::Duration;

use futures_util::FutureExt as _;

use crate::event::{DecodeError, EnvelopeError, UpcastError};
use crate::outbox::AppendError;
use pim_core::signal::Spans;
use pim_data::backend::{ColumnError, DbError};
use pim_data::unit::UnitError;

/// Why an event was not applied. Carries codes and sources, never payload text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The store refused or could not be reached.
    #[error("use the read store")]
    Store(#[from] DbError),
    /// The handler asks for another try; tries are capped.
    #[error("not now: {code}")]
    Later {
        /// A static reason.
        code: &'static str,
    },
    /// The handler will never take this event.
    #[error("rejected: {code}")]
    Rejected {
        /// A static reason.
        code: &'static str,
    },
    /// The payload does not fit.
    #[error("decode the event")]
    Decode(#[from] DecodeError),
    /// The payload cannot be brought to the known version.
    #[error("upcast the event")]
    Upcast(#[from] UpcastError),
    /// A command could not be committed.
    #[error("commit the command")]
    Unit(#[from] UnitError),
    /// A command's own event was refused.
    #[error("append an event")]
    Append(#[from] AppendError),
    /// The handler panicked; its effects are rolled back.
    #[error("the handler panicked")]
    Panicked,
    /// The record is no event.
    #[error("read the envelope")]
    Envelope(#[from] EnvelopeError),
}

pim_core::closed_enum! {
    /// What to do about a failure.
    pub enum FailureClass {
        /// Infrastructure: pause the partition and try again, without end.
        Transient = "transient",
        /// The handler asked for another try: capped, then as permanent.
        Capped = "capped",
        /// Trying again does not help: the key is parked.
        Permanent = "permanent",
    }
}

impl From<ColumnError> for ApplyError {
    fn from(error: ColumnError) -> Self {
        Self::Store(error.into())
    }
}

impl ApplyError {
    /// What to do about it. Only what speaks of the event parks its key: a store that does not answer, or does not say
    /// whether it committed, is asked until it does, which repeats nothing.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Store(error) | Self::Unit(UnitError::Database(error)) => match error {
                // The engine's own failures may pass, or not (a payload that its SQL chokes on).
                DbError::Engine(_) => FailureClass::Capped,
                // Less of it may not take too long, or it always will. A unit waits for the locks of other writers as well.
                DbError::Cancelled { .. } if matches!(self, Self::Store(_)) => FailureClass::Capped,
                error if error.is_permanent() => FailureClass::Permanent,
                _ => FailureClass::Transient,
            },
            Self::Unit(
                UnitError::Deadline
                | UnitError::Fence { .. }
                | UnitError::Unknown(_)
                | UnitError::UnknownShard(_)
                | UnitError::Directory(_),
            ) => FailureClass::Transient,
            Self::Unit(UnitError::Conflict) | Self::Later { .. } => FailureClass::Capped,
            _ => FailureClass::Permanent,
        }
    }

    /// A static code for tables, metrics and logs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Store(error) | Self::Unit(UnitError::Database(error)) => error.code(),
            Self::Later { code } | Self::Rejected { code } => code,
            Self::Unit(_) => "unit",
            Self::Append(_) => "append",
            Self::Decode(_) => "decode",
            Self::Upcast(_) => "upcast",
            Self::Panicked => "panic",
            Self::Envelope(_) => "envelope",
        }
    }
}

/// The code of what took longer than it may.
pub(crate) const PATIENCE: &str = "patience";

/// How a consumer reads and when it gives up.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsumerSettings {
    /// Most events that one transaction applies: 1 to 10,000.
    pub batch_max: usize,
    /// Longest pause between two looks at a quiet partition, in milliseconds: 1 to an hour.
    pub pause_max_ms: u64,
    /// Tries of an event whose handler asks for another, before its key is parked: up to 1,000.
    pub tries_max: u32,
    /// Longest that a projection may take over one batch, in milliseconds: 10 to an hour. A batch that takes longer is halved; one
    /// event that always does, although the store answers, parks its key. On a server a statement of it may take nine tenths of
    /// that, and wait for a lock half as long; that lock's holder parks nothing. Commands have [`CommandSettings::patience`].
    pub apply_ms_max: u64,
    /// Keys parked within a minute that stop the consumer.
    pub parked_per_minute_max: u32,
    /// Keys held at once, for whatever reason, that stop the consumer: 1 to ten million. One batch a partition may come on top.
    pub held_keys_max: u64,
    /// Events in held sequences that stop the consumer: 1 to ten million. One batch a partition may come on top.
    pub held_events_max: u64,
    /// Records put aside because they are no events that stop the consumer, should another come: 1 to ten million. One batch a
    /// partition may come on top. [`ReadStore::dismiss_records`](crate::ReadStore::dismiss_records) makes room.
    pub dead_records_max: u64,
    /// Where the spans of what was applied go.
    #[serde(skip)]
    pub spans: Spans,
}

impl Default for ConsumerSettings {
    fn default() -> Self {
        Self {
            batch_max: 500,
            pause_max_ms: 1000,
            tries_max: 5,
            apply_ms_max: 5000,
            parked_per_minute_max: 100,
            held_keys_max: 10_000,
            held_events_max: 100_000,
            dead_records_max: 10_000,
            spans: Spans::default(),
        }
    }
}

/// A setting that is out of its bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("consumer setting {key} must be between {min} and {max}, not {found}")]
pub struct ConsumerSettingsError {
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
/// Most of anything that a consumer holds.
const HELD_MAX: u64 = 10_000_000;

/// Names the first of some settings, each with its bounds, that is out of them.
fn in_bounds(bounds: &[(&'static str, u64, u64, u64)]) -> Result<(), ConsumerSettingsError> {
    let broken = bounds.iter().find(|(_, found, min, max)| found < min || found > max);
    broken.map_or(Ok(()), |&(key, found, min, max)| Err(ConsumerSettingsError { key, min, max, found }))
}

impl ConsumerSettings {
    /// A batch of none would look like a quiet partition for ever, and no pause would never rest.
    pub(crate) fn check(&self) -> Result<(), ConsumerSettingsError> {
        in_bounds(&[
            ("batch_max", self.batch_max as u64, 1, 10_000),
            ("pause_max_ms", self.pause_max_ms, 1, HOUR_MS),
            ("tries_max", u64::from(self.tries_max), 0, 1000),
            ("apply_ms_max", self.apply_ms_max, 10, HOUR_MS),
            ("held_keys_max", self.held_keys_max, 1, HELD_MAX),
            ("held_events_max", self.held_events_max, 1, HELD_MAX),
            ("dead_records_max", self.dead_records_max, 1, HELD_MAX),
        ])
    }

    pub(crate) const fn hold_limits(&self) -> ledger::HoldLimits {
        ledger::HoldLimits { keys: self.held_keys_max, events: self.held_events_max, records: self.dead_records_max }
    }

    pub(crate) const fn apply_max(&self) -> Duration {
        Duration::from_millis(self.apply_ms_max)
    }

    pub(crate) const fn pause_max(&self) -> Duration {
        Duration::from_millis(self.pause_max_ms)
    }
}

/// Runs a handler so that its panic parks one key instead of ending a worker.
pub(crate) async fn guarded<T>(handler: impl Future<Output = Result<T, ApplyError>>) -> Result<T, ApplyError> {
    // What a panic may leave half-done is in the handler's transaction or unit, and both are dropped.
    let caught = std::panic::AssertUnwindSafe(handler).catch_unwind().await;
    caught.unwrap_or(Err(ApplyError::Panicked))
}

/// The same for what is asked of the embedding program without waiting.
pub(crate) fn guarded_call<T>(question: impl FnOnce() -> T) -> Result<T, ApplyError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(question)).map_err(|_panic| ApplyError::Panicked)
}
