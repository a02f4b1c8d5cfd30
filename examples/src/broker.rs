//! The session broker: people sign in by OIDC, the gateway exchanges their tokens for session contexts (RFC 8693).
//!
//! It embeds a development identity provider, which hands out persona tokens to anybody who asks. That provider refuses to
//! start outside the lab profile.

mod code;
mod exchange;
mod http;
mod identity;
mod keychain;
mod keyfile;
mod once;
mod program;
mod revocation;
mod session;
mod url;

pub use http::{Broker, BrokerError, BrokerSettings, KEY_ROTATION, Profile, openapi};
pub(crate) use identity::FILE as PERSONAS;
pub use identity::{Persona, PersonaDirectory};
pub use keychain::KeychainError;
pub use keyfile::{KeyFileError, gateway_secret};
pub use program::BrokerProgram;
pub use revocation::RevocationError;

/// Who access tokens are for: the gateway.
pub const GATEWAY_AUDIENCE: &str = "urn:pim:lab:gateway";
