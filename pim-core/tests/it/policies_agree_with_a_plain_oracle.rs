//! A compiled policy decides as a list read from top to bottom would; forbid beats permit, silence denies.

use std::collections::HashMap;

use pim_core::identity::Actor;
use pim_core::rbac::{AccessKind as _, DenyReason, Permit, Policy, PolicyError, Reach, Read, Scope, Write};
use pim_core::role::{Access, Action as _, ActionCode, ClosedEnum as _, ResourceCode};
use proptest::prelude::*;
use uuid::Uuid;

pim_core::roles! { enum R { A = "a", B = "b", C = "c" } }
pim_core::actions! { enum Do { Look = "look": Read, List = "list": Read, Make = "make": Write, Drop = "drop": Write } }
pim_core::resources! { enum Thing { X = "x", Y = "y", Z = "z" } }
pim_core::roles! { enum Stranger { Admin = "admin" } }
pim_core::actions! { enum Undo { Look = "undo": Read } }

const FACILITY: Uuid = Uuid::from_u128(1);
const OWN: Uuid = Uuid::from_u128(2);

#[derive(Clone, Copy, Debug)]
enum Rule {
    Permit(R, Do, Thing, Reach),
    Forbid(R, Do, Thing),
}

fn rule() -> impl Strategy<Value = Rule> {
    let triple = (prop::sample::select(R::ALL), prop::sample::select(Do::ALL), prop::sample::select(Thing::ALL));
    let reach = prop::sample::select(vec![Reach::Own, Reach::SameFacility, Reach::All]);
    (triple, reach, 0..5_u8).prop_map(|((role, action, thing), reach, kind)| {
        if kind == 0 { Rule::Forbid(role, action, thing) } else { Rule::Permit(role, action, thing, reach) }
    })
}

/// The plain reading: all rules of the triple, forbids first.
fn oracle(rules: &[Rule], role: R, action: Do, thing: Thing) -> Option<Reach> {
    let mut reach = None;
    for rule in rules {
        match *rule {
            Rule::Forbid(r, a, t) if (r, a, t) == (role, action, thing) => return None,
            Rule::Permit(r, a, t, granted) if (r, a, t) == (role, action, thing) => reach = Some(granted),
            _ => {}
        }
    }
    reach
}

fn contradicts(rules: &[Rule]) -> bool {
    let mut seen = HashMap::new();
    rules.iter().any(|rule| match *rule {
        Rule::Permit(r, a, t, reach) => seen.insert((r, a, t), reach).is_some_and(|before| before != reach),
        Rule::Forbid(..) => false,
    })
}

fn built(rules: &[Rule]) -> Result<Policy, PolicyError> {
    let builder = rules.iter().fold(Policy::builder(3), |builder, rule| match *rule {
        Rule::Permit(r, a, t, reach) => builder.permit(r, a, t, reach),
        Rule::Forbid(r, a, t) => builder.forbid(r, a, t),
    });
    builder.build()
}

fn actors(role: R) -> [Actor; 3] {
    let bare = Actor::new("u-1".parse().unwrap(), role);
    [bare.clone(), bare.clone().with_facilities(&[FACILITY]).unwrap(), bare.with_own_record(OWN)]
}

fn expected(reach: Option<Reach>, actor: &Actor) -> Result<Scope, DenyReason> {
    match reach {
        None => Err(DenyReason::NoGrant),
        Some(Reach::Own) => actor.own_record().map(Scope::Own).ok_or(DenyReason::NoOwnRecord),
        Some(Reach::SameFacility) if actor.facilities().is_empty() => Err(DenyReason::NoFacility),
        Some(Reach::SameFacility) => Ok(Scope::Facilities(actor.facilities().into())),
        Some(_) => Ok(Scope::All),
    }
}

