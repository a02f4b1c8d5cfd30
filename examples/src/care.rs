//! How care goes: small probabilistic state machines in a data file, walked by a seed.
//!
//! The same machines decide what personas do in a visit and what a seeded past holds.

mod machine;
mod pathways;

pub use machine::{ACTS_MAX, Act, Machine, MachineError};
pub use pathways::{Pathways, PathwaysError, pathways};
