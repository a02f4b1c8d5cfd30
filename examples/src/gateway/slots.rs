//! How many requests are held at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What operators have beside the places that are for everybody: whoever has to end what takes all of those must get in.
pub const RESERVED: usize = 64;
/// What sign-ins have, and nobody else. They have no others: whoever signs in has shown nothing yet.
pub const SIGN_INS: usize = 64;

/// The places of a gateway.
#[derive(Debug)]
pub(super) struct Slots {
    common: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
    sign_ins: Arc<Semaphore>,
}

impl Slots {
    /// So many for everybody, and those that are kept apart.
    pub(super) fn new(common: usize) -> Self {
        let [common, reserved, sign_ins] = [common, RESERVED, SIGN_INS].map(|places| Arc::new(Semaphore::new(places)));
        Self { common, reserved, sign_ins }
    }

    /// A place for anybody, if there is one left.
    pub(super) fn common(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.common).try_acquire_owned().ok()
    }

    /// A place for somebody who is known to operate, if there is one left.
    pub(super) fn reserved(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.reserved).try_acquire_owned().ok()
    }

    /// A place for a sign-in, once there is one: they come all at once, and each is short.
    pub(super) async fn sign_in(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.sign_ins).acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn each_kind_has_places_of_its_own_and_not_more_than_these() {
        let slots = Slots::new(1);
        let common = slots.common();
        assert!(common.is_some() && slots.common().is_none());
        let reserved: Vec<_> = (0..RESERVED).map(|_| slots.reserved()).collect();
        assert!(reserved.iter().all(Option::is_some) && slots.reserved().is_none());
        let mut sign_ins: Vec<_> = (0..SIGN_INS).map(|_| slots.sign_in().now_or_never().flatten()).collect();
        assert!(sign_ins.iter().all(Option::is_some), "whatever the others have");
        let mut waiting = Box::pin(slots.sign_in());
        assert!(waiting.as_mut().now_or_never().is_none());
        sign_ins.pop();
        assert!(waiting.now_or_never().flatten().is_some(), "the next one");
        drop(common);
        assert!(slots.common().is_some());
    }
}
