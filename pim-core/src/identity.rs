//! Who is calling, how we know, and on whose behalf.

mod verifier;

pub use verifier::{ActorError, ActorVerifier};

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use uuid::Uuid;

use crate::role::RoleCode;

/// Most facilities that one actor may be affiliated with.
pub const FACILITIES_MAX: usize = 16;

/// The opaque id of a person or service, as the identity provider knows it.
///
/// At most 64 characters of `A–Z a–z 0–9 . _ : -`; it names nobody by itself and may appear in logs.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject(Arc<str>);

/// An identity that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The subject is empty, longer than 64 characters, or has characters outside the set.
    #[error("subject must be 1 to 64 characters of A-Z a-z 0-9 . _ : -")]
    Subject,
    /// More affiliations than [`FACILITIES_MAX`].
    #[error("actor has {found} facilities, at most {FACILITIES_MAX} are allowed")]
    Facilities {
        /// How many there were.
        found: usize,
    },
}

impl Subject {
    /// The text form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Subject {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'));
        if fits { Ok(Self(text.into())) } else { Err(IdentityError::Subject) }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An authenticated caller: subject, role, and what row-level visibility needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    subject: Subject,
    role: RoleCode,
    facilities: Arc<[Uuid]>,
    patient: Option<Uuid>,
    on_behalf_of: Option<Subject>,
}

impl Actor {
    /// An actor with no affiliation and no record of their own.
    #[must_use]
    pub fn new(subject: Subject, role: impl Into<RoleCode>) -> Self {
        Self { subject, role: role.into(), facilities: Arc::new([]), patient: None, on_behalf_of: None }
    }

    /// Affiliates the actor with facilities.
    ///
    /// # Errors
    /// [`IdentityError::Facilities`] above [`FACILITIES_MAX`].
    pub fn with_facilities(mut self, facilities: &[Uuid]) -> Result<Self, IdentityError> {
        if facilities.len() > FACILITIES_MAX {
            return Err(IdentityError::Facilities { found: facilities.len() });
        }
        self.facilities = facilities.into();
        Ok(self)
    }

    /// Names the record that is the actor's own (the patient behind a patient's login).
    #[must_use]
    pub fn with_own_record(mut self, patient: Uuid) -> Self {
        self.patient = Some(patient);
        self
    }

    /// Says for whom a service acts.
    #[must_use]
    pub fn on_behalf_of(mut self, original: Subject) -> Self {
        self.on_behalf_of = Some(original);
        self
    }

    /// Who calls.
    #[must_use]
    pub const fn subject(&self) -> &Subject {
        &self.subject
    }

    /// In which role.
    #[must_use]
    pub const fn role(&self) -> RoleCode {
        self.role
    }

    /// Facilities of affiliation, at most [`FACILITIES_MAX`].
    #[must_use]
    pub fn facilities(&self) -> &[Uuid] {
        &self.facilities
    }

    pub(crate) fn facilities_shared(&self) -> Arc<[Uuid]> {
        Arc::clone(&self.facilities)
    }

    /// The actor's own record, if any.
    #[must_use]
    pub const fn own_record(&self) -> Option<Uuid> {
        self.patient
    }

    /// For whom a service acts, if it acts for someone.
    #[must_use]
    pub const fn original(&self) -> Option<&Subject> {
        self.on_behalf_of.as_ref()
    }
}
