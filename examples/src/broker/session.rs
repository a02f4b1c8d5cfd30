//! Sessions: who signed in, refresh tokens that are used once, and what has been revoked.

use std::time::Duration;

use moka::future::Cache;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::identity::Persona;
use super::keyfile::{KeyFileError, random_token};

const SESSIONS_MAX: u64 = 100_000;
const SESSION_LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);

/// The sessions of this broker, in bounded memory.
#[derive(Clone, Debug)]
pub(super) struct Sessions {
    /// By the digest of the refresh token, so that the token itself is kept nowhere.
    refresh: Cache<[u8; 32], (Uuid, Persona)>,
    revoked_sessions: Cache<Uuid, ()>,
    /// By subject: tokens issued before this second are no good.
    revoked_subjects: Cache<String, i64>,
}

impl Sessions {
    pub(super) fn new() -> Self {
        Self { refresh: bounded(), revoked_sessions: bounded(), revoked_subjects: bounded() }
    }

    /// A refresh token for a session.
    pub(super) async fn refresh_token(&self, sid: Uuid, persona: Persona) -> Result<String, KeyFileError> {
        let token = random_token()?;
        self.refresh.insert(digest(&token), (sid, persona)).await;
        Ok(token)
    }

    /// Uses a refresh token up; the session goes on under a new one.
    pub(super) async fn rotate(&self, token: &str) -> Option<(Uuid, Persona)> {
        let (sid, persona) = self.refresh.remove(&digest(token)).await?;
        (!self.revoked_sessions.contains_key(&sid)).then_some((sid, persona))
    }

    /// Ends one session.
    pub(super) async fn revoke_session(&self, sid: Uuid) {
        self.revoked_sessions.insert(sid, ()).await;
    }

    /// Ends every session of a subject that began before now.
    pub(super) async fn revoke_subject(&self, subject: &str, now: i64) {
        self.revoked_subjects.insert(subject.to_owned(), now).await;
    }

    /// Whether a token of this session and subject, issued at this second, is still good.
    pub(super) async fn is_good(&self, sid: Uuid, subject: &str, issued_at: i64) -> bool {
        let ended = self.revoked_sessions.contains_key(&sid);
        let before = self.revoked_subjects.get(subject).await;
        !ended && before.is_none_or(|before| issued_at > before)
    }
}

fn bounded<K, V>() -> Cache<K, V>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder().max_capacity(SESSIONS_MAX).time_to_live(SESSION_LIFETIME).build()
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}
