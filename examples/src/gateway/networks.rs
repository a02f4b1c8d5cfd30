//! Networks: what is counted before anything is known of a caller.

use std::net::IpAddr;

use http::request::Parts;
use pim_core::rate::Charge;

use crate::rig::Peer;

/// A network, as a key.
type Network = [u8; 8];

/// Whose account a request is on.
pub(super) type NetworkCharge = fn(&Parts) -> Option<Charge<Network>>;
/// That of its network.
pub(super) const CHARGE: NetworkCharge = charge;

fn charge(head: &Parts) -> Option<Charge<Network>> {
    head.extensions.get().map(|Peer(peer)| Charge::one(prefix(peer.ip())))
}

/// Addresses that belong to one network count as one: /24 of IPv4, /56 of IPv6, told apart by their family.
///
/// A socket for both shows IPv4 addresses inside of one network of IPv6.
fn prefix(address: IpAddr) -> Network {
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
