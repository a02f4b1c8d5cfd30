//! The policy table: who may do what to which rows.

use std::collections::BTreeMap;

use super::permit::{AccessKind, Permit, Scope};
use crate::identity::Actor;
use crate::role::{Action, ActionCode, Resource, ResourceCode, Role, RoleCode};

/// How far a grant reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reach {
    /// The caller's own record only.
    Own,
    /// Rows of the caller's facilities.
    SameFacility,
    /// Every row.
    All,
}

/// An immutable policy: every triple that is not granted is denied, and forbid beats permit.
///
/// ```
/// use pim_core::identity::Actor;
/// use pim_core::rbac::{Policy, Reach, Read};
/// pim_core::roles! { pub enum R { Clerk = "clerk" } }
/// pim_core::actions! { pub enum A { Look = "look": Read, Buy = "buy": Write } }
/// pim_core::resources! { pub enum T { Stock = "stock" } }
///
/// let policy = Policy::builder(1).permit(R::Clerk, A::Look, T::Stock, Reach::All).build()?;
/// let clerk = Actor::new("u-1".parse()?, R::Clerk);
/// assert!(policy.authorize::<Read>(&clerk, A::Look, T::Stock).is_ok());
/// assert!(policy.authorize::<Read>(&clerk, A::Buy, T::Stock).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Policy {
    version: u32,
    /// One cell a (resource, action), a bit a role.
    cells: Vec<Vec<Cell>>,
    names: Names,
    grants: Vec<(RoleCode, ActionCode, ResourceCode, Reach)>,
}

/// What each code is called here: a code of another enum than the policy's own means nothing to it.
#[derive(Clone, Debug, Default)]
struct Names {
    roles: Vec<&'static str>,
    actions: Vec<&'static str>,
    resources: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    own: u64,
    facility: u64,
    all: u64,
}

/// Why a policy said no. The code is stable and safe to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DenyReason {
    /// No grant for this role, action and resource.
    NoGrant,
    /// Nothing says what the request needs: nobody has decided who may do this.
    NoPolicy,
    /// The grant needs a record of the caller's own, and the caller has none.
    NoOwnRecord,
    /// The grant needs an affiliation, and the caller has none.
    NoFacility,
    /// The action writes but a read permit was asked for, or the other way round.
    WrongAccess,
}

impl DenyReason {
    /// Stable text form.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NoGrant => "no-grant",
            Self::NoPolicy => "no-policy",
            Self::NoOwnRecord => "no-own-record",
            Self::NoFacility => "no-facility",
            Self::WrongAccess => "wrong-access",
        }
    }
}

/// The policy said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("role {role} may not {action} {resource}: {}", reason.code())]
#[non_exhaustive]
pub struct Denied {
    /// Who asked.
    pub role: RoleCode,
    /// To do what.
    pub action: ActionCode,
    /// To which resource.
    pub resource: ResourceCode,
    /// Why not.
    pub reason: DenyReason,
}

/// A policy that cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A role has a code of 64 or more.
    #[error("role {0} has code 64 or more, at most 64 roles are allowed")]
    TooManyRoles(RoleCode),
    /// Two enums were mixed: one code stands for two names.
    #[error("{first} and {second} are of two enums and share a code")]
    Mixed {
        /// What the code was called first.
        first: &'static str,
        /// What else it was called.
        second: &'static str,
    },
    /// The same triple was granted twice with different reach.
    #[error("role {role} has two grants to {action} {resource}")]
    Conflict {
        /// The role.
        role: RoleCode,
        /// The action.
        action: ActionCode,
        /// The resource.
        resource: ResourceCode,
    },
}

impl Policy {
    /// Starts a policy; `version` is quoted in every decision.
    pub fn builder(version: u32) -> PolicyBuilder {
        PolicyBuilder {
            version,
            permits: BTreeMap::new(),
            forbids: Vec::new(),
            names: Names::default(),
            conflict: None,
        }
    }

    /// Decides, and yields the proof. A static-table look-up: no allocation but the shared facility list.
    ///
    /// # Errors
    /// [`Denied`] with the reason.
    pub fn authorize<A: AccessKind>(
        &self,
        actor: &Actor,
        action: impl Action,
        resource: impl Resource,
    ) -> Result<Permit<A>, Denied> {
        let access = action.access();
        let (action, resource) = (ActionCode::of(action), ResourceCode::of(resource));
        if access != A::ACCESS {
            return Err(denied(actor, action, resource, DenyReason::WrongAccess));
        }
        match self.scope(actor, action, resource) {
            Ok(scope) => Ok(Permit::granted(action, resource, scope, self.version)),
            Err(reason) => Err(denied(actor, action, resource, reason)),
        }
    }

