//! Faults on purpose: each is a lease that carries its own expiry at the injection point, so that none outlives its experiment.
//!
//! The embedding program declares where faults may strike, as a closed enum, and calls [`ChaosRegistry::inject`] there.
//! With no lease in force that is one atomic load. A lease ends by itself, whatever became of whoever took it.

mod lease;
mod registry;

pub use lease::{Fault, FaultKind, LATENCY_MAX, LEASE_MAX, Lease, LeaseError, Share};
pub use registry::{ChaosRegistry, Injected};
