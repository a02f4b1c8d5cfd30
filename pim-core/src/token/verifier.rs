//! Checking tokens of one issuer for one audience.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::cache::Cache;
use super::parse::{self, Parsed};
use super::ring::KeyRing;
use super::{TokenError, VerifiedToken};
use crate::clock::Clock;

const SKEW_MAX: Duration = Duration::from_secs(30);

/// Which tokens are accepted.
#[derive(Clone, Debug)]
pub struct VerifierSettings {
    /// Who must have issued them.
    pub issuer: String,
    /// Whom they must be for.
    pub audience: String,
    /// Their media type, without `application/`: `at+jwt` (RFC 9068) or `txntoken+jwt`.
    pub typ: &'static str,
    /// The claim that is a token's own id: `jti`, or `txn`.
    pub id_claim: &'static str,
    /// Longest time between issue and end.
    pub lifetime_max: Duration,
    /// How far clocks may differ; at most 30 seconds.
    pub skew: Duration,
}

impl VerifierSettings {
    /// Access tokens: `at+jwt`, at most 15 minutes.
    #[must_use]
    pub fn access_token(issuer: impl Into<String>, audience: impl Into<String>) -> Self {
        Self {
            issuer: issuer.into(),
            audience: audience.into(),
            typ: "at+jwt",
            id_claim: "jti",
            lifetime_max: Duration::from_secs(15 * 60),
            skew: SKEW_MAX,
        }
    }

    /// Transaction tokens: `txntoken+jwt`, at most one minute.
    #[must_use]
    pub fn transaction_token(issuer: impl Into<String>, audience: impl Into<String>) -> Self {
        Self {
            typ: "txntoken+jwt",
            id_claim: "txn",
            lifetime_max: Duration::from_secs(60),
            ..Self::access_token(issuer, audience)
        }
    }
}

/// Checks tokens of one issuer for one audience. What it has verified it remembers, until the token ends or keys change.
pub struct TokenVerifier {
    settings: VerifierSettings,
    ring: KeyRing,
    clock: Clock,
    cache: Cache,
}

impl std::fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenVerifier").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl TokenVerifier {
    /// A verifier over the keys of an issuer.
    #[must_use]
    pub fn new(mut settings: VerifierSettings, ring: KeyRing, clock: Clock) -> Self {
        settings.skew = settings.skew.min(SKEW_MAX);
        Self { settings, ring, clock, cache: Cache::new() }
    }

    /// Checks a token.
    ///
    /// # Errors
    /// [`TokenError`] by cause.
    pub async fn verify(&self, token: &str) -> Result<Arc<VerifiedToken>, TokenError> {
        let digest = Cache::digest(token);
        let generation = self.ring.generation();
        if let Some(known) = generation.and_then(|generation| self.cache.get(&digest, generation)) {
            self.check_time(known.issued_at, known.expires_at, &known.claims)?;
            return Ok(known);
        }
        let parsed = parse::parse(token, self.settings.typ)?;
        // The issuer decides whose keys count, so it is looked at before the key is: the key's id is (iss, kid).
        if text(&parsed.claims, "iss")? != self.settings.issuer {
            return Err(TokenError::Claim("iss"));
        }
        let (key, generation) = self.ring.key(&parsed.key_id).await?;
        if !key.is_of(&parsed.algorithm) {
            return Err(TokenError::UnknownKey);
        }
        let message = parsed.message.as_bytes();
        let holds = jsonwebtoken::crypto::verify(parsed.signature, message, &key.decoding, key.algorithm);
        if !holds.unwrap_or(false) {
            return Err(TokenError::Signature);
        }
        let verified = Arc::new(self.check_claims(parsed)?);
        // Under the generation of the key that was used: the set may have changed since.
        self.cache.put(digest, generation, Arc::clone(&verified));
        Ok(verified)
    }

    fn check_claims(&self, parsed: Parsed<'_>) -> Result<VerifiedToken, TokenError> {
        let claims = parsed.claims;
        let for_us = match claims.get("aud") {
            Some(Value::String(one)) => *one == self.settings.audience,
            Some(Value::Array(many)) => many.iter().any(|one| *one == *self.settings.audience),
            _ => false,
        };
        if !for_us {
            return Err(TokenError::Claim("aud"));
        }
        let (issued_at, expires_at) = (number(&claims, "iat")?, number(&claims, "exp")?);
        self.check_time(issued_at, expires_at, &claims)?;
        Ok(VerifiedToken {
            issuer: self.settings.issuer.clone(),
            subject: text(&claims, "sub")?.to_owned(),
            id: text(&claims, self.settings.id_claim)?.to_owned(),
            issued_at,
            expires_at,
            claims,
        })
    }

    fn check_time(&self, issued_at: i64, expires_at: i64, claims: &Map<String, Value>) -> Result<(), TokenError> {
        let now = self.clock.now().as_micros() / 1_000_000;
        let skew = seconds(self.settings.skew);
        if expires_at.saturating_sub(issued_at) > seconds(self.settings.lifetime_max) || expires_at <= issued_at {
            return Err(TokenError::Time("valid for too long"));
        }
        if now >= expires_at.saturating_add(skew) {
            return Err(TokenError::Time("expired"));
        }
        if issued_at > now.saturating_add(skew) {
            return Err(TokenError::Time("issued in the future"));
        }
        match claims.get("nbf") {
            None => Ok(()),
            Some(from) => match from.as_i64() {
                Some(from) if from <= now.saturating_add(skew) => Ok(()),
                Some(_) => Err(TokenError::Time("not valid yet")),
                None => Err(TokenError::Claim("nbf")),
            },
        }
    }
}

fn text<'c>(claims: &'c Map<String, Value>, name: &'static str) -> Result<&'c str, TokenError> {
    let text = claims.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    text.ok_or(TokenError::Claim(name))
}

fn number(claims: &Map<String, Value>, name: &'static str) -> Result<i64, TokenError> {
    claims.get(name).and_then(Value::as_i64).ok_or(TokenError::Claim(name))
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
