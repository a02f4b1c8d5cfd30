//! Tokens for trying it out. A real service has an identity provider, and a `KeySource` that fetches its keys.

use std::error::Error;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use pim_core::clock::Clock;
use pim_core::context::SessionContext;
use pim_core::id::Id;
use pim_core::identity::ActorVerifier;
use pim_core::role::ClosedEnum as _;
use pim_core::token::{KeyRing, Signer, TokenVerifier, VerifierSettings};
use serde_json::json;
use uuid::Uuid;

use crate::loan::{Member, Role};

const ISSUER: &str = "urn:lending:sign-in";
const AUDIENCE: &str = "urn:lending";

/// Signs for whoever asks.
#[derive(Debug)]
pub struct SignIn(Signer);

impl SignIn {
    /// With a key of its own, which nobody keeps.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new() -> Result<Self, Box<dyn Error + Send + Sync>> {
        let secret = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, secret.as_ref())?;
        Ok(Self(Signer::es256(secret.as_ref(), pair.public_key().as_ref())?))
    }

    /// Believes what was signed here.
    #[must_use]
    pub fn verifier(&self) -> ActorVerifier {
        let keys = KeyRing::new(json!({"keys": [self.0.jwk()]}).to_string(), Clock::system());
        let settings = VerifierSettings::transaction_token(ISSUER, AUDIENCE);
        ActorVerifier::new::<Role>(TokenVerifier::new(settings, keys, Clock::system()))
    }

    /// A token of one minute; a reader's names the record that is its own.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn token(
        &self,
        subject: &str,
        role: Role,
        own: Option<Id<Member>>,
    ) -> Result<String, Box<dyn Error + Send + Sync>> {
        let session = SessionContext {
            role: role.name().to_owned(),
            persona: None,
            facilities: Vec::new(),
            patient: own.map(Id::uuid),
            sid: Uuid::new_v4(),
            policy_version: 1,
        };
        let now = Clock::system().now().as_micros() / 1_000_000;
        let claims = json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": subject, "txn": Uuid::new_v4(), "iat": now, "exp": now + 60,
            "tctx": session,
        });
        Ok(self.0.sign("txntoken+jwt", &claims)?)
    }
}
