//! Reference data in memory: one flight a key, a time to live, and versions that never go back.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use moka::Entry;
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use uuid::Uuid;

/// Bounds of a cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheSettings {
    /// Most entries held.
    pub entries_max: u64,
    /// Longest life of an entry that nobody invalidates.
    pub ttl: Duration,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self { entries_max: 10_000, ttl: Duration::from_secs(60) }
    }
}

/// A value as it was read, with what tells its age.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded<V> {
    /// The value.
    pub value: V,
    /// The entity's version.
    pub version: u64,
    /// The home key's n in the snapshot that it was read from.
    pub n: u64,
}

/// Holds rows of one table by id. Clones share the entries.
///
/// Two things make it drop an entry early: [`ReferenceCache::invalidate`], which the consumer of the table's events
/// calls, and a reader that has seen a higher n of the key.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use pim_data::cache::{CacheSettings, Loaded, ReferenceCache};
///
/// let cache = ReferenceCache::<&str>::new(CacheSettings::default());
/// let key = uuid::Uuid::nil();
/// let read = || async { Ok::<_, std::io::Error>(Some(Loaded { value: "north", version: 1, n: 1 })) };
/// assert_eq!(cache.get(key, 0, read).await.unwrap().unwrap().value, "north");
/// cache.invalidate(key, 2).await; // an event said so: the next reader reads again
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ReferenceCache<V: Clone + Send + Sync + 'static> {
    entries: Cache<Uuid, Arc<Loaded<V>>>,
    /// Lowest version of a key that may be served, as told by events; outlives the entry.
    floors: Cache<Uuid, u64>,
}

/// Not an error of the caller's: there is no such row, which is not remembered.
enum Missing<E> {
    Row,
    Failed(E),
}

