//! Tokens: persona tokens for people, transaction tokens for the services behind the gateway.

use std::str::FromStr as _;
use std::time::Duration;

use pim_core::clock::Clock;
use pim_core::context::SessionContext;
use pim_core::identity::Subject;
use pim_core::problem::{self, Problem};
use pim_core::role::ClosedEnum as _;
use pim_core::token::VerifiedToken;
use serde_json::{Value, json};
use uuid::Uuid;

use super::GATEWAY_AUDIENCE;
use super::identity::Persona;
use super::keychain::Keychain;
use super::session::{Session, Sessions};
use crate::policy::{LabRole, POLICY_VERSION};
use crate::rig::{Failure, TRUST_DOMAIN, TXN_ISSUER};

/// Life of an access token.
pub(super) const ACCESS_LIFETIME: Duration = Duration::from_secs(15 * 60);
/// Life of a transaction token.
const TRANSACTION_LIFETIME: Duration = Duration::from_secs(60);

/// Issues tokens.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) url: String,
    pub(super) keys: Keychain,
    pub(super) clock: Clock,
}

impl Issuer {
    pub(super) fn now(&self) -> i64 {
        self.clock.now().as_micros() / 1_000_000
    }

    /// An access token (RFC 9068) for a session.
    pub(super) fn access_token(&self, session: &Session) -> Result<String, Failure> {
        let persona = &session.persona;
        check_persona(persona)?;
        let now = self.now();
        let claims = json!({
            "iss": self.url, "aud": GATEWAY_AUDIENCE, "sub": persona.subject, "client_id": "pim-lab",
            "jti": Uuid::now_v7(), "iat": now, "exp": now + seconds(ACCESS_LIFETIME),
            "auth_time": session.began_at, "tctx": context_of(persona, session.sid),
        });
        self.sign("at+jwt", &claims)
    }

    /// A transaction token from a verified access token, when its session is still good.
    pub(super) async fn transaction_token(
        &self,
        access: &VerifiedToken,
        sessions: &Sessions,
    ) -> Result<(String, i64), Failure> {
        let context = access.claims.get("tctx").cloned().unwrap_or(Value::Null);
        let context: SessionContext =
            serde_json::from_value(context).map_err(|_| Problem::of(problem::TOKEN_CLAIMS))?;
        // By the sign-in, not by the token: one that was made in the moment of a revocation looks newer than that.
        let began_at = access.claims.get("auth_time").and_then(Value::as_i64).unwrap_or(access.issued_at);
        if !sessions.is_good(context.sid, &access.subject, began_at).await? {
            return Err(Problem::of(problem::UNAUTHENTICATED).detail("the session has been revoked").into());
        }
        let now = self.now();
        // Never longer than the token that it stands for.
        let expires_at = (now + seconds(TRANSACTION_LIFETIME)).min(access.expires_at);
        let claims = json!({
            "iss": TXN_ISSUER, "aud": TRUST_DOMAIN, "sub": access.subject, "txn": Uuid::now_v7(),
            "iat": now, "exp": expires_at, "scope": context.role, "tctx": context,
        });
        Ok((self.sign("txntoken+jwt", &claims)?, expires_at))
    }

    fn sign(&self, typ: &str, claims: &Value) -> Result<String, Failure> {
        self.keys.signer().sign(typ, claims).map_err(|_| Problem::of(problem::INTERNAL).into())
    }
}

fn context_of(persona: &Persona, sid: Uuid) -> SessionContext {
    SessionContext {
        role: persona.role.clone(),
        persona: Some(persona.role.clone()),
        facilities: persona.facilities.clone(),
        patient: persona.patient,
        sid,
        policy_version: POLICY_VERSION,
    }
}

/// A persona that people may be: a known role other than that of our own programs, an identity within bounds.
pub(super) fn check_persona(persona: &Persona) -> Result<(), Failure> {
    let role = LabRole::from_name(&persona.role).filter(|role| *role != LabRole::Service);
    if role.is_none() {
        let roles = ["patient", "clinician", "admin", "sre"];
        return Err(Problem::of(problem::INVALID_BODY).detail("unknown role").with("roles", roles.as_slice()).into());
    }
    let fits =
        Subject::from_str(&persona.subject).is_ok() && persona.facilities.len() <= pim_core::identity::FACILITIES_MAX;
    if fits { Ok(()) } else { Err(Problem::of(problem::INVALID_BODY).detail("the identity is out of bounds").into()) }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use pim_core::clock::Timestamp;
    use pim_core::token::{KeyRing, TokenVerifier, VerifierSettings};

    use super::super::GATEWAY_AUDIENCE;
    use super::super::identity::PersonaDirectory;
    use super::super::revocation::Ended;
    use super::*;

    #[tokio::test]
    async fn a_token_that_was_made_while_its_subject_was_revoked_is_no_good() {
        let folder = std::env::temp_dir().join(format!("pim-exchange-{}", Uuid::new_v4()));
        let clock = Clock::manual(Timestamp::from_micros(1_800_000_000_000_000));
        let keys = Keychain::open(folder.clone(), Duration::from_secs(24 * 3600), clock.clone()).expect("opens");
        let ring = KeyRing::new(keys.clone(), clock.clone());
        let accepted = VerifierSettings::access_token("urn:broker", GATEWAY_AUDIENCE);
        let verifier = TokenVerifier::new(accepted, ring, clock.clone());
        let issuer = Issuer { url: "urn:broker".to_owned(), keys, clock: clock.clone() };
        let now = issuer.now();
        let sessions = Sessions::open(&folder, now).expect("opens");
        let session = Session::begin(PersonaDirectory::of(&folder).of_role("clinician"), now);
        clock.advance(Duration::from_secs(2));
        let refreshed = verifier.verify(&issuer.access_token(&session).expect("issues")).await.expect("verifies");
        assert!(issuer.transaction_token(&refreshed, &sessions).await.is_ok());
        // Whoever revokes read the clock before the token was made, and is heard after it.
        sessions.revoke(&[Ended::subject(&session.persona.subject)], now + 1).await.expect("is kept");
        assert!(issuer.transaction_token(&refreshed, &sessions).await.is_err());
        let _leftover = std::fs::remove_dir_all(folder);
    }
}
