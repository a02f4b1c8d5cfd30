//! Authorization codes with PKCE (RFC 7636, S256 alone): single use, short-lived, bounded in number.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use super::keyfile::KeyFileError;
use super::once::{Once, Shown};
use super::session::Session;

const CODES_MAX: u64 = 1024;
const CODE_LIFETIME: Duration = Duration::from_secs(60);

/// What a code stands for.
#[derive(Clone, Debug)]
struct Grant {
    challenge: String,
    client_id: String,
    redirect_uri: String,
    /// It began with the sign-in, so that a revocation meanwhile ends it.
    session: Session,
}

/// The codes that have been handed out.
#[derive(Clone, Debug)]
pub(super) struct Codes(Once<Grant>);

impl Codes {
    pub(super) fn new() -> Self {
        Self(Once::of(CODES_MAX, CODE_LIFETIME))
    }

    /// Hands out a code.
    pub(super) async fn issue(
        &self,
        challenge: &str,
        client_id: &str,
        redirect_uri: &str,
        session: Session,
    ) -> Result<String, KeyFileError> {
        let grant = Grant {
            challenge: challenge.to_owned(),
            client_id: client_id.to_owned(),
            redirect_uri: redirect_uri.to_owned(),
            session,
        };
        self.0.issue(grant.session.sid, grant).await
    }

    /// See [`Once::forget`].
    pub(super) async fn forget(&self, code: &str) {
        self.0.forget(code).await;
    }

    /// Uses a code up. It is gone even when the verifier does not fit.
    pub(super) async fn redeem(
        &self,
        code: &str,
        verifier: &str,
        client_id: &str,
        redirect_uri: &str,
    ) -> Shown<Session> {
        let grant = match self.0.take(code).await {
            Shown::Good(grant) => grant,
            Shown::Again(sid) => return Shown::Again(sid),
            Shown::Unknown => return Shown::Unknown,
        };
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
        let fits = challenge == grant.challenge && client_id == grant.client_id && redirect_uri == grant.redirect_uri;
        if fits { Shown::Good(grant.session) } else { Shown::Unknown }
    }
}

#[cfg(test)]
mod tests {
    use super::super::identity::PersonaDirectory;
    use super::*;

    const VERIFIER: &str = "a-verifier-of-forty-three-characters-or-more";

    /// Guard: where there is no room left, the oldest code goes, not the newest.
    #[tokio::test]
    async fn the_newest_code_is_good_where_many_came_before() {
        let codes = Codes::new();
        let session = Session::begin(PersonaDirectory::of(std::path::Path::new("none")).of_role("clinician"), 7);
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER));
        let mut last = String::new();
        for _ in 0..CODES_MAX + 76 {
            last = codes.issue(&challenge, "c", "http://127.0.0.1:9", session.clone()).await.expect("random");
        }
        assert!(codes.0.waiting().await <= CODES_MAX);
        assert!(matches!(codes.redeem(&last, VERIFIER, "c", "http://127.0.0.1:9").await, Shown::Good(_)));
    }
}
