//! Who is at the other end of a connection.

use std::net::{IpAddr, SocketAddr};

/// Who is at the other end of the connection, in a request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

impl Peer {
    /// Its network, by which limits count: /24 of IPv4, /56 of IPv6, told apart by their family.
    ///
    /// A socket for both shows IPv4 addresses inside of one network of IPv6.
    #[must_use]
    pub fn network(self) -> [u8; 8] {
        let mut network = [0; 8];
        match self.0.ip().to_canonical() {
            IpAddr::V4(v4) => {
                network[0] = 4;
                network[1..4].copy_from_slice(&v4.octets()[..3]);
            }
            IpAddr::V6(v6) => {
                network[0] = 6;
                network[1..].copy_from_slice(&v6.octets()[..7]);
            }
        }
        network
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_told_apart_on_a_socket_for_both_families_too() {
        let of = |address: &str| Peer(SocketAddr::new(address.parse().expect("an address"), 1)).network();
        assert_eq!(of("::ffff:10.1.2.3"), of("10.1.2.250"), "one network, whatever the socket shows");
        assert_ne!(of("::ffff:10.1.2.3"), of("::ffff:10.1.3.3"));
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:ff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:100::1"));
        assert_ne!(of("32.1.13.1"), of("2001:d00::1"), "the same bytes in another family");
    }
}
