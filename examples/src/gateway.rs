//! The gateway: the one way in. It refuses what is ambiguous, knows who calls, asks the policy, and forwards by allow-list.

mod admit;
mod forward;
mod http;
mod openapi;
mod program;
mod session;
mod slots;

pub use http::{CALLS_PER_SECOND_MAX, Gateway, GatewayError, GatewaySettings};
pub use program::{GatewayProgram, INTERNAL_PORT};
pub use session::SessionExchange;
pub use slots::RESERVED;
