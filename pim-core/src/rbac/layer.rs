//! The policy as a layer: no actor, no entry; no grant, no entry; and the proof goes along with the request.

use std::fmt;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::request::Parts;
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

/// What a policy must grant: an action on a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Required {
    action: ActionCode,
    access: Access,
    resource: ResourceCode,
}

impl Required {
    /// Of the program's own actions and resources.
    #[must_use]
    pub fn new(action: impl Action, resource: impl Resource) -> Self {
        Self { action: ActionCode::of(action), access: action.access(), resource: ResourceCode::of(resource) }
    }
}

/// What each request requires. A [`Required`] says the same of all; a function from a request's head may look it up.
pub trait Requirement {
    /// What this request requires; `None` says that nothing was decided about it, and nobody may pass.
    fn of(&self, head: &Parts) -> Option<Required>;
}

impl Requirement for Required {
    fn of(&self, _head: &Parts) -> Option<Required> {
        Some(*self)
    }
}

impl<F: Fn(&Parts) -> Option<Required>> Requirement for F {
    fn of(&self, head: &Parts) -> Option<Required> {
        self(head)
    }
}

/// Lets a request through only with a permit, and puts the permit into its extensions.
///
/// It reads the [`Actor`] that [`RequestContextLayer`](crate::context::RequestContextLayer) puts there, so put it inside that
/// one. A reading action yields a [`Permit<Read>`], a writing one a [`Permit<Write>`] and the right to look that comes with
/// it. Without an actor the answer is a 401 problem, without a grant a 403 problem with the reason's code.
///
/// The same for every request that comes here:
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
/// For many routes at once, by the program's own table of them. What the table does not know is refused, whoever asks:
///
/// ```
/// # use http::Method;
/// # use http::request::Parts;
/// # use pim_core::rbac::{Policy, RbacLayer, Reach, Required};
/// # pim_core::roles! { pub enum R { Clerk = "clerk" } }
/// # pim_core::actions! { pub enum A { Look = "look": Read, Sell = "sell": Write } }
/// # pim_core::resources! { pub enum T { Stock = "stock" } }
/// let policy = Policy::builder(1).permit(R::Clerk, A::Look, T::Stock, Reach::All).build()?;
/// let layer = RbacLayer::new(policy).require_by(|head: &Parts| match (&head.method, head.uri.path()) {
///     (&Method::GET, "/stock") => Some(Required::new(A::Look, T::Stock)),
///     (&Method::POST, "/stock/sales") => Some(Required::new(A::Sell, T::Stock)),
///     _ => None,
/// });
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
#[derive(Clone)]
pub struct RbacLayer<Q = Unset> {
    policy: PolicyHandle,
    required: Q,
}

impl<Q> fmt::Debug for RbacLayer<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.policy.as_ref().version();
        f.debug_struct("RbacLayer").field("policy_version", &version).finish_non_exhaustive()
    }
}

impl RbacLayer {
    /// Over a policy.
    pub fn new(policy: impl Into<PolicyHandle>) -> Self {
        Self { policy: policy.into(), required: Unset }
    }

    /// Says what the policy must grant, for every request.
    #[must_use]
    pub fn require(self, action: impl Action, resource: impl Resource) -> RbacLayer<Required> {
        RbacLayer { policy: self.policy, required: Required::new(action, resource) }
    }

    /// Looks up what the policy must grant, for each request; one that is not found is refused.
    #[must_use]
    pub fn require_by<F: Fn(&Parts) -> Option<Required>>(self, find: F) -> RbacLayer<F> {
        RbacLayer { policy: self.policy, required: find }
    }
}

impl<S, Q: Requirement + Clone> Layer<S> for RbacLayer<Q> {
    type Service = Authorized<S, Q>;

    fn layer(&self, inner: S) -> Self::Service {
        Authorized { inner, layer: self.clone() }
    }
}

/// See [`RbacLayer`].
#[derive(Clone, Debug)]
pub struct Authorized<S, Q = Required> {
    inner: S,
    layer: RbacLayer<Q>,
}

impl<S, Q, B, R> Service<Request<B>> for Authorized<S, Q>
where
    S: Service<Request<B>, Response = Response<R>>,
    Q: Requirement,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<R>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        match self.layer.check(&mut head) {
            Ok(()) => Either::Left(self.inner.call(Request::from_parts(head, body))),
            Err(problem) => Either::Right(ready(Ok(response_of(problem)))),
        }
    }
}

impl<Q: Requirement> RbacLayer<Q> {
    /// Decides about one request as the layer does, and puts the permit into its extensions; for a program that composes by hand.
    ///
    /// # Errors
    /// An `unauthenticated` problem without an [`Actor`], a `forbidden` one with the reason's code, which is logged too.
    pub fn check(&self, head: &mut Parts) -> Result<(), Problem> {
        let policy = self.policy.as_ref();
        let nobody = || Problem::of(UNAUTHENTICATED).detail("nobody has verified a token before the policy was asked");
        let actor = head.extensions.get::<Actor>().ok_or_else(nobody)?;
        let required = self.required.of(head);
        let granted = match required {
            Some(Required { action, resource, .. }) => policy.scope(actor, action, resource),
            None => Err(DenyReason::NoPolicy),
        };
        let denied = |reason: DenyReason| {
            self.log(actor, head.extensions.get(), required, reason);
            Problem::of(FORBIDDEN).with("reason", reason.code())
        };
        let scope = granted.map_err(denied)?;
        let Some(Required { action, access, resource }) = required else { return Ok(()) };
        match access {
            Access::Read => {
                head.extensions.insert(Permit::<Read>::granted(action, resource, scope, policy.version()));
            }
            Access::Write => {
                let permit = Permit::<Write>::granted(action, resource, scope, policy.version());
                head.extensions.insert(permit.as_read());
                head.extensions.insert(permit);
            }
        }
        Ok(())
    }

    fn log(&self, actor: &Actor, request_id: Option<&RequestId>, required: Option<Required>, reason: DenyReason) {
        crate::info!(
            "rbac.denied",
            request_id = request_id.copied(),
            user_id = actor.subject(),
            role = actor.role(),
            action = required.map(|required| required.action.name()),
            resource = required.map(|required| required.resource.name()),
            reason = reason.code(),
            policy_version = self.policy.as_ref().version(),
        );
    }
}
