//! How many requests are held at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What operations and sign-ins have beside the places that are for everybody: whoever has to end what takes all of those must
/// get in.
pub const RESERVED: usize = 64;

/// The places of a gateway.
#[derive(Debug)]
pub(super) struct Slots {
    common: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
}

impl Slots {
    /// So many for everybody, and those that are reserved.
    pub(super) fn new(common: usize) -> Self {
        Self { common: Arc::new(Semaphore::new(common)), reserved: Arc::new(Semaphore::new(RESERVED)) }
    }

    /// A place, if there is one left. Operations take those that are reserved last.
    pub(super) fn take(&self, is_operation: bool) -> Option<OwnedSemaphorePermit> {
        let of = |places: &Arc<Semaphore>| Arc::clone(places).try_acquire_owned().ok();
        of(&self.common).or_else(|| is_operation.then(|| of(&self.reserved)).flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_have_places_of_their_own_and_not_more_than_these() {
        let slots = Slots::new(2);
        let common: Vec<_> = [true, false].into_iter().map(|is_operation| slots.take(is_operation)).collect();
        assert!(common.iter().all(Option::is_some) && slots.take(false).is_none());
        let reserved: Vec<_> = (0..RESERVED).map(|_| slots.take(true)).collect();
        assert!(reserved.iter().all(Option::is_some) && slots.take(true).is_none());
        drop(common);
        assert!(slots.take(false).is_some());
    }
}
