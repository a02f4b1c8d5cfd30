//! Where a pool's connections lead at present.

use std::net::IpAddr;

use crate::backend::Demand;
use crate::backend::secret::check_name;

/// Stands for what is no name of a secret; it is none itself.
const NO_NAME: &str = "(no name of a secret)";

/// Where a pool's connections lead. It is replaced as a whole, so that each connection can say by which it was opened.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Name of the secret that holds the connection string.
    pub(super) name: String,
    pub(super) demand: Demand,
    /// Rises with every change; idle connections of an older one are closed.
    pub(super) generation: u64,
    /// Rises when another server is meant; calls under way on a connection of an older one are given up.
    pub(super) era: u64,
    /// Digest of the connection string, once it was looked at.
    dsn: Option<[u8; 32]>,
    /// Where its host led, when it was looked at.
    addresses: Vec<IpAddr>,
}

impl Target {
    /// What is no name may be a connection string, and a name is told in errors and logs.
    pub(super) fn new(name: String) -> Self {
        let demand = Demand { primary: false, term: 0 };
        let name = if check_name(&name).is_ok() { name } else { NO_NAME.to_owned() };
        Self { name, demand, generation: 0, era: 0, dsn: None, addresses: Vec::new() }
    }

    /// Means another server. Says whether that was new.
    pub(super) fn turn_to(&mut self, name: &str, demand: Demand) -> bool {
        if self.name == name && self.demand == demand {
            return false;
        }
        // The first demand is made of a server that has been looked at already, and readers go on with what they have.
        let is_same = self.name == name && (self.demand == Demand::default() || !demand.primary);
        if self.name != name {
            (self.name, self.dsn, self.addresses) = (name.to_owned(), None, Vec::new());
        }
        self.demand = demand;
        if !is_same {
            self.generation += 1;
            self.era += 1;
        }
        true
    }

    /// Takes note of what its name stands for now. Says whether that is something else than before.
    pub(super) fn stands_for(&mut self, dsn: [u8; 32], addresses: Vec<IpAddr>) -> bool {
        let is_other_string = self.dsn.is_some_and(|before| before != dsn);
        // A name with many addresses may show some of them at a time: only an answer without any known one is another place.
        let is_elsewhere = !self.addresses.is_empty()
            && !addresses.is_empty()
            && addresses.iter().all(|address| !self.addresses.contains(address));
        self.dsn = Some(dsn);
        if !addresses.is_empty() {
            self.addresses = addresses;
        }
        if is_other_string || is_elsewhere {
            self.generation += 1;
        }
        is_other_string || is_elsewhere
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target::new("shard-0".to_owned())
    }

    #[test]
    fn a_changed_string_or_address_makes_connections_old_and_an_equal_one_does_not() {
        let (mut target, [a, b, c]) = (target(), [1, 2, 3].map(|it| IpAddr::from([127, 0, 0, it])));
        assert!(!target.stands_for([1; 32], vec![a, b]), "the first look changes nothing");
        assert!(!target.stands_for([1; 32], vec![b, a]), "another order");
        assert!(!target.stands_for([1; 32], vec![b]), "a part");
        assert!(!target.stands_for([1; 32], Vec::new()), "nobody knows the name just now");
        assert!(target.stands_for([1; 32], vec![c]));
        assert!(target.stands_for([2; 32], vec![c]));
        assert_eq!((target.generation, target.era), (2, 0), "what is under way may end");
    }

    #[test]
    fn another_server_or_term_ends_what_is_under_way() {
        let mut target = target();
        assert!(target.turn_to("shard-0", Demand { primary: true, term: 1 }));
        assert_eq!(target.era, 0, "it is the same server still");
        assert!(!target.turn_to("shard-0", Demand { primary: true, term: 1 }));
        assert!(target.turn_to("shard-0", Demand { primary: true, term: 2 }));
        assert!(target.turn_to("shard-0-standby", Demand { primary: true, term: 2 }));
        assert_eq!((target.generation, target.era), (2, 2));
    }

    #[test]
    fn a_string_that_changes_together_with_the_term_is_not_passed_over() {
        let mut target = target();
        target.stands_for([1; 32], Vec::new());
        target.turn_to("shard-0", Demand { primary: true, term: 2 });
        assert!(target.stands_for([2; 32], Vec::new()));
    }
}
