//! What stands before every handler: time, session and policy, in the layers of pim-core.

use std::time::Duration;

use axum::Router;
use axum::extract::MatchedPath;
use http::request::Parts;
use pim_core::clock::Clock;
use pim_core::context::RequestContextLayer;
use pim_core::deadline::DeadlineLayer;
use pim_core::identity::ActorVerifier;
use pim_core::rbac::{RbacLayer, Required};
use pim_core::token::{KeyRing, KeySource, TokenVerifier, VerifierSettings};
use tower::ServiceBuilder;

use crate::policy::{LabRole, lab_policy};
use crate::routes::{self, Access, Class, Route};

/// Who issues transaction tokens, as their `iss`; independent of where the broker listens.
pub const TXN_ISSUER: &str = "urn:pim:session-broker";
/// Whom transaction tokens are for, as their `aud`: every service of the lab.
pub const TRUST_DOMAIN: &str = "urn:pim:lab";
/// What no request gets more of.
const BUDGET_MAX: Duration = Class::Sweep.timeout();

/// Trusts the transaction tokens of the lab's broker, by the keys of a source.
pub fn sessions(keys: impl KeySource, clock: Clock) -> RequestContextLayer {
    let settings = VerifierSettings::transaction_token(TXN_ISSUER, TRUST_DOMAIN);
    let ring = KeyRing::new(keys, clock.clone());
    RequestContextLayer::new(ActorVerifier::new::<LabRole>(TokenVerifier::new(settings, ring, clock)))
}

/// Puts routes behind time, session and policy, as the route tables say; what is in none of them nobody may use.
pub(super) fn guarded(routes: Router, sessions: &RequestContextLayer) -> Router {
    let time = DeadlineLayer::new(BUDGET_MAX).inside().budget_of(|head| Some(route_of(head)?.class.timeout()));
    let policy = RbacLayer::new(lab_policy()).require_by(required);
    routes.route_layer(ServiceBuilder::new().layer(time).layer(sessions.clone()).layer(policy))
}

fn route_of(head: &Parts) -> Option<&'static Route> {
    let template = head.extensions.get::<MatchedPath>()?;
    routes::of_template(&head.method, template.as_str())
}

fn required(head: &Parts) -> Option<Required> {
    match route_of(head)?.access {
        Access::Granted(action, resource) => Some(Required::new(action, resource)),
        // Who decides by other means does not stand here.
        Access::Public => None,
    }
}