impl<V: Clone + Send + Sync + 'static> ReferenceCache<V> {
    /// An empty cache.
    #[must_use]
    pub fn new(settings: CacheSettings) -> Self {
        let entries = Cache::builder().max_capacity(settings.entries_max).time_to_live(settings.ttl).build();
        // A load that began before an event may end after it: floors must live at least as long as any load.
        let life = settings.ttl.max(Duration::from_secs(60));
        // The newest are the ones that a load in flight may not know of.
        let floors = Cache::builder().max_capacity(settings.entries_max).time_to_live(life);
        let floors = floors.eviction_policy(EvictionPolicy::lru()).build();
        Self { entries, floors }
    }

    /// The entry of `key`, read by `load` when there is none, or only one older than `n_min` or than an event told of.
    ///
    /// Of several callers at once one loads. What is not there is not remembered.
    ///
    /// # Errors
    /// The error of `load`, shared by all who waited for it.
    pub async fn get<E, F>(&self, key: Uuid, n_min: u64, load: impl Fn() -> F) -> Result<Option<Arc<Loaded<V>>>, Arc<E>>
    where
        F: Future<Output = Result<Option<Loaded<V>>, E>>,
        E: Send + Sync + 'static,
    {
        for fresh in [false, true] {
            let flight = async {
                match load().await {
                    Ok(Some(loaded)) => Ok(Arc::new(loaded)),
                    Ok(None) => Err(Missing::Row),
                    Err(error) => Err(Missing::Failed(Arc::new(error))),
                }
            };
            let entry = match self.entries.try_get_with(key, flight).await {
                Ok(entry) => entry,
                Err(missing) => {
                    return match &*missing {
                        // Whoever began to look may have done so before it was there.
                        Missing::Row if !fresh && (n_min > 0 || self.floors.get(&key).await.is_some()) => continue,
                        Missing::Row => Ok(None),
                        Missing::Failed(error) => Err(Arc::clone(error)),
                    };
                }
            };
            let floor = self.floors.get(&key).await.unwrap_or(0);
            let serves = entry.n >= n_min && entry.version >= floor;
            if !serves {
                self.forget(key, &entry).await;
            }
            // Read twice at most: a source that lags behind the event is the caller's choice of consistency.
            if serves || fresh {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// An event said that the row now has `version`; one that is not above what is known changes nothing.
    pub async fn invalidate(&self, key: Uuid, version: u64) {
        // In one step: of two that are told at once the higher one stays.
        let highest = |floor: Option<Entry<Uuid, u64>>| ready(floor.map_or(version, |it| it.into_value().max(version)));
        self.floors.entry(key).and_upsert_with(highest).await;
        if let Some(entry) = self.entries.get(&key).await.filter(|entry| entry.version < version) {
            self.forget(key, &entry).await;
        }
    }

    /// Entries held, roughly.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.entries.entry_count()
    }

    /// Whether nothing is held, roughly.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops `seen`, unless somebody has put a newer one in its place.
    async fn forget(&self, key: Uuid, seen: &Arc<Loaded<V>>) {
        if self.entries.get(&key).await.is_some_and(|now| Arc::ptr_eq(&now, seen)) {
            self.entries.invalidate(&key).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn cache() -> ReferenceCache<u64> {
        ReferenceCache::new(CacheSettings::default())
    }

    async fn read(cache: &ReferenceCache<u64>, n_min: u64, reads: &AtomicU64, version: u64) -> u64 {
        let load = || async {
            reads.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(Some(Loaded { value: version, version, n: version }))
        };
        cache.get(Uuid::nil(), n_min, load).await.expect("infallible").expect("there").value
    }

    #[tokio::test]
    async fn many_readers_make_one_flight() {
        let (cache, reads) = (cache(), AtomicU64::new(0));
        let all = (0..32).map(|_| read(&cache, 0, &reads, 1));
        assert!(futures_util::future::join_all(all).await.iter().all(|value| *value == 1));
        assert_eq!(reads.load(Ordering::SeqCst), 1);
    }

    /// Guard: what a caller has seen is not absent because somebody before it looked too early.
    #[tokio::test]
    async fn a_row_that_was_seen_is_looked_for_again() {
        let (cache, reads) = (cache(), AtomicU64::new(0));
        let (begun, goes_on) = (tokio::sync::Notify::new(), tokio::sync::Notify::new());
        let too_early = cache.get(Uuid::nil(), 0, || async {
            begun.notify_one();
            goes_on.notified().await;
            Ok::<Option<Loaded<u64>>, Infallible>(None)
        });
        let seen = async {
            begun.notified().await;
            let reading = read(&cache, 1, &reads, 1);
            let (seen, ()) = tokio::join!(reading, async { goes_on.notify_one() });
            seen
        };
        let (missing, seen) = tokio::join!(too_early, seen);
        assert!(missing.expect("infallible").is_none());
        assert_eq!(seen, 1);
    }

    #[tokio::test]
    async fn an_event_of_a_higher_version_drops_the_entry_and_a_lower_one_does_not() {
        let (cache, reads) = (cache(), AtomicU64::new(0));
        assert_eq!(read(&cache, 0, &reads, 3).await, 3);
        cache.invalidate(Uuid::nil(), 3).await;
        cache.invalidate(Uuid::nil(), 2).await;
        assert_eq!(read(&cache, 0, &reads, 4).await, 3);
        cache.invalidate(Uuid::nil(), 4).await;
        assert_eq!(read(&cache, 0, &reads, 4).await, 4);
        assert_eq!(reads.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_higher_token_bypasses_the_entry() {
        let (cache, reads) = (cache(), AtomicU64::new(0));
        assert_eq!(read(&cache, 0, &reads, 1).await, 1);
        assert_eq!(read(&cache, 2, &reads, 2).await, 2);
        assert_eq!(reads.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_load_that_an_event_overtook_is_not_kept() {
        let (cache, reads) = (cache(), AtomicU64::new(0));
        cache.invalidate(Uuid::nil(), 5).await;
        // The source still shows the old row: it is handed out after a second look, but not remembered.
        assert_eq!(read(&cache, 0, &reads, 4).await, 4);
        assert_eq!(read(&cache, 0, &reads, 5).await, 5);
        assert_eq!(read(&cache, 0, &reads, 5).await, 5);
        assert_eq!(reads.load(Ordering::SeqCst), 3);
    }

    /// Guard: where there is room for few, the newest word of an event is kept, not the first one.
    #[tokio::test]
    async fn nor_where_many_events_came_before() {
        let cache = ReferenceCache::new(CacheSettings { entries_max: 4, ..CacheSettings::default() });
        let reads = AtomicU64::new(0);
        for _ in 0..50 {
            cache.invalidate(Uuid::new_v4(), 1).await;
        }
        cache.invalidate(Uuid::nil(), 5).await;
        cache.floors.run_pending_tasks().await;
        assert_eq!(read(&cache, 0, &reads, 4).await, 4);
        assert_eq!(read(&cache, 0, &reads, 5).await, 5);
    }

    #[tokio::test]
    async fn absence_and_failure_are_not_remembered() {
        let cache = cache();
        let none = || async { Ok::<Option<Loaded<u64>>, &str>(None) };
        assert_eq!(cache.get(Uuid::nil(), 0, none).await, Ok(None));
        let fails = || async { Err::<Option<Loaded<u64>>, _>("down") };
        assert_eq!(cache.get(Uuid::nil(), 0, fails).await, Err(Arc::new("down")));
        assert_eq!(read(&cache, 0, &AtomicU64::new(0), 1).await, 1);
    }
}
