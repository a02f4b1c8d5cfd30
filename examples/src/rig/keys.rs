//! The broker's public keys, fetched over HTTP within bounds.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::Uri;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use pim_core::token::{KeySource, KeySourceError};

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
