//! The journey of a request: every hop with its state and time, joined from our own stores, whatever was sampled.

mod collect;
mod draw;

pub use collect::{JourneyError, journey};
pub use draw::{as_mermaid, as_text};

use pim_core::clock::Timestamp;
use serde::Serialize;
use uuid::Uuid;

/// How a hop went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HopState {
    /// Done.
    Ok,
    /// On its way.
    Pending,
    /// Held for its key.
    DeadLettered,
    /// Not to be found although nothing is on its way.
    Lost,
}

/// Where a hop took place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The gateway let it through.
    Edge,
    /// A service answered it.
    Service,
    /// A unit of work committed.
    Commit,
    /// The bus took the event.
    Publish,
    /// A consumer applied it.
    Apply,
}

/// One hop.
#[derive(Clone, Debug, Serialize)]
pub struct Hop {
    /// Where.
    pub stage: Stage,
    /// What: the entity and action, the event, or the consumer.
    pub what: String,
    /// With whose record.
    pub home: Uuid,
    /// The home key's number.
    pub n: Option<u64>,
    /// How it went.
    pub state: HopState,
    /// When, where it is known.
    pub at: Option<Timestamp>,
    /// Microseconds since the first hop.
    pub after_us: Option<u64>,
    /// Who did it.
    pub by: Option<String>,
}

/// Everything that a request caused.
#[derive(Clone, Debug, Serialize)]
pub struct Journey {
    /// Which request.
    pub request_id: Uuid,
    /// Its trace.
    pub trace_id: Option<String>,
    /// Whether every expected hop is done.
    pub complete: bool,
    /// Every hop, in the order of time; those that are pending come last.
    pub hops: Vec<Hop>,
}
