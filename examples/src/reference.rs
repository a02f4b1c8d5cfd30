//! Reference data in the control database: facilities, providers, user accounts and feature flags.

mod book;
mod record;

pub use book::{INACTIVE_REFERENCE, Referable, ReferenceBook, UNKNOWN_REFERENCE};
pub use record::{Account, Facility, Flag, Provider, ReferenceChanged};
