//! The gateway: the one way in. It refuses what is ambiguous, knows who calls, asks the policy, and forwards by allow-list.

mod admit;
mod answer;
mod forward;
mod http;
mod networks;
mod openapi;
mod program;
mod session;
mod sign_in;
mod slots;

pub use http::{CALLS_PER_SECOND_MAX, Gateway, GatewayError, GatewaySettings};
pub use program::{GatewayProgram, INTERNAL_PORT};
pub use session::SessionExchange;
pub use slots::{RESERVED, SIGN_INS};
