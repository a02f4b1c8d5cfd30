//! Who may pass, in the order of the design: token, rate, policy, key. The address was counted before.

use http::header::{AUTHORIZATION, HeaderMap};
use http::request::Parts;
use pim_core::identity::Actor;
use pim_core::problem::{self, IntoProblem as _, Problem};
use pim_core::rate::{Limit, RateTable};
use pim_core::rbac::RbacLayer;
use pim_core::role::{Access as ActionAccess, Action as _, ClosedEnum as _};

use super::http::Gateway;
use crate::policy::{LabAction, LabResource, LabRole, lab_policy};
use crate::routes::Class;

/// A caller who may do what they ask for.
pub(super) struct Admitted {
    /// The token that they have shown; it goes no further than to the broker.
    pub(super) token: String,
    actor: Actor,
}

impl Admitted {
    /// Whether they operate the platform.
    pub(super) fn is_operator(&self) -> bool {
        self.actor.role().code() == LabRole::Sre.code()
    }
}

/// Lets a request pass or says why not. Nothing has reached an upstream before this.
///
/// Who calls is put into the request's extensions as soon as it is known, so that refusals are logged with a name.
pub(super) async fn admit(
    gateway: &Gateway,
    (action, resource): (LabAction, LabResource),
    class: Class,
    head: &mut Parts,
) -> Result<Admitted, Problem> {
    let token = bearer(&head.headers)?.to_owned();
    let actor = gateway.verifier().verify(&token).await.map_err(|error| error.into_problem())?;
    head.extensions.insert(actor.clone());
    // Before the policy, so that probing what is denied counts too.
    check_rate(gateway.personas(), gateway.persona_limit(), &actor, class)?;
    RbacLayer::new(lab_policy()).require(action, resource).check(head)?;
    // Operations are writes too, but a check of the trail changes nothing that a retry could double.
    if action.access() == ActionAccess::Write && !head.headers.contains_key("idempotency-key") {
        return Err(Problem::of(problem::IDEMPOTENCY_KEY_MISSING));
    }
    Ok(Admitted { token, actor })
}

fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let value = headers.get(AUTHORIZATION).ok_or_else(|| Problem::of(problem::UNAUTHENTICATED))?;
    let credentials = value.to_str().ok().and_then(|text| text.split_once(' '));
    let token = credentials.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token);
    token.ok_or_else(|| Problem::of(problem::UNAUTHENTICATED).detail("send a bearer token"))
}

fn check_rate(table: &RateTable, limit: Limit, actor: &Actor, class: Class) -> Result<(), Problem> {
    let key = (actor.role().code(), actor.subject().as_str(), class);
    table.check(&key, limit, class.cost()).passed(limit)
}
