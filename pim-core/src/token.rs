//! Tokens: a strict check before any cryptography, keys by issuer and id, and a cache of what has been verified.
//!
//! Signatures are `jsonwebtoken`'s. Everything that decides which tokens reach it is here, because RFC 7519 leaves more open
//! than a gateway may: the algorithm comes from the key, never from the token; unknown critical members, embedded keys and
//! duplicate members are refused; every claim that is relied on is required.

mod cache;
mod key;
mod parse;
mod ring;
mod signer;
mod verifier;

pub use key::{KeyError, KeySet, VerifyKey};
pub use ring::{KeyRing, KeySource, KeySourceError};
pub use signer::{SignError, Signer};
pub use verifier::{TokenVerifier, VerifierSettings};

use serde_json::{Map, Value};

use crate::problem::{self, IntoProblem, Problem};

/// Longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// A token whose signature and claims hold.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct VerifiedToken {
    /// Who issued it.
    pub issuer: String,
    /// Whom it speaks of.
    pub subject: String,
    /// Its own id: `jti`, or `txn` in a transaction token.
    pub id: String,
    /// When it was issued, in seconds since the Unix epoch.
    pub issued_at: i64,
    /// When it ends, in seconds since the Unix epoch.
    pub expires_at: i64,
    /// Every claim.
    pub claims: Map<String, Value>,
}

impl VerifiedToken {
    /// A claim that is text.
    #[must_use]
    pub fn text(&self, claim: &str) -> Option<&str> {
        self.claims.get(claim)?.as_str()
    }
}

/// A token that is refused. The text says why, never what the token held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Not three canonical base64url parts of JSON objects within the bounds.
    #[error("token is malformed: {0}")]
    Malformed(&'static str),
    /// A header member that is not accepted.
    #[error("token header is refused: {0}")]
    Header(&'static str),
    /// No trusted key has this issuer and id, or the algorithm is not the key's.
    #[error("token names no trusted key")]
    UnknownKey,
    /// The signature does not hold.
    #[error("token signature does not hold")]
    Signature,
    /// Outside its time of validity, or valid for too long.
    #[error("token is outside its time of validity: {0}")]
    Time(&'static str),
    /// A claim is missing, of the wrong type, or for somebody else.
    #[error("token claim does not fit: {0}")]
    Claim(&'static str),
    /// Keys cannot be had at present.
    #[error("keys cannot be had at present")]
    KeysUnavailable,
}

impl IntoProblem for TokenError {
    fn into_problem(self) -> Problem {
        match self {
            Self::Malformed(why) | Self::Header(why) => Problem::of(problem::TOKEN_MALFORMED).detail(why),
            Self::UnknownKey | Self::Signature => Problem::of(problem::TOKEN_UNTRUSTED),
            Self::Time(why) => Problem::of(problem::TOKEN_EXPIRED).detail(why),
            Self::Claim(why) => Problem::of(problem::TOKEN_CLAIMS).detail(why),
            Self::KeysUnavailable => Problem::of(problem::UNAVAILABLE).retry_after_secs(1),
        }
    }
}
