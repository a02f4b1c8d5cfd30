//! The broker's public keys, fetched over HTTP within bounds, and the gate that trusts them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::Uri;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use pim_core::clock::Clock;
use pim_core::token::{KeyRing, KeySource, KeySourceError, TokenVerifier, VerifierSettings};

use super::SessionGate;

/// Who issues transaction tokens, as their `iss`; independent of where the broker listens.
pub const TXN_ISSUER: &str = "urn:pim:session-broker";
/// Whom transaction tokens are for, as their `aud`: every service of the lab.
pub const TRUST_DOMAIN: &str = "urn:pim:lab";

const FETCH_TIMEOUT: Duration = Duration::from_secs(2);
const BYTES_MAX: usize = 64 * 1024;

/// Fetches a key set with one bounded GET.
pub struct HttpKeys {
    client: Client<HttpConnector, Empty<Bytes>>,
    address: Uri,
}

impl std::fmt::Debug for HttpKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpKeys").field("address", &self.address).finish_non_exhaustive()
    }
}

impl HttpKeys {
    /// A source at an address such as `http://127.0.0.1:8081/jwks.json`.
    #[must_use]
    pub fn at(address: Uri) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), address }
    }

    async fn get(&self) -> Result<String, KeySourceError> {
        let answer = self.client.get(self.address.clone()).await;
        let answer = answer.map_err(|_| KeySourceError("the broker does not answer"))?;
        if !answer.status().is_success() {
            return Err(KeySourceError("the broker refuses"));
        }
        let body = Limited::new(answer.into_body(), BYTES_MAX).collect().await;
        let body = body.map_err(|_| KeySourceError("the key set broke off or is too large"))?;
        String::from_utf8(body.to_bytes().into()).map_err(|_| KeySourceError("the key set is no text"))
    }
}

#[async_trait]
impl KeySource for HttpKeys {
    async fn fetch(&self) -> Result<String, KeySourceError> {
        let got = tokio::time::timeout(FETCH_TIMEOUT, self.get()).await;
        got.unwrap_or(Err(KeySourceError("the broker does not answer in time")))
    }
}

impl SessionGate {
    /// A gate that trusts the transaction tokens of the lab's broker, by the keys of a source.
    #[must_use]
    pub fn trusting(keys: impl KeySource, clock: Clock) -> Self {
        let settings = VerifierSettings::transaction_token(TXN_ISSUER, TRUST_DOMAIN);
        let ring = KeyRing::new(keys, clock.clone());
        Self::new(Arc::new(TokenVerifier::new(settings, ring, clock)))
    }
}
