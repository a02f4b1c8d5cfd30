//! Deny by default: a static policy table, and permits that handlers and repositories require.

mod layer;
mod permit;
mod policy;

pub use layer::{Authorized, PolicyHandle, RbacLayer, Required, Requirement, Unset};
pub use permit::{AccessKind, Permit, Read, Scope, SystemScope, Write};
pub use policy::{Denied, DenyReason, Policy, PolicyBuilder, PolicyError, Reach};
