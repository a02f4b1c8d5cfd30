//! Reference data in the control database: facilities and providers, which bodies refer to, and user accounts and feature flags,
//! which are kept and audited, and asked by nothing: sign-in is the identity provider's.

mod book;
mod record;

pub use book::{INACTIVE_REFERENCE, Referable, ReferenceBook, UNKNOWN_REFERENCE};
pub use record::{Account, Facility, Flag, Provider, ReferenceChanged};
