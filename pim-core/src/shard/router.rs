//! Routing under a map that can be swapped while others read.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use super::finding::MapError;
use super::map::ShardMap;
use super::{Bucket, MapVersion, Route, ShardKey};

/// Most buckets that may change hands in one swap.
pub const HANDOVERS_MAX: usize = 1024;

/// Holds the map in force. Clones share it; reading takes no lock and does not allocate.
///
/// ```
/// use pim_core::shard::{ShardMap, ShardRouter};
/// pim_core::id_kinds! { /** A customer. */ Customer = "customer" }
///
/// let router = ShardRouter::new(ShardMap::even(4)?);
/// let id = pim_core::id::Id::<Customer>::random();
/// let home = router.route(&id);
/// assert_eq!(home.bucket, id.bucket());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ShardRouter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Another number for each router and each swap, never used twice, so that a reader knows by one load whether its
    /// cached map is still the one.
    stamp: AtomicU64,
    map: ArcSwap<ShardMap>,
}

struct Cached {
    stamp: u64,
    map: Arc<ShardMap>,
}

thread_local! {
    static CACHED: RefCell<Option<Cached>> = const { RefCell::new(None) };
}

static STAMPS: AtomicU64 = AtomicU64::new(0);

impl ShardRouter {
    /// A router over a map.
    #[must_use]
    pub fn new(map: ShardMap) -> Self {
        let stamp = AtomicU64::new(STAMPS.fetch_add(1, Ordering::Relaxed));
        Self(Arc::new(Shared { stamp, map: ArcSwap::from_pointee(map) }))
    }

    /// Where a key lives. Cannot fail: a map covers the key space.
    #[must_use]
    #[inline]
    pub fn route(&self, key: &impl ShardKey) -> Route {
        // Before the cache is borrowed: a key of the embedding program may itself ask a router.
        let bucket = key.bucket();
        CACHED.with_borrow_mut(|cached| {
            let stamp = self.0.stamp.load(Ordering::Acquire);
            match cached {
                Some(entry) if entry.stamp == stamp => entry.map.route_bucket(bucket),
                _ => self.looked_up(cached, stamp, bucket),
            }
        })
    }

    #[cold]
    fn looked_up(&self, cached: &mut Option<Cached>, stamp: u64, bucket: Bucket) -> Route {
        let map = self.0.map.load_full();
        let route = map.route_bucket(bucket);
        *cached = Some(Cached { stamp, map });
        route
    }

    /// After the map is stored. A swap, not a store: a reader of the last stamp must also see what earlier ones announced.
    fn announce(&self) {
        self.0.stamp.swap(STAMPS.fetch_add(1, Ordering::Relaxed), Ordering::AcqRel);
    }

    /// The map in force.
    #[must_use]
    pub fn map(&self) -> Arc<ShardMap> {
        self.0.map.load_full()
    }

    /// The version in force.
    #[must_use]
    pub fn version(&self) -> MapVersion {
        self.0.map.load().version()
    }

    /// Puts `next` in force, if it may follow the map in force.
    ///
    /// # Errors
    /// [`MapError`] with every finding; the running map stays.
    pub fn swap(&self, next: ShardMap) -> Result<(), MapError> {
        let next = Arc::new(next);
        // Ends: whoever was faster has put a version in force that `next` does not follow any more.
        loop {
            let current = self.map();
            current.check_successor(&next, HANDOVERS_MAX)?;
            let found = self.0.map.compare_and_swap(&current, Arc::clone(&next));
            if Arc::ptr_eq(&found, &current) {
                self.announce();
                return Ok(());
            }
        }
    }

    /// Catches up with a map that others have put in force, possibly several versions ahead; an older one is ignored.
    ///
    /// Returns whether the map in force changed.
    pub fn catch_up(&self, newest: ShardMap) -> bool {
        let next = Arc::new(newest);
        // Two writers at once must not leave the older map behind.
        let before =
            self.0.map.rcu(|now| if now.version() < next.version() { Arc::clone(&next) } else { Arc::clone(now) });
        let is_newer = before.version() < next.version();
        if is_newer {
            self.announce();
        }
        is_newer
    }
}