proptest! {
    #[test]
    fn on_every_triple_and_actor(rules in prop::collection::vec(rule(), 0..40)) {
        let policy = match built(&rules) {
            Ok(policy) => policy,
            Err(error) => {
                let is_conflict = matches!(error, PolicyError::Conflict { .. });
                prop_assert!(is_conflict && contradicts(&rules));
                return Ok(());
            }
        };
        prop_assert!(!contradicts(&rules));
        for (&role, &action) in R::ALL.iter().flat_map(|role| Do::ALL.iter().map(move |action| (role, action))) {
            for (&thing, actor) in Thing::ALL.iter().flat_map(|thing| actors(role).map(|actor| (thing, actor))) {
                let expected = expected(oracle(&rules, role, action, thing), &actor);
                let codes = (ActionCode::of(action), ResourceCode::of(thing));
                prop_assert_eq!(policy.scope(&actor, codes.0, codes.1), expected.clone());
                let read = policy.authorize::<Read>(&actor, action, thing).map(|permit| permit.scope().clone());
                let write = policy.authorize::<Write>(&actor, action, thing).map(|permit| permit.scope().clone());
                let (right, wrong) = if action.access() == Access::Read { (read, write) } else { (write, read) };
                prop_assert_eq!(right.map_err(|denied| denied.reason), expected);
                prop_assert_eq!(wrong.map_err(|denied| denied.reason), Err(DenyReason::WrongAccess));
            }
        }
    }
}

#[test]
fn forbid_beats_permit_in_either_order() {
    let rule = Rule::Permit(R::A, Do::Make, Thing::X, Reach::All);
    let forbid = Rule::Forbid(R::A, Do::Make, Thing::X);
    let [actor, ..] = actors(R::A);
    for rules in [vec![rule, forbid], vec![forbid, rule]] {
        let policy = built(&rules).unwrap();
        assert_eq!(policy.authorize::<Write>(&actor, Do::Make, Thing::X).unwrap_err().reason, DenyReason::NoGrant);
        assert!(policy.grants().is_empty());
    }
    assert!(built(&[rule]).unwrap().authorize::<Write>(&actor, Do::Make, Thing::X).is_ok());
}

#[test]
fn a_code_of_another_enum_means_nothing() {
    let policy = built(&[Rule::Permit(R::A, Do::Look, Thing::X, Reach::All)]).unwrap();
    let stranger = Actor::new("u-1".parse().unwrap(), Stranger::Admin);
    let [actor, ..] = actors(R::A);
    // Each has the same code as its counterpart, and another name.
    assert!(policy.authorize::<Read>(&stranger, Do::Look, Thing::X).is_err());
    assert!(policy.authorize::<Read>(&actor, Undo::Look, Thing::X).is_err());
    assert!(policy.authorize::<Read>(&actor, Do::Look, Thing::X).is_ok());
    let mixed = Policy::builder(1).permit(R::A, Do::Look, Thing::X, Reach::All).permit(
        Stranger::Admin,
        Do::Look,
        Thing::X,
        Reach::All,
    );
    assert_eq!(mixed.build().unwrap_err(), PolicyError::Mixed { first: "a", second: "admin" });
}

#[test]
fn narrowing_never_widens() {
    let other = Uuid::from_u128(9);
    let grant = |reach| built(&[Rule::Permit(R::A, Do::Look, Thing::X, reach)]).unwrap();
    let [bare, affiliated, owner] = actors(R::A);
    for (reach, actor) in [(Reach::All, bare), (Reach::SameFacility, affiliated), (Reach::Own, owner)] {
        let wide: Permit<Read> = grant(reach).authorize(&actor, Do::Look, Thing::X).unwrap();
        let narrow = wide.narrowed(other);
        for (home, facility) in
            [(OWN, None), (other, None), (OWN, Some(FACILITY)), (other, Some(FACILITY)), (other, Some(OWN))]
        {
            assert!(!narrow.scope().sees(home, facility) || wide.scope().sees(home, facility), "{reach:?} {home}");
        }
    }
    let system: Permit<Write> =
        Permit::system(pim_core::rbac::SystemScope::new("test"), ActionCode::of(Do::Make), ResourceCode::of(Thing::X));
    assert!(system.narrowed(OWN).scope().sees(OWN, None) && !system.narrowed(OWN).scope().sees(other, None));
    assert_eq!((Read::ACCESS, Write::ACCESS), (Access::Read, Access::Write));
}
