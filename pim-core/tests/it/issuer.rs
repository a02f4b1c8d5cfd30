//! An issuer whose tokens can be bent, and a key source that counts.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pim_core::clock::{Clock, Timestamp};
use pim_core::token::{KeyRing, KeySource, KeySourceError, Signer, TokenVerifier, VerifierSettings};
use serde_json::{Value, json};

/// Seconds since the epoch at which every manual clock here starts.
pub(crate) const NOW: i64 = 1_800_000_000;
pub(crate) const ISSUER: &str = "https://issuer.test";
pub(crate) const AUDIENCE: &str = "urn:test";

pub(crate) struct Issuer {
    pair: EcdsaKeyPair,
    pub(crate) signer: Signer,
    pub(crate) public: Vec<u8>,
}

impl Issuer {
    pub(crate) fn new() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).unwrap();
        let public = pair.public_key().as_ref().to_vec();
        let signer = Signer::es256(pkcs8.as_ref(), &public).unwrap();
        Self { pair, signer, public }
    }

    pub(crate) fn jwks(&self) -> String {
        json!({"keys": [self.signer.jwk()]}).to_string()
    }

    pub(crate) fn header(&self) -> Value {
        json!({"alg": "ES256", "typ": "at+jwt", "kid": self.signer.key_id()})
    }

    /// Signs whatever it is given.
    pub(crate) fn raw(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    pub(crate) fn token(&self, header: &Value, claims: &Value) -> String {
        self.raw(&header.to_string(), &claims.to_string())
    }

    pub(crate) fn good(&self) -> String {
        self.token(&self.header(), &claims())
    }
}

pub(crate) fn claims() -> Value {
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "u-1", "jti": "t-1", "iat": NOW, "exp": NOW + 300})
}

/// An object with one member set, or removed by null.
pub(crate) fn with(object: Value, member: &str, value: Value) -> Value {
    let mut object = object;
    let members = object.as_object_mut().unwrap();
    if value.is_null() {
        members.remove(member);
    } else {
        members.insert(member.to_owned(), value);
    }
    object
}

/// Gives out what it is told to, and counts.
#[derive(Clone)]
pub(crate) struct Source(Arc<(Mutex<Option<String>>, AtomicU32)>);

impl Source {
    pub(crate) fn of(text: impl Into<String>) -> Self {
        Self(Arc::new((Mutex::new(Some(text.into())), AtomicU32::new(0))))
    }

    pub(crate) fn set(&self, text: Option<String>) {
        *self.0.0.lock().unwrap() = text;
    }

    pub(crate) fn fetches(&self) -> u32 {
        self.0.1.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl KeySource for Source {
    async fn fetch(&self) -> Result<String, KeySourceError> {
        self.0.1.fetch_add(1, Ordering::SeqCst);
        // Long enough for callers to pile up behind it.
        tokio::task::yield_now().await;
        self.0.0.lock().unwrap().clone().ok_or(KeySourceError("not now"))
    }
}

pub(crate) fn clock() -> Clock {
    Clock::manual(Timestamp::from_micros(NOW * 1_000_000))
}

pub(crate) fn verifier(source: &Source, clock: &Clock) -> TokenVerifier {
    let ring = KeyRing::new(source.clone(), clock.clone());
    TokenVerifier::new(VerifierSettings::access_token(ISSUER, AUDIENCE), ring, clock.clone())
}
