//! The keys of one issuer, fetched when they are needed and kept while they are good.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::TokenError;
use super::key::{KeyError, KeySet, VerifyKey};
use crate::clock::{Clock, Timestamp};

/// After this long keys are fetched again before they are used.
const FRESH_FOR: Duration = Duration::from_secs(5 * 60);
/// After this long keys are not used any more, whatever happens.
const GOOD_FOR: Duration = Duration::from_secs(60 * 60);
/// Between two fetches at least, from the end of the one to the beginning of the other.
const PAUSE: Duration = Duration::from_secs(2);
/// For who has a good key, the pause doubles with each refresh in a row that brought nothing, up to this.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// So long does who has a good key wait for newer ones.
const REFRESH_MAX: Duration = Duration::from_secs(1);
const UNKNOWN_MAX: usize = 64;
/// So long is an id that the newest set lacks not asked for again: an issuer may sign with a key a little before its set is everywhere.
const UNKNOWN_FOR: Duration = Duration::from_secs(30);

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
    fetched: Moment,
}

/// An instant by two clocks, of which nobody can set the second one back: a wall clock that is must not keep keys young.
#[derive(Clone, Copy)]
struct Moment {
    wall: Timestamp,
    steady: Instant,
}

impl Moment {
    fn now(clock: &Clock) -> Self {
        Self { wall: clock.now(), steady: Instant::now() }
    }

    fn age(&self, clock: &Clock) -> Duration {
        clock.now().since(self.wall).max(self.steady.elapsed())
    }
}

#[derive(Default)]
struct Fetching {
    /// When the last fetch ended.
    ended: Option<Moment>,
    /// The same of the last refresh: a fetch for who had a good key. What others ask for, with ids that nobody knows, puts off no
    /// refresh for longer than a pause.
    refreshed: Option<Moment>,
    /// Refreshes in a row that brought nothing.
    failures: u32,
    /// Ids that a set did not have, and when, newest last; spares the issuer from guesses.
    unknown: VecDeque<(String, Moment)>,
}

impl Fetching {
    /// Whether the pause is over. Who has a good key can wait longer: an issuer that hangs would cost one caller after the other.
    fn is_due(&self, clock: &Clock, has_good: bool) -> bool {
        let is_over = |ended: Option<Moment>, pause| ended.is_none_or(|ended| ended.age(clock) >= pause);
        let longer = PAUSE.saturating_mul(1 << self.failures.min(8)).min(PAUSE_MAX);
        is_over(self.ended, PAUSE) && (!has_good || is_over(self.refreshed, longer))
    }

    fn knows_to_be_unknown(&self, key_id: &str, clock: &Clock) -> bool {
        self.unknown.iter().any(|(unknown, at)| unknown == key_id && at.age(clock) < UNKNOWN_FOR)
    }

    fn note_unknown(&mut self, key_id: &str, clock: &Clock) {
        self.unknown.retain(|(unknown, _)| unknown != key_id);
        self.unknown.push_back((key_id.to_owned(), Moment::now(clock)));
        let surplus = self.unknown.len().saturating_sub(UNKNOWN_MAX);
        self.unknown.drain(..surplus);
    }
}

/// A fetch under way. It counts as failed until a set has come, and ends with the value: also when its caller goes away.
struct Attempt<'f> {
    fetching: &'f mut Fetching,
    clock: &'f Clock,
    is_refresh: bool,
}

impl<'f> Attempt<'f> {
    fn begin(fetching: &'f mut Fetching, clock: &'f Clock, is_refresh: bool) -> Self {
        fetching.failures = fetching.failures.saturating_add(u32::from(is_refresh));
        Self { fetching, clock, is_refresh }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let ended = Some(Moment::now(self.clock));
        self.fetching.ended = ended;
        if self.is_refresh {
            self.fetching.refreshed = ended;
        }
    }
}

/// The keys of one issuer. Fetches are single-flight and paced, and who has a good key waits a second for newer ones at most,
/// for which the runtime needs its timers.
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
        if is_fresh && fetching.knows_to_be_unknown(key_id, &self.clock) {
            return Err(TokenError::UnknownKey);
        }
        let has_good = self.held_key(key_id, GOOD_FOR).is_some();
        let may_fetch = fetching.is_due(&self.clock, has_good);
        let has_fetched = may_fetch && self.fetch(&mut fetching, has_good).await;
        if let Some(key) = self.held_key(key_id, GOOD_FOR) {
            return Ok(key);
        }
        if self.age().is_none_or(|age| age >= GOOD_FOR) {
            return Err(TokenError::KeysUnavailable);
        }
        // Only a set that was seen can lack a key: a source that did not answer proves nothing.
        if has_fetched {
            fetching.note_unknown(key_id, &self.clock);
        }
        Err(TokenError::UnknownKey)
    }

    /// Fetches now, and says whether a good set came. One that cannot be had or is bad leaves the held one in force, and is told:
    /// callers notice nothing until the held one is too old.
    async fn fetch(&self, fetching: &mut Fetching, has_good: bool) -> bool {
        let attempt = Attempt::begin(fetching, &self.clock, has_good);
        let fetched = if has_good {
            timeout(REFRESH_MAX, self.source.fetch()).await.unwrap_or(Err(KeySourceError("not in time")))
        } else {
            self.source.fetch().await
        };
        let text = match fetched {
            Ok(text) => text,
            Err(KeySourceError(reason)) => {
                crate::warn!("key_set.not_fetched", reason = reason);
                return false;
            }
        };
        let keys = match KeySet::from_jwks(&text) {
            Ok(keys) => keys,
            Err(KeyError(reason)) => {
                crate::error!("key_set.refused", reason = reason);
                return false;
            }
        };
        attempt.fetching.failures = 0;
        attempt.fetching.unknown.retain(|(unknown, _)| keys.get(unknown).is_none());
        let digest = Sha256::digest(text.as_bytes()).into();
        let known = self.held.load().as_ref().map(|held| (held.generation, held.digest == digest));
        let generation = known.map_or(0, |(generation, is_same)| generation + u64::from(!is_same));
        // Said once for each set, not at every look.
        if keys.skipped() > 0 && known.is_none_or(|(_, is_same)| !is_same) {
            crate::warn!("key_set.unknown_types_skipped", skipped = keys.skipped());
        }
        self.held.store(Some(Arc::new(Held { keys, digest, generation, fetched: Moment::now(&self.clock) })));
        true
    }

    fn held_key(&self, key_id: &str, most: Duration) -> Option<(Arc<VerifyKey>, u64)> {
        let held = self.held.load();
        let held = held.as_ref().filter(|held| self.is_within(held, most))?;
        Some((held.keys.get(key_id)?, held.generation))
    }

    fn is_within(&self, held: &Held, most: Duration) -> bool {
        held.fetched.age(&self.clock) < most
    }

    fn age(&self) -> Option<Duration> {
        self.held.load().as_ref().map(|held| held.fetched.age(&self.clock))
    }
}
