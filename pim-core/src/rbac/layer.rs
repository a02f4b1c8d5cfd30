//! The policy as a layer: no actor, no entry; no grant, no entry; and the proof goes along with the request.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::{Request, Response};
use tower::{Layer, Service};

use super::permit::{Permit, Read, Write};
use super::policy::{DenyReason, Policy};
use crate::context::RequestId;
use crate::identity::Actor;
use crate::problem::{FORBIDDEN, Problem, UNAUTHENTICATED, response_of};
use crate::role::{Access, Action, ActionCode, Resource, ResourceCode};

/// A policy that many requests share: a `static` one, or a counted one.
#[derive(Clone, Debug)]
pub struct PolicyHandle(Held);

#[derive(Clone, Debug)]
enum Held {
    Static(&'static Policy),
    Counted(Arc<Policy>),
}

impl From<&'static Policy> for PolicyHandle {
    fn from(policy: &'static Policy) -> Self {
        Self(Held::Static(policy))
    }
}

impl From<Arc<Policy>> for PolicyHandle {
    fn from(policy: Arc<Policy>) -> Self {
        Self(Held::Counted(policy))
    }
}

impl From<&Arc<Policy>> for PolicyHandle {
    fn from(policy: &Arc<Policy>) -> Self {
        Self(Held::Counted(Arc::clone(policy)))
    }
}

impl From<Policy> for PolicyHandle {
    fn from(policy: Policy) -> Self {
        Self(Held::Counted(Arc::new(policy)))
    }
}

impl AsRef<Policy> for PolicyHandle {
    fn as_ref(&self) -> &Policy {
        match &self.0 {
            Held::Static(policy) => policy,
            Held::Counted(policy) => policy,
        }
    }
}

/// Nothing is required yet: an [`RbacLayer`] that is no layer yet.
#[derive(Clone, Copy, Debug)]
pub struct Unset;

/// What an [`RbacLayer`] requires.
#[derive(Clone, Copy, Debug)]
pub struct Required {
    action: ActionCode,
    access: Access,
    resource: ResourceCode,
}

/// Lets a request through only with a permit, and puts the permit into its extensions.
///
/// It reads the [`Actor`] that [`RequestContextLayer`](crate::context::RequestContextLayer) puts there, so put it inside that
/// one. A reading action yields a [`Permit<Read>`], a writing one a [`Permit<Write>`] and the right to look that comes with
/// it. Without an actor the answer is a 401 problem, without a grant a 403 problem with the reason's code.
///
/// ```
/// use std::sync::Arc;
/// use pim_core::rbac::{Policy, RbacLayer, Reach};
/// pim_core::roles! { pub enum R { Clerk = "clerk" } }
/// pim_core::actions! { pub enum A { Look = "look": Read } }
/// pim_core::resources! { pub enum T { Stock = "stock" } }
///
/// let policy = Arc::new(Policy::builder(1).permit(R::Clerk, A::Look, T::Stock, Reach::All).build()?);
/// let layer = RbacLayer::new(&policy).require(A::Look, T::Stock);
/// # let _ = layer;
/// # Ok::<(), pim_core::rbac::PolicyError>(())
/// ```
///
/// One that requires nothing is no layer:
///
/// ```compile_fail
/// # use pim_core::rbac::{Policy, RbacLayer};
/// # let policy = Policy::builder(1).build().unwrap();
/// let service = tower::Layer::layer(&RbacLayer::new(policy), ());
/// ```
#[derive(Clone, Debug)]
pub struct RbacLayer<Q = Unset> {
    policy: PolicyHandle,
    required: Q,
}

impl RbacLayer {
    /// Over a policy.
    pub fn new(policy: impl Into<PolicyHandle>) -> Self {
        Self { policy: policy.into(), required: Unset }
    }

    /// Says what the policy must grant.
    #[must_use]
    pub fn require(self, action: impl Action, resource: impl Resource) -> RbacLayer<Required> {
        let required =
            Required { action: ActionCode::of(action), access: action.access(), resource: ResourceCode::of(resource) };
        RbacLayer { policy: self.policy, required }
    }
}

impl<S> Layer<S> for RbacLayer<Required> {
    type Service = Authorized<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Authorized { inner, layer: self.clone() }
    }
}

/// See [`RbacLayer`].
#[derive(Clone, Debug)]
pub struct Authorized<S> {
    inner: S,
    layer: RbacLayer<Required>,
}

impl<S, B, R> Service<Request<B>> for Authorized<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<R>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match self.layer.admit(&mut request) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(problem) => Either::Right(ready(Ok(response_of(problem)))),
        }
    }
}

impl RbacLayer<Required> {
    fn admit<B>(&self, request: &mut Request<B>) -> Result<(), Problem> {
        let Required { action, access, resource } = self.required;
        let policy = self.policy.as_ref();
        let actor = request.extensions().get::<Actor>().ok_or_else(|| Problem::of(UNAUTHENTICATED))?;
        let scope = policy.scope(actor, action, resource).map_err(|reason| {
            self.log(actor, request.extensions().get(), reason);
            Problem::of(FORBIDDEN).with("reason", reason.code())
        })?;
        let extensions = request.extensions_mut();
        match access {
            Access::Read => {
                extensions.insert(Permit::<Read>::granted(action, resource, scope, policy.version()));
            }
            Access::Write => {
                let permit = Permit::<Write>::granted(action, resource, scope, policy.version());
                extensions.insert(permit.as_read());
                extensions.insert(permit);
            }
        }
        Ok(())
    }

    fn log(&self, actor: &Actor, request_id: Option<&RequestId>, reason: DenyReason) {
        crate::info!(
            "rbac.denied",
            request_id = request_id.copied(),
            user_id = actor.subject(),
            role = actor.role(),
            action = self.required.action.name(),
            resource = self.required.resource.name(),
            reason = reason.code(),
            policy_version = self.policy.as_ref().version(),
        );
    }
}
