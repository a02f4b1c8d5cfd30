//! The broker's signing keys: one signs, the next is published before it does, the last is published until its tokens are over.
//!
//! Whoever asks for a key or for the set moves the chain on, so that there is no task to keep alive. A key that cannot be made
//! leaves the one that signs in force.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use pim_core::clock::Clock;
use pim_core::token::{KeySource, KeySourceError, Signer};
use serde_json::{Value, json};

use super::exchange::ACCESS_LIFETIME;
use super::keyfile::{self, KeyFileError};

/// How long a key is published before it signs: twice as long as verifiers keep a set without asking again.
pub(super) const PUBLISHED_AHEAD: Duration = Duration::from_secs(10 * 60);
/// How long a key is published after it has signed for the last time: the longest life of a token, and some skew.
pub(super) const PUBLISHED_AFTER: Duration = Duration::from_secs(ACCESS_LIFETIME.as_secs() + 60);
/// Least and longest time between two keys; no more than 30 are then published at once.
const ROTATION_MIN: Duration = Duration::from_secs(60);
const ROTATION_MAX: Duration = Duration::from_secs(90 * 24 * 3600);
/// Between two tries to make a key.
const RETRY: Duration = Duration::from_secs(60);

/// A chain that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeychainError {
    /// The keys cannot be read or made.
    #[error(transparent)]
    Files(#[from] KeyFileError),
    /// The setting is out of its bounds.
    #[error("key_rotation_secs must be between 60 and 7776000, not {0}")]
    Rotation(u64),
}

/// One key, and when it was made, in seconds since the epoch.
#[derive(Clone, Debug)]
struct Link {
    made_at: i64,
    signer: Arc<Signer>,
}

#[derive(Debug, Default)]
struct Chain {
    /// Oldest first; never empty.
    links: Vec<Link>,
    /// No key is made before this, because making one failed.
    retry_at: i64,
}

/// Keys that take turns. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Keychain(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    data_dir: PathBuf,
    rotation: i64,
    clock: Clock,
    chain: Mutex<Chain>,
}

impl Keychain {
    /// Reads the keys of a data directory, or makes the first one.
    pub(super) fn open(data_dir: PathBuf, rotation: Duration, clock: Clock) -> Result<Self, KeychainError> {
        if !(ROTATION_MIN..=ROTATION_MAX).contains(&rotation) {
            return Err(KeychainError::Rotation(rotation.as_secs()));
        }
        let mut links: Vec<Link> = keyfile::signers(&data_dir)?
            .into_iter()
            .map(|(made_at, signer)| Link { made_at, signer: Arc::new(signer) })
            .collect();
        if links.is_empty() {
            let made_at = seconds(&clock);
            links.push(Link { made_at, signer: Arc::new(keyfile::make_signer(&data_dir, made_at)?) });
        }
        links.sort_by_key(|link| link.made_at);
        let chain = Mutex::new(Chain { links, retry_at: 0 });
        Ok(Self(Arc::new(Inner { data_dir, rotation: whole(rotation), clock, chain })))
    }

    /// The key that signs now.
    pub(super) fn signer(&self) -> Arc<Signer> {
        let now = seconds(&self.0.clock);
        let chain = self.moved_on(now);
        let signing = chain.signing(now);
        Arc::clone(&chain.links[signing].signer)
    }

    /// The set that verifiers are told.
    pub(super) fn jwks(&self) -> Value {
        let chain = self.moved_on(seconds(&self.0.clock));
        json!({"keys": chain.links.iter().map(|link| link.signer.jwk()).collect::<Vec<_>>()})
    }

    /// Makes the next key when the newest is old, and forgets those whose tokens are over.
    fn moved_on(&self, now: i64) -> std::sync::MutexGuard<'_, Chain> {
        let mut chain = self.0.chain.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = chain.links.last().map_or(i64::MIN, |link| link.made_at);
        if now.saturating_sub(newest) >= self.0.rotation && now >= chain.retry_at {
            match keyfile::make_signer(&self.0.data_dir, now) {
                Ok(signer) => {
                    chain.links.push(Link { made_at: now, signer: Arc::new(signer) });
                    pim_core::info!("broker.key_made", keys = chain.links.len());
                }
                Err(_) => {
                    chain.retry_at = now + whole(RETRY);
                    pim_core::error!("broker.key_not_made", keys = chain.links.len());
                }
            }
        }
        while chain.links.get(1).is_some_and(|next| next.made_at + whole(PUBLISHED_AHEAD + PUBLISHED_AFTER) <= now) {
            let over = chain.links.remove(0);
            keyfile::remove_signer(&self.0.data_dir, over.made_at);
            pim_core::info!("broker.key_retired", keys = chain.links.len());
        }
        chain
    }
}

impl Chain {
    /// The newest key that has been published for long enough; the oldest, when none has.
    fn signing(&self, now: i64) -> usize {
        self.links.iter().rposition(|link| link.made_at + whole(PUBLISHED_AHEAD) <= now).unwrap_or(0)
    }
}

/// The broker's own tokens come back to it.
#[async_trait]
impl KeySource for Keychain {
    async fn fetch(&self) -> Result<String, KeySourceError> {
        Ok(self.jwks().to_string())
    }
}

fn seconds(clock: &Clock) -> i64 {
    clock.now().as_micros() / 1_000_000
}

fn whole(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
