//! From a credential to an actor: a verified token, and the program's own reading of it.

use std::fmt;
use std::sync::Arc;

use super::Actor;
use crate::context::{SessionContext, SessionError};
use crate::problem::{IntoProblem, Problem};
use crate::role::Role;
use crate::token::{TokenError, TokenVerifier, VerifiedToken};

type Reading = dyn Fn(&VerifiedToken) -> Result<Actor, SessionError> + Send + Sync;

/// Checks a token and says who calls. Clones share the keys and what was verified.
///
/// By default it reads a transaction token, whose role is one of the program's own:
///
/// ```
/// use pim_core::identity::ActorVerifier;
/// # use pim_core::clock::Clock;
/// # use pim_core::token::{KeyRing, KeySource, KeySourceError, TokenVerifier, VerifierSettings};
/// # struct Keys;
/// # #[async_trait::async_trait]
/// # impl KeySource for Keys {
/// #     async fn fetch(&self) -> Result<String, KeySourceError> { Err(KeySourceError("none")) }
/// # }
/// pim_core::roles! { pub enum R { Clerk = "clerk" } }
/// # let settings = VerifierSettings::transaction_token("urn:broker", "urn:shop");
/// # let tokens = TokenVerifier::new(settings, KeyRing::new(Keys, Clock::system()), Clock::system());
/// let verifier = ActorVerifier::new::<R>(tokens);
/// # let _ = verifier;
/// ```
///
/// Another reading of the claims:
///
/// ```
/// use pim_core::context::SessionError;
/// use pim_core::identity::{Actor, ActorVerifier};
/// # use pim_core::token::TokenVerifier;
/// pim_core::roles! { pub enum R { Clerk = "clerk" } }
/// # fn build(tokens: TokenVerifier) -> ActorVerifier {
/// ActorVerifier::reading(tokens, |token| match token.text("scope") {
///     Some("shop") => Ok(Actor::new(token.subject.parse()?, R::Clerk)),
///     _ => Err(SessionError::UnknownRole),
/// })
/// # }
/// ```
#[derive(Clone)]
pub struct ActorVerifier {
    tokens: Arc<TokenVerifier>,
    reading: Arc<Reading>,
}

/// A token that lets nobody in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ActorError {
    /// The token itself is not accepted, or its keys cannot be had.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The token is sound and names no actor of this program.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl IntoProblem for ActorError {
    fn into_problem(self) -> Problem {
        match self {
            Self::Token(error) => error.into_problem(),
            Self::Session(error) => error.into_problem(),
        }
    }
}

impl fmt::Debug for ActorVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActorVerifier").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl ActorVerifier {
    /// Reads the [`SessionContext`] of a transaction token, in a program whose roles are `R`.
    #[must_use]
    pub fn new<R: Role>(tokens: impl Into<Arc<TokenVerifier>>) -> Self {
        Self::reading(tokens, |token| Ok(SessionContext::actor_of::<R>(token)?.0))
    }

    /// Reads the claims of a verified token in the program's own way.
    #[must_use]
    pub fn reading(
        tokens: impl Into<Arc<TokenVerifier>>,
        reading: impl Fn(&VerifiedToken) -> Result<Actor, SessionError> + Send + Sync + 'static,
    ) -> Self {
        Self { tokens: tokens.into(), reading: Arc::new(reading) }
    }

    /// Who calls with this token.
    ///
    /// # Errors
    /// [`ActorError::Token`] by cause, [`ActorError::Session`] when the token speaks of nobody known here.
    pub async fn verify(&self, token: &str) -> Result<Actor, ActorError> {
        let verified = self.tokens.verify(token).await?;
        Ok((self.reading)(&verified)?)
    }
}
