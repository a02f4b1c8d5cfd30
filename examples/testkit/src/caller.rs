//! A caller that remembers every acknowledgement, to hold the system to it afterwards.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use pim_lab::client::Client;
use pim_lab::rig::CONSISTENCY_HEADER;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(10);

/// Somebody with a token.
#[derive(Clone, Debug)]
pub struct Caller {
    client: Client,
    gateway: String,
    token: String,
    /// The facility of affiliation, if any.
    pub facility: String,
    /// The provider behind the persona, if any.
    pub provider: String,
    /// The persona's own record, if any.
    pub patient: String,
}

static KEYS: AtomicU64 = AtomicU64::new(0);

/// An idempotency key that nobody has used.
#[must_use]
pub fn fresh_key() -> String {
    format!("test-{}-{}", std::process::id(), KEYS.fetch_add(1, Ordering::Relaxed))
}

impl Caller {
    /// Signs a persona of a role in.
    ///
    /// # Errors
    /// When the gateway does not answer or refuses.
    pub async fn sign_in(gateway: &str, role: &str) -> Result<Self> {
        let client = Client::new();
        let url = format!("{gateway}/v1/dev/token");
        let told = client.post_json(&url, &json!({"role": role}), PATIENCE).await.context("sign in")?;
        let text = |member: &str| told[member].as_str().unwrap_or_default().to_owned();
        let (token, facility, provider) = (text("access_token"), text("facility_id"), text("provider_id"));
        let patient = text("patient_id");
        ensure!(!token.is_empty(), "no token for {role}");
        Ok(Self { client, gateway: gateway.to_owned(), token, facility, provider, patient })
    }

    /// The access token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    fn headers(&self) -> Result<HeaderMap> {
        Ok(HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {}", self.token))?)]))
    }

    /// A write under an idempotency key.
    ///
    /// # Errors
    /// When no whole answer comes: whether the write happened is then unknown.
    pub async fn write(
        &self,
        method: Method,
        path: &str,
        key: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value)> {
        let (status, _, told) = self.write_telling(method, path, key, body).await?;
        Ok((status, told))
    }

    async fn write_telling(
        &self,
        method: Method,
        path: &str,
        key: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, HeaderMap, Value)> {
        let mut headers = self.headers()?;
        headers.insert("idempotency-key", HeaderValue::from_str(key)?);
        let url = format!("{}{path}", self.gateway);
        let (status, told, bytes) = self.client.exchange(method, &url, headers, body, PATIENCE).await?;
        Ok((status, told, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    /// POST under a fresh idempotency key: the body, and the token that says what was written.
    ///
    /// # Errors
    /// When no whole answer comes, or none of success with a token.
    pub async fn post_for_token(&self, path: &str, body: &Value) -> Result<(Value, String)> {
        let (status, headers, told) = self.write_telling(Method::POST, path, &fresh_key(), Some(body)).await?;
        ensure!(status.is_success(), "{status}: {told:#}");
        let token = headers.get(CONSISTENCY_HEADER).context("no token")?;
        Ok((told, token.to_str()?.to_owned()))
    }

    /// POST under an idempotency key.
    ///
    /// # Errors
    /// When no whole answer comes.
    pub async fn post(&self, path: &str, key: &str, body: &Value) -> Result<(StatusCode, Value)> {
        self.write(Method::POST, path, key, Some(body)).await
    }

    /// PUT under a fresh idempotency key.
    ///
    /// # Errors
    /// When no whole answer comes.
    pub async fn put(&self, path: &str, body: &Value) -> Result<(StatusCode, Value)> {
        self.write(Method::PUT, path, &fresh_key(), Some(body)).await
    }

    /// PATCH under a fresh idempotency key.
    ///
    /// # Errors
    /// When no whole answer comes.
    pub async fn patch(&self, path: &str, body: &Value) -> Result<(StatusCode, Value)> {
        self.write(Method::PATCH, path, &fresh_key(), Some(body)).await
    }

    /// DELETE under a fresh idempotency key.
    ///
    /// # Errors
    /// When no whole answer comes.
    pub async fn delete(&self, path: &str) -> Result<(StatusCode, Value)> {
        self.write(Method::DELETE, path, &fresh_key(), None).await
    }

    /// GET.
    ///
    /// # Errors
    /// When no whole answer comes.
    pub async fn get(&self, path: &str) -> Result<(StatusCode, Value)> {
        self.get_with(path, self.headers()?).await
    }

    /// GET by somebody who has seen what this token says.
    ///
    /// # Errors
    /// When no whole answer comes.
    pub async fn get_after(&self, path: &str, token: &str) -> Result<(StatusCode, Value)> {
        let mut headers = self.headers()?;
        headers.insert(CONSISTENCY_HEADER, HeaderValue::from_str(token)?);
        self.get_with(path, headers).await
    }

    async fn get_with(&self, path: &str, headers: HeaderMap) -> Result<(StatusCode, Value)> {
        let url = format!("{}{path}", self.gateway);
        let (status, _, bytes) = self.client.exchange(Method::GET, &url, headers, None, PATIENCE).await?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    /// Body of a registration; `number` makes the synthetic number.
    #[must_use]
    pub fn registration(&self, number: u64) -> Value {
        json!({
            "facility_id": self.facility, "given_name": "Test", "family_name": "Person", "birth_date": "1970-01-01",
            "sex": "unknown", "syn_number": format!("SYN-{:08}", number % 100_000_000),
        })
    }
}
