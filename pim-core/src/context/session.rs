//! The session context: what a broker says of a caller, as claims of a transaction token, and the actor that follows from it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::identity::{Actor, IdentityError};
use crate::problem::{self, IntoProblem, Problem};
use crate::role::{Role, RoleCode};
use crate::token::VerifiedToken;

/// The `tctx` member of a transaction token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionContext {
    /// The role's text form.
    pub role: String,
    /// The simulated persona, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persona: Option<String>,
    /// Facilities of affiliation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facilities: Vec<Uuid>,
    /// The caller's own record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patient: Option<Uuid>,
    /// The session.
    pub sid: Uuid,
    /// Version of the policy that the broker knows.
    pub policy_version: u32,
}

/// A token that names no actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The token has no session context, or one of another form.
    #[error("the token has no session context")]
    Missing,
    /// The program does not know the role.
    #[error("the role is not known here")]
    UnknownRole,
    /// The subject or the affiliations are out of bounds.
    #[error("the identity is out of bounds")]
    Identity,
}

impl IntoProblem for SessionError {
    fn into_problem(self) -> Problem {
        Problem::of(problem::TOKEN_CLAIMS).detail(self.to_string())
    }
}

impl From<IdentityError> for SessionError {
    fn from(_: IdentityError) -> Self {
        Self::Identity
    }
}

impl SessionContext {
    /// The actor that a transaction token speaks of, in a program whose roles are `R`.
    ///
    /// # Errors
    /// [`SessionError`] when the token has no session context, an unknown role, or an identity out of bounds.
    pub fn actor_of<R: Role>(token: &VerifiedToken) -> Result<(Actor, Self), SessionError> {
        let member = token.claims.get("tctx").ok_or(SessionError::Missing)?;
        let session = Self::deserialize(member).map_err(|_| SessionError::Missing)?;
        let role = R::from_name(&session.role).ok_or(SessionError::UnknownRole)?;
        let actor = Actor::new(token.subject.parse()?, RoleCode::of(role)).with_facilities(&session.facilities)?;
        let actor = match session.patient {
            Some(patient) => actor.with_own_record(patient),
            None => actor,
        };
        Ok((actor, session))
    }
}
