//! The keys of one issuer, fetched when they are needed and kept while they are good.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use super::TokenError;
use super::key::{KeySet, VerifyKey};
use crate::clock::{Clock, Timestamp};

/// After this long keys are fetched again before they are used.
const FRESH_FOR: Duration = Duration::from_secs(5 * 60);
/// After this long keys are not used any more, whatever happens.
const GOOD_FOR: Duration = Duration::from_secs(60 * 60);
/// Between two fetches at least.
const PAUSE: Duration = Duration::from_secs(2);
const UNKNOWN_MAX: usize = 64;

/// Fetches the key set of an issuer. Implemented by the program that has the I/O.
#[async_trait]
pub trait KeySource: Send + Sync + 'static {
    /// The JSON Web Key Set as text.
    ///
    /// # Errors
    /// [`KeySourceError`] when it cannot be had now.
    async fn fetch(&self) -> Result<String, KeySourceError>;
}

/// A key set that is known beforehand: a program that signs its own tokens, or a test.
#[async_trait]
impl KeySource for String {
    async fn fetch(&self) -> Result<String, KeySourceError> {
        Ok(self.clone())
    }
}

/// A key set that cannot be had now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key set cannot be fetched: {0}")]
pub struct KeySourceError(pub &'static str);

struct Held {
    keys: KeySet,
    /// SHA-256 of the set's text, and how many different sets came before.
    digest: [u8; 32],
    generation: u64,
    fetched_at: Timestamp,
}

#[derive(Default)]
struct Fetching {
    last: Option<Timestamp>,
    /// Ids that the newest set did not have, newest last; spares the issuer from guesses.
    unknown: VecDeque<String>,
}

/// The keys of one issuer. Fetches are single-flight and paced.
pub struct KeyRing {
    source: Box<dyn KeySource>,
    clock: Clock,
    held: ArcSwapOption<Held>,
    fetching: Mutex<Fetching>,
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyRing").field("generation", &self.generation()).finish_non_exhaustive()
    }
}

impl KeyRing {
    /// An empty ring over a source.
    pub fn new(source: impl KeySource, clock: Clock) -> Self {
        Self {
            source: Box::new(source),
            clock,
            held: ArcSwapOption::empty(),
            fetching: Mutex::new(Fetching::default()),
        }
    }

    /// Which set is in force, while it is fresh. What was verified under another one, or long ago, is verified again, so
    /// that a withdrawn key is noticed even when every caller is known already.
    pub(super) fn generation(&self) -> Option<u64> {
        self.held.load().as_ref().filter(|held| self.is_within(held, FRESH_FOR)).map(|held| held.generation)
    }

    /// The key of an id and the generation of its set, fetching the set when it is old or does not have it.
    pub(super) async fn key(&self, key_id: &str) -> Result<(Arc<VerifyKey>, u64), TokenError> {
        if let Some(key) = self.held_key(key_id, FRESH_FOR) {
            return Ok(key);
        }
        let mut fetching = match (self.fetching.try_lock(), self.held_key(key_id, GOOD_FOR)) {
            (Ok(guard), _) => guard,
            // Somebody is fetching already; a key that is still good need not wait for it.
            (Err(_), Some(key)) => return Ok(key),
            (Err(_), None) => self.fetching.lock().await,
        };
        // Somebody else may have fetched it while we waited.
        if let Some(key) = self.held_key(key_id, FRESH_FOR) {
            return Ok(key);
        }
        let is_fresh = self.age().is_some_and(|age| age < FRESH_FOR);
        if is_fresh && fetching.unknown.iter().any(|unknown| unknown == key_id) {
            return Err(TokenError::UnknownKey);
        }
        let now = self.clock.now();
        let may_fetch = fetching.last.is_none_or(|last| now.since(last) >= PAUSE);
        if may_fetch {
            fetching.last = Some(now);
        }
        let has_fetched = may_fetch && self.fetch(&mut fetching).await;
        if let Some(key) = self.held_key(key_id, GOOD_FOR) {
            return Ok(key);
        }
        if self.age().is_none_or(|age| age >= GOOD_FOR) {
            return Err(TokenError::KeysUnavailable);
        }
        // Only a set that was seen can lack a key: a source that did not answer proves nothing.
        if has_fetched {
            fetching.unknown.push_back(key_id.to_owned());
            let surplus = fetching.unknown.len().saturating_sub(UNKNOWN_MAX);
            fetching.unknown.drain(..surplus);
        }
        Err(TokenError::UnknownKey)
    }

    /// Fetches now, and says whether a good set came. One that cannot be had or is bad leaves the held one in force.
    async fn fetch(&self, fetching: &mut Fetching) -> bool {
        let Ok(text) = self.source.fetch().await else { return false };
        let Ok(keys) = KeySet::from_jwks(&text) else { return false };
        fetching.unknown.retain(|unknown| keys.get(unknown).is_none());
        let digest = Sha256::digest(text.as_bytes()).into();
        let known = self.held.load().as_ref().map(|held| (held.generation, held.digest == digest));
        let generation = known.map_or(0, |(generation, is_same)| generation + u64::from(!is_same));
        // Said once for each set, not at every look.
        if keys.skipped() > 0 && known.is_none_or(|(_, is_same)| !is_same) {
            crate::warn!("key_set.unknown_types_skipped", skipped = keys.skipped());
        }
        self.held.store(Some(Arc::new(Held { keys, digest, generation, fetched_at: self.clock.now() })));
        true
    }

    fn held_key(&self, key_id: &str, most: Duration) -> Option<(Arc<VerifyKey>, u64)> {
        let held = self.held.load();
        let held = held.as_ref().filter(|held| self.is_within(held, most))?;
        Some((held.keys.get(key_id)?, held.generation))
    }

    fn is_within(&self, held: &Held, most: Duration) -> bool {
        self.clock.now().since(held.fetched_at) < most
    }

    fn age(&self) -> Option<Duration> {
        self.held.load().as_ref().map(|held| self.clock.now().since(held.fetched_at))
    }
}
