//! Networks: what is counted before anything is known of a caller.

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
    head.extensions.get().map(|peer: &Peer| Charge::one(peer.network()))
}
