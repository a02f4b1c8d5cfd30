//! What a request must look like before anything else looks at it.
//!
//! The guard refuses what two parsers could read differently, and never repairs it. The sanitizer forwards headers by an
//! allow-list, so that a caller cannot speak in the name of the gateway. What goes back is kept by nobody on the way.

mod confidential;
mod guard;
mod sanitize;

pub use confidential::confidential;
pub use guard::{EdgeGuardLayer, Guarded, PATH_BYTES_MAX, check_path};
pub use sanitize::{FORWARDED, HeaderListError, HeaderSanitizeLayer, INTERNAL_PREFIX, Sanitized, sanitize};
