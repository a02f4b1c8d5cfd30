//! Deny by default: a static policy table, and permits that handlers and repositories require.

mod permit;
mod policy;

pub use permit::{AccessKind, Permit, Read, Scope, SystemScope, Write};
pub use policy::{Denied, DenyReason, Policy, PolicyBuilder, PolicyError, Reach};
