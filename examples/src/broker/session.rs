//! Sessions: who signed in, refresh tokens that are used once, and what has been revoked.

use std::time::Duration;

use moka::future::Cache;
use moka::policy::EvictionPolicy;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::exchange::ACCESS_LIFETIME;
use super::identity::Persona;
use super::keyfile::{KeyFileError, random_token};

const SESSIONS_MAX: u64 = 100_000;
/// How long a refresh token waits to be used.
const REFRESH_LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);
/// Longer than any token that was made before, or while, its session was revoked.
const REVOKED_FOR: Duration = REFRESH_LIFETIME.saturating_add(ACCESS_LIFETIME);

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
    /// By the digest of the refresh token, so that the token itself is kept nowhere.
    refresh: Cache<[u8; 32], Session>,
    revoked_sessions: Cache<Uuid, ()>,
    /// By subject: sessions that began in this second or before are no good.
    revoked_subjects: Cache<String, i64>,
}

impl Sessions {
    pub(super) fn new() -> Self {
        Self::with_room(SESSIONS_MAX)
    }

    fn with_room(entries_max: u64) -> Self {
        Self {
            refresh: bounded(entries_max, REFRESH_LIFETIME),
            revoked_sessions: bounded(entries_max, REVOKED_FOR),
            revoked_subjects: bounded(entries_max, REVOKED_FOR),
        }
    }

    /// A refresh token for a session.
    pub(super) async fn refresh_token(&self, session: Session) -> Result<String, KeyFileError> {
        let token = random_token()?;
        self.refresh.insert(digest(&token), session).await;
        Ok(token)
    }

    /// Uses a refresh token up; the session goes on under a new one, if it is still good.
    pub(super) async fn redeem(&self, token: &str) -> Option<Session> {
        self.refresh.remove(&digest(token)).await
    }

    /// Ends one session.
    pub(super) async fn revoke_session(&self, sid: Uuid) {
        self.revoked_sessions.insert(sid, ()).await;
    }

    /// Ends every session of a subject that began in this second or before.
    pub(super) async fn revoke_subject(&self, subject: &str, now: i64) {
        self.revoked_subjects.insert(subject.to_owned(), now).await;
    }

    /// Whether this session of a subject, which began in this second, is still good.
    pub(super) async fn is_good(&self, sid: Uuid, subject: &str, began_at: i64) -> bool {
        let ended = self.revoked_sessions.get(&sid).await.is_some();
        let before = self.revoked_subjects.get(subject).await;
        !ended && before.is_none_or(|before| began_at > before)
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

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guard: where there is room for few, the newest revocation is kept, not the first one.
    #[tokio::test]
    async fn the_newest_revocation_holds_where_many_came_before() {
        let sessions = Sessions::with_room(4);
        for _ in 0..50 {
            sessions.revoke_session(Uuid::new_v4()).await;
            sessions.revoke_subject(&Uuid::new_v4().to_string(), 7).await;
        }
        let ended = Uuid::new_v4();
        sessions.revoke_session(ended).await;
        sessions.revoke_subject("somebody", 7).await;
        sessions.revoked_sessions.run_pending_tasks().await;
        sessions.revoked_subjects.run_pending_tasks().await;
        assert!(!sessions.is_good(ended, "another", 8).await, "the session");
        assert!(!sessions.is_good(Uuid::new_v4(), "somebody", 7).await, "the subject");
        assert!(sessions.is_good(Uuid::new_v4(), "somebody", 8).await, "what began afterwards");
    }
}
