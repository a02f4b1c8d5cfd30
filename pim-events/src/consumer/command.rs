//! Commands that events drive: a handler writes on a key's shard, once for each event, whatever is delivered twice.

mod runner;
mod sink;

pub use runner::{CommandRunner, CommandSettings};

use async_trait::async_trait;
use pim_core::context::RequestContext;
use pim_core::shard::HomeKey;
use pim_data::unit::Unit;

use super::ApplyError;
use crate::event::{DOMAIN_TOPIC, Event, Origin};

/// Where a command writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// On the shard of this key.
    Shard(HomeKey),
    /// In the control database, under this key.
    Control(HomeKey),
}

impl Target {
    /// The key.
    #[must_use]
    pub const fn key(self) -> HomeKey {
        match self {
            Self::Shard(key) | Self::Control(key) => key,
        }
    }
}

/// What a handler decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Commit what it put into the unit.
    Commit,
    /// There is nothing to do for this event. Refused, as `nothing_of_something`, of a unit that has rows or events.
    Nothing,
}

/// A command that events drive, such as drafting a claim when an encounter is completed.
///
/// `handle` may run several times for one event; of all runs at most one commits, and none that another worker has overtaken by
/// the time it is about to: it may have read what came later. Ids that it makes must derive from
/// the event ([`Event::derive_id`]). It acts as the service that runs it, on behalf of who wrote the event.
#[async_trait]
pub trait CommandHandler: Send + Sync + 'static {
    /// Stable name; also the consumer's name in inbox, heads, checkpoints and dead letters.
    fn name(&self) -> &'static str;

    /// The topic it follows.
    fn topic(&self) -> &'static str {
        DOMAIN_TOPIC
    }

    /// Whether events of this type matter to it.
    fn handles(&self, event_type: &str) -> bool;

    /// Where the command writes; by default with the key of the event.
    fn target(&self, event: &Event) -> Target {
        match event.origin {
            Origin::Shard(_) => Target::Shard(event.home_key()),
            Origin::Control => Target::Control(event.home_key()),
        }
    }

    /// Loads, decides, saves and appends on `unit`, which the runner commits. Dropped where it waits when it takes longer than
    /// [`CommandSettings::patience`]: it must not keep its thread from other tasks.
    ///
    /// # Errors
    /// [`ApplyError`]; its class decides between another try and parking the key.
    async fn handle(&self, cx: &RequestContext, unit: &mut Unit, event: &Event) -> Result<Effect, ApplyError>;
}
