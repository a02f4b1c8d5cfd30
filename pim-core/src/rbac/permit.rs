//! The proof that a policy said yes.

use std::marker::PhantomData;
use std::sync::Arc;

use uuid::Uuid;

use crate::role::{Access, ActionCode, Resource, ResourceCode};

mod sealed {
    pub trait Sealed {}
}

/// What a permit lets its holder do: [`Read`] or [`Write`].
pub trait AccessKind: sealed::Sealed + Send + Sync + 'static {
    /// The same as a value.
    const ACCESS: Access;
}

/// Marker: the permit lets its holder look.
#[derive(Debug, Clone, Copy)]
pub enum Read {}
/// Marker: the permit lets its holder change.
#[derive(Debug, Clone, Copy)]
pub enum Write {}

impl sealed::Sealed for Read {}
impl sealed::Sealed for Write {}
impl AccessKind for Read {
    const ACCESS: Access = Access::Read;
}
impl AccessKind for Write {
    const ACCESS: Access = Access::Write;
}

/// Which rows a permit reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Rows of one home key: the caller's own record.
    Own(Uuid),
    /// Rows of these facilities.
    Facilities(Arc<[Uuid]>),
    /// Every row.
    All,
}

impl Scope {
    /// The oracle that every store must agree with: is a row of `home` at `facility` visible?
    #[must_use]
    pub fn sees(&self, home: Uuid, facility: Option<Uuid>) -> bool {
        match self {
            Self::Own(own) => *own == home,
            Self::Facilities(set) => facility.is_some_and(|f| set.contains(&f)),
            Self::All => true,
        }
    }
}

/// A named reason to act without a caller's scope; recorded in the audit trail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemScope(&'static str);

impl SystemScope {
    /// States the reason, for example `"projection rebuild"`.
    #[must_use]
    pub const fn new(reason: &'static str) -> Self {
        Self(reason)
    }

    /// The reason.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        self.0
    }
}

/// Proof that a policy granted an action on a resource within a scope.
///
/// Only a [`Policy`](super::Policy) makes one for a caller, so forgetting the check does not compile.
/// A [`Permit<Write>`] also lets its holder read.
#[derive(Debug)]
#[must_use = "a permit that nobody asks for protects nothing"]
pub struct Permit<A> {
    action: ActionCode,
    resource: ResourceCode,
    scope: Scope,
    policy_version: u32,
    system: Option<SystemScope>,
    access: PhantomData<fn() -> A>,
}

impl<A> Clone for Permit<A> {
    fn clone(&self) -> Self {
        self.retyped()
    }
}

impl<A> Permit<A> {
    pub(super) const fn granted(action: ActionCode, resource: ResourceCode, scope: Scope, policy_version: u32) -> Self {
        Self { action, resource, scope, policy_version, system: None, access: PhantomData }
    }

    fn retyped<B>(&self) -> Permit<B> {
        Permit {
            action: self.action,
            resource: self.resource,
            scope: self.scope.clone(),
            policy_version: self.policy_version,
            system: self.system,
            access: PhantomData,
        }
    }

    /// The granted action.
    #[must_use]
    pub const fn action(&self) -> ActionCode {
        self.action
    }

    /// The resource that it was granted on.
    #[must_use]
    pub const fn resource(&self) -> ResourceCode {
        self.resource
    }

    /// Whether this permit speaks of `resource`.
    pub fn covers(&self, resource: impl Resource) -> bool {
        self.resource == ResourceCode::of(resource)
    }

    /// The rows within reach.
    #[must_use]
    pub const fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Version of the policy that granted it.
    #[must_use]
    pub const fn policy_version(&self) -> u32 {
        self.policy_version
    }

    /// The stated reason, when no caller's scope applies.
    #[must_use]
    pub const fn system_scope(&self) -> Option<SystemScope> {
        self.system
    }

    /// The same grant on another resource of the same aggregate, scope unchanged.
    ///
    /// For handlers whose one decision covers a parent and its parts, such as an encounter and its patient's row.
    pub fn for_resource(&self, resource: impl Into<ResourceCode>) -> Self {
        let mut permit = self.retyped();
        permit.resource = resource.into();
        permit
    }

    /// The same grant within a narrower scope, once the row is known; never a wider one.
    ///
    /// A permit for one's own record stays with that record, and one for facilities stays with them: that a row belongs to
    /// `home` does not say where it was written.
    pub fn narrowed(&self, home: Uuid) -> Self {
        let mut permit = self.retyped();
        if permit.scope == Scope::All {
            permit.scope = Scope::Own(home);
        }
        permit
    }
}

impl Permit<Write> {
    /// The right to look that comes with the right to change.
    pub fn as_read(&self) -> Permit<Read> {
        self.retyped()
    }
}

impl<A: AccessKind> Permit<A> {
    /// A permit without a caller's scope, for workers and maintenance. The reason is audited.
    pub fn system(scope: SystemScope, action: impl Into<ActionCode>, resource: impl Into<ResourceCode>) -> Self {
        Self {
            action: action.into(),
            resource: resource.into(),
            scope: Scope::All,
            policy_version: 0,
            system: Some(scope),
            access: PhantomData,
        }
    }
}
