//! Who may pass, in the order of the design: address, token, session, rate, policy, key.

use std::net::IpAddr;

use http::HeaderValue;
use http::header::{AUTHORIZATION, HeaderMap};
use http::request::Parts;
use pim_core::identity::Actor;
use pim_core::problem::{self, IntoProblem as _, Problem};
use pim_core::rate::{Limit, RateTable};
use pim_core::rbac::RbacLayer;
use pim_core::role::{Access as ActionAccess, Action as _};

use super::http::Gateway;
use crate::policy::lab_policy;
use crate::rig::Peer;
use crate::routes::{Access, Class, Match, Route, find};

/// What admission found out.
pub(super) struct Admitted {
    pub(super) route: &'static Route,
    /// The session context to forward; none for public routes.
    pub(super) txn_token: Option<HeaderValue>,
}

/// Lets a request pass or says why not. Nothing has reached an upstream before this.
///
/// Who calls is put into the request's extensions as soon as it is known, so that refusals are logged with a name.
pub(super) async fn admit(gateway: &Gateway, head: &mut Parts) -> Result<Admitted, Problem> {
    let route = match find(&head.method, head.uri.path()) {
        Match::Found(route) => route,
        Match::OtherMethods(allowed) => return Err(Problem::of(problem::METHOD_NOT_ALLOWED).allow(allowed)),
        Match::Unknown => return Err(Problem::of(problem::NOT_FOUND)),
    };
    check_address(gateway, head)?;
    let Access::Granted(action, resource) = route.access else { return Ok(Admitted { route, txn_token: None }) };
    let token = bearer(&head.headers)?.to_owned();
    let actor = gateway.verifier().verify(&token).await.map_err(|error| error.into_problem())?;
    head.extensions.insert(actor.clone());
    // Before the policy, so that probing what is denied counts too.
    check_rate(gateway.personas(), gateway.persona_limit(), &actor, route.class)?;
    RbacLayer::new(lab_policy()).require(action, resource).check(head)?;
    // Operations are writes too, but a check of the trail changes nothing that a retry could double.
    if action.access() == ActionAccess::Write && !head.headers.contains_key("idempotency-key") {
        return Err(Problem::of(problem::IDEMPOTENCY_KEY_MISSING));
    }
    let held = gateway.sessions().context_of(&token, &head.extensions).await?;
    Ok(Admitted { route, txn_token: Some(held.token.clone()) })
}

fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let value = headers.get(AUTHORIZATION).ok_or_else(|| Problem::of(problem::UNAUTHENTICATED))?;
    let credentials = value.to_str().ok().and_then(|text| text.split_once(' '));
    let token = credentials.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token);
    token.ok_or_else(|| Problem::of(problem::UNAUTHENTICATED).detail("send a bearer token"))
}

fn check_address(gateway: &Gateway, head: &Parts) -> Result<(), Problem> {
    let Some(Peer(peer)) = head.extensions.get().copied() else { return Ok(()) };
    let limit = gateway.address_limit();
    gateway.addresses().check(&prefix(peer.ip()), limit, 1).passed(limit)
}

/// Addresses that belong to one network count as one: /24 of IPv4, /56 of IPv6, told apart by their family.
///
/// A socket for both shows IPv4 addresses inside of one network of IPv6.
fn prefix(address: IpAddr) -> [u8; 8] {
    let mut prefix = [0; 8];
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            prefix[0] = 4;
            prefix[1..4].copy_from_slice(&v4.octets()[..3]);
        }
        IpAddr::V6(v6) => {
            prefix[0] = 6;
            prefix[1..].copy_from_slice(&v6.octets()[..7]);
        }
    }
    prefix
}

fn check_rate(table: &RateTable, limit: Limit, actor: &Actor, class: Class) -> Result<(), Problem> {
    let key = (actor.role().code(), actor.subject().as_str(), class);
    table.check(&key, limit, class.cost()).passed(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_told_apart_on_a_socket_for_both_families_too() {
        let of = |address: &str| prefix(address.parse().expect("an address"));
        assert_eq!(of("::ffff:10.1.2.3"), of("10.1.2.250"), "one network, whatever the socket shows");
        assert_ne!(of("::ffff:10.1.2.3"), of("::ffff:10.1.3.3"));
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:ff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:100::1"));
        assert_ne!(of("32.1.13.1"), of("2001:d00::1"), "the same bytes in another family");
    }
}