    /// Decides without asking for a proof, on erased codes; for layers that only gate.
    ///
    /// # Errors
    /// The reason for the denial.
    pub fn scope(&self, actor: &Actor, action: ActionCode, resource: ResourceCode) -> Result<Scope, DenyReason> {
        let cell = self
            .cells
            .get(usize::from(resource.code()))
            .and_then(|row| row.get(usize::from(action.code())))
            .ok_or(DenyReason::NoGrant)?;
        if !self.names.know(actor.role(), action, resource) {
            return Err(DenyReason::NoGrant);
        }
        let bit = 1_u64.checked_shl(u32::from(actor.role().code())).unwrap_or(0);
        if cell.all & bit != 0 {
            Ok(Scope::All)
        } else if cell.facility & bit != 0 {
            if actor.facilities().is_empty() {
                return Err(DenyReason::NoFacility);
            }
            Ok(Scope::Facilities(actor.facilities_shared()))
        } else if cell.own & bit != 0 {
            actor.own_record().map(Scope::Own).ok_or(DenyReason::NoOwnRecord)
        } else {
            Err(DenyReason::NoGrant)
        }
    }

    /// Version quoted in decisions.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// Every grant, sorted; what the generated matrix shows.
    #[must_use]
    pub fn grants(&self) -> &[(RoleCode, ActionCode, ResourceCode, Reach)] {
        &self.grants
    }
}

/// Collects grants and prohibitions.
#[derive(Debug)]
#[must_use = "a builder does nothing until build()"]
pub struct PolicyBuilder {
    version: u32,
    permits: BTreeMap<(ResourceCode, ActionCode, RoleCode), Reach>,
    forbids: Vec<(ResourceCode, ActionCode, RoleCode)>,
    names: Names,
    conflict: Option<PolicyError>,
}

impl PolicyBuilder {
    /// Grants one action on one resource to one role.
    pub fn permit(mut self, role: impl Role, action: impl Action, resource: impl Resource, reach: Reach) -> Self {
        let key = (ResourceCode::of(resource), ActionCode::of(action), RoleCode::of(role));
        self.learn(key);
        if key.2.code() >= 64 {
            self.conflict.get_or_insert(PolicyError::TooManyRoles(key.2));
        }
        if self.permits.insert(key, reach).is_some_and(|before| before != reach) {
            let (resource, action, role) = key;
            self.conflict.get_or_insert(PolicyError::Conflict { role, action, resource });
        }
        self
    }

    /// Prohibits, whatever is granted elsewhere.
    pub fn forbid(mut self, role: impl Role, action: impl Action, resource: impl Resource) -> Self {
        let key = (ResourceCode::of(resource), ActionCode::of(action), RoleCode::of(role));
        self.learn(key);
        self.forbids.push(key);
        self
    }

    fn learn(&mut self, (resource, action, role): (ResourceCode, ActionCode, RoleCode)) {
        let learnt = learn(&mut self.names.roles, role.code(), role.name())
            .and_then(|()| learn(&mut self.names.actions, action.code(), action.name()))
            .and_then(|()| learn(&mut self.names.resources, resource.code(), resource.name()));
        if let Err(error) = learnt {
            self.conflict.get_or_insert(error);
        }
    }

    /// Compiles the table.
    ///
    /// # Errors
    /// [`PolicyError`] for contradicting grants, mixed enums or a role code over 63.
    pub fn build(mut self) -> Result<Policy, PolicyError> {
        if let Some(error) = self.conflict {
            return Err(error);
        }
        for key in &self.forbids {
            self.permits.remove(key);
        }
        let mut cells: Vec<Vec<Cell>> = Vec::new();
        let mut grants = Vec::with_capacity(self.permits.len());
        for ((resource, action, role), reach) in self.permits {
            let row = grown(&mut cells, usize::from(resource.code()));
            let cell = grown(row, usize::from(action.code()));
            let bit = 1_u64 << role.code();
            match reach {
                Reach::Own => cell.own |= bit,
                Reach::SameFacility => cell.facility |= bit,
                Reach::All => cell.all |= bit,
            }
            grants.push((role, action, resource, reach));
        }
        Ok(Policy { version: self.version, cells, names: self.names, grants })
    }
}

fn denied(actor: &Actor, action: ActionCode, resource: ResourceCode, reason: DenyReason) -> Denied {
    Denied { role: actor.role(), action, resource, reason }
}

impl Names {
    fn know(&self, role: RoleCode, action: ActionCode, resource: ResourceCode) -> bool {
        let is =
            |names: &[&str], code: u8, name: &str| names.get(usize::from(code)).is_some_and(|known| *known == name);
        is(&self.roles, role.code(), role.name())
            && is(&self.actions, action.code(), action.name())
            && is(&self.resources, resource.code(), resource.name())
    }
}

fn learn(names: &mut Vec<&'static str>, code: u8, name: &'static str) -> Result<(), PolicyError> {
    let known = grown(names, usize::from(code));
    if known.is_empty() {
        *known = name;
    }
    if *known == name { Ok(()) } else { Err(PolicyError::Mixed { first: known, second: name }) }
}

fn grown<T: Default + Clone>(list: &mut Vec<T>, index: usize) -> &mut T {
    if list.len() <= index {
        list.resize(index + 1, T::default());
    }
    &mut list[index]
}
