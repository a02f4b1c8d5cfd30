//! Sessions: who signed in, refresh tokens that are used once, and what has been revoked.

use std::path::Path;
use std::time::Duration;

use moka::future::Cache;
use moka::policy::EvictionPolicy;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::exchange::ACCESS_LIFETIME;
use super::identity::Persona;
use super::keyfile::KeyFileError;
use super::once::{Once, Shown};
use super::revocation::{Ended, REVOKED_MAX, RevocationError, Revocations};

const SESSIONS_MAX: u64 = 100_000;
/// How long a refresh token waits to be used.
const REFRESH_LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);
/// Longer than any token that was made before, or while, its session was revoked.
pub(super) const REVOKED_FOR: Duration = REFRESH_LIFETIME.saturating_add(ACCESS_LIFETIME);

/// Somebody's session, from the sign-in on and through every refresh.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) sid: Uuid,
    pub(super) persona: Persona,
    /// The second of the sign-in, which no refresh moves.
    pub(super) began_at: i64,
}

impl Session {
    /// Begins one.
    pub(super) fn begin(persona: Persona, now: i64) -> Self {
        Self { sid: Uuid::new_v4(), persona, began_at: now }
    }
}

/// The sessions of this broker, in bounded memory.
#[derive(Clone, Debug)]
pub(super) struct Sessions {
    refresh: Once<Session>,
    revoked: Revocations,
}

impl Sessions {
    /// None yet, of a data directory that says which of earlier ones have ended.
    pub(super) fn open(data_dir: &Path, now: i64) -> Result<Self, RevocationError> {
        let revoked = Revocations::open(data_dir, now, REVOKED_MAX)?;
        Ok(Self { refresh: Once::of(SESSIONS_MAX, REFRESH_LIFETIME), revoked })
    }

    /// A refresh token for a session.
    pub(super) async fn refresh_token(&self, session: Session) -> Result<String, KeyFileError> {
        self.refresh.issue(session.sid, session).await
    }

    /// Uses a refresh token up; the session goes on under a new one, if it is still good.
    pub(super) async fn redeem(&self, token: &str) -> Shown<Session> {
        self.refresh.take(token).await
    }

    /// See [`Once::forget`].
    pub(super) async fn forget(&self, token: &str) {
        self.refresh.forget(token).await;
    }

    /// Ends one session, or every one of a subject that began in this second or before; or, at once, both.
    pub(super) async fn revoke(&self, ended: &[Ended], now: i64) -> Result<(), RevocationError> {
        self.revoked.end(ended, now).await
    }

    /// Whether this session of a subject, which began in this second, is still good.
    pub(super) async fn is_good(&self, sid: Uuid, subject: &str, began_at: i64) -> Result<bool, RevocationError> {
        Ok(!self.revoked.have_ended(sid, subject, began_at).await?)
    }

    /// Looks what has been revoked by now. For whoever must not fail later on.
    pub(super) async fn follow(&self) -> Result<(), RevocationError> {
        self.revoked.follow().await
    }

    /// Whether a session was still good at the last look.
    pub(super) async fn was_good(&self, session: &Session) -> bool {
        !self.revoked.were_heard_to_end(session.sid, &session.persona.subject, session.began_at).await
    }
}

/// Room for so many, each for so long.
pub(super) fn bounded<K, V>(entries_max: u64, lifetime: Duration) -> Cache<K, V>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    // What came last counts: by frequency, a full cache refuses it, and what has been acknowledged would be lost.
    let bounded = Cache::builder().max_capacity(entries_max).time_to_live(lifetime);
    bounded.eviction_policy(EvictionPolicy::lru()).build()
}

/// Stands for a text that is kept nowhere.
pub(super) fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}
