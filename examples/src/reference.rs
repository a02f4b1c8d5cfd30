//! Reference data in the control database: facilities, providers, user accounts and feature flags.

mod record;

pub use record::{Account, Facility, Flag, Provider, ReferenceChanged};
