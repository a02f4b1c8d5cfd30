//! The journey of a request: every hop with its state and time, joined from our own stores, whatever was sampled, and from what the programs remember.

mod collect;
mod draw;
mod programs;
mod quiet;

pub use collect::{JourneyError, Journeys};
pub use draw::{as_mermaid, as_text};
pub use programs::Programs;

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
    /// Not to be found, twice, although nothing is on its way.
    Lost,
    /// The program that would know does not answer.
    Unknown,
}

/// Where a hop took place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Somebody asked.
    Caller,
    /// The gateway let it through.
    Edge,
    /// A service answered it.
    Service,
    /// A unit of work committed.
    Commit,
    /// The bus took the event.
    Publish,
    /// A read model applied it.
    Apply,
    /// A command answered it with a unit of work of its own.
    Command,
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
    /// Whether it was then at the latest: nobody remembers the moment itself any more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub at_most: bool,
    /// Microseconds since the first hop.
    pub after_us: Option<u64>,
    /// Who did it.
    pub by: Option<String>,
    /// Its span, for hops that a program remembers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span_id: Option<String>,
    /// The span that it is a child of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<String>,
}

/// Everything that a request caused.
#[derive(Clone, Debug, Serialize)]
pub struct Journey {
    /// Which request.
    pub request_id: Uuid,
    /// Its trace.
    pub trace_id: Option<String>,
    /// Whether every hop that the stores expect is done, and none was left out because there are too many.
    pub complete: bool,
    /// Programs that did not answer: what they remember is missing here.
    pub unknown: Vec<&'static str>,
    /// Every hop, in the order of time; those that are pending come last.
    pub hops: Vec<Hop>,
}
