use pim_core::identity::Actor;
use pim_core::rbac::{Permit, Policy, Reach, Read, Write};

pim_core::roles! { enum Who { Clerk = "clerk" } }
pim_core::actions! { enum Do { Look = "look": Read, Change = "change": Write } }
pim_core::resources! { enum Thing { Stock = "stock" } }

struct Shelf;

impl Shelf {
    fn look(&self, _: &Permit<Read>) {}
    fn change(&self, _: &Permit<Write>) {}
}

fn policy() -> Policy {
    let builder = Policy::builder(1).permit(Who::Clerk, Do::Look, Thing::Stock, Reach::All);
    builder.permit(Who::Clerk, Do::Change, Thing::Stock, Reach::All).build().unwrap()
}

fn main() {
    let (policy, shelf) = (policy(), Shelf);
    let clerk = Actor::new("u-1".parse().unwrap(), Who::Clerk);
    let permit: Permit<Read> = policy.authorize(&clerk, Do::Look, Thing::Stock).unwrap();
    let copy: Permit<Read> = permit.clone();
    shelf.look(&copy);
    shelf.change(&policy.authorize(&clerk, Do::Change, Thing::Stock).unwrap());
}
