//! Heads of requests that nobody can read: hyper's parser refuses them with a bare status and hangs up, before any layer of ours.
//!
//! They get no problem document. hyper has no hook between its parser and its answer, and whoever wrote onto the connection beside it
//! would answer something whose end nobody knows, which is how requests are smuggled. So each is counted by reason and told in the log,
//! without a word of what it was, and the guard's own bounds lie below the parser's: what is merely too large or ambiguous is still
//! refused by name.

use pim_core::role::ClosedEnum as _;
use pim_core::signal::{CounterFamily, Descriptor, Kind, LabelDescriptor, Purpose, SignalError, SignalRegistry};

/// Heads that were refused.
pub const REFUSED_HEADS: Descriptor = Descriptor {
    name: "pim_edge_refused_heads",
    kind: Kind::Counter,
    unit: "",
    help: "Heads at the gateway that are no HTTP or far too large, by reason",
    labels: &[LabelDescriptor { name: "reason", values: &["malformed", "too_large"] }],
    purpose: Purpose::Red,
    buckets: &[],
    owner: "pim-lab",
    runbook: "",
};

pim_core::closed_enum! {
    /// Why.
    pub enum HeadFault {
        /// It is no HTTP.
        Malformed = "malformed",
        /// It is larger than the parser's own bounds.
        TooLarge = "too_large",
    }
}

impl HeadFault {
    /// Why a connection ended, when it was because of a head.
    fn of(error: &hyper::Error) -> Option<Self> {
        match (error.is_parse_too_large(), error.is_parse()) {
            (true, _) => Some(Self::TooLarge),
            (false, true) => Some(Self::Malformed),
            (false, false) => None,
        }
    }
}

/// Counts and tells them.
#[derive(Clone, Debug)]
pub struct RefusedHeads(CounterFamily<HeadFault>);

impl RefusedHeads {
    /// Binds the counter.
    ///
    /// # Errors
    /// [`SignalError`] when the descriptor does not fit.
    pub fn bind(registry: &mut SignalRegistry) -> Result<Self, SignalError> {
        Ok(Self(registry.counter(&REFUSED_HEADS)?))
    }

    /// Takes the end of a connection.
    pub(super) fn take(&self, error: &hyper::Error) {
        if let Some(fault) = HeadFault::of(error) {
            self.0.get(fault).inc();
            pim_core::info!("http.head_refused", reason = fault.name());
        }
    }
}
