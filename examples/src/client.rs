//! The HTTP client between the lab's own programs: pooled connections, bounded answers, deadlines.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client as Pool, Error as PoolError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const IDLE_PER_HOST_MAX: usize = 64;
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// An exchange that did not come about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The request cannot be made: a bad URL or header.
    #[error("the request cannot be made")]
    Request(#[from] http::Error),
    /// No connection; the request was not sent.
    #[error("no connection")]
    Connect(#[source] PoolError),
    /// The connection broke while the request was on its way.
    #[error("the connection broke")]
    Broken(#[source] PoolError),
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The answer is too long, or broke off.
    #[error("the answer is too long or broke off")]
    Body,
    /// The answer is no JSON.
    #[error("the answer is no JSON")]
    Json,
    /// The answer is a refusal.
    #[error("the answer is {0}")]
    Status(StatusCode),
}

impl ClientError {
    /// Whether the request has certainly not reached the other side.
    #[must_use]
    pub const fn was_not_sent(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Request(_))
    }
}

/// A pooled HTTP/1.1 client. Clones share the pool.
#[derive(Clone, Debug)]
pub struct Client(Pool<HttpConnector, Full<Bytes>>);

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// A client with an empty pool.
    #[must_use]
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .build(connector);
        Self(pool)
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// [`ClientError`] by cause.
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
        patience: Duration,
    ) -> Result<Response<Incoming>, ClientError> {
        match tokio::time::timeout(patience, self.0.request(request)).await {
            Err(_elapsed) => Err(ClientError::Timeout),
            Ok(Err(error)) if error.is_connect() => Err(ClientError::Connect(error)),
            Ok(Err(error)) => Err(ClientError::Broken(error)),
            Ok(Ok(response)) => Ok(response),
        }
    }

    /// Sends JSON, or nothing, and reads the whole answer: status, headers and body, whatever the status is.
    ///
    /// # Errors
    /// [`ClientError`] by cause.
    pub async fn exchange(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Option<&Value>,
        patience: Duration,
    ) -> Result<(StatusCode, HeaderMap, Bytes), ClientError> {
        let bytes = body.map(|body| Bytes::from(body.to_string()));
        let mut request = Request::builder().method(method).uri(url).body(Full::new(bytes.unwrap_or_default()))?;
        *request.headers_mut() = headers;
        if body.is_some() {
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let work = async {
            let (head, body) = self.send(request, patience).await?.into_parts();
            let bytes = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|_| ClientError::Body)?;
            Ok((head.status, head.headers, bytes.to_bytes()))
        };
        tokio::time::timeout(patience, work).await.map_err(|_| ClientError::Timeout)?
    }

    /// GET, as JSON; a refusal is an error.
    ///
    /// # Errors
    /// [`ClientError`] by cause.
    pub async fn get_json(&self, url: &str, patience: Duration) -> Result<Value, ClientError> {
        json_of(self.exchange(Method::GET, url, HeaderMap::new(), None, patience).await?)
    }

    /// POST of JSON, answered by JSON; a refusal is an error.
    ///
    /// # Errors
    /// [`ClientError`] by cause.
    pub async fn post_json(&self, url: &str, body: &Value, patience: Duration) -> Result<Value, ClientError> {
        json_of(self.exchange(Method::POST, url, HeaderMap::new(), Some(body), patience).await?)
    }
}

fn json_of((status, _headers, body): (StatusCode, HeaderMap, Bytes)) -> Result<Value, ClientError> {
    if !status.is_success() {
        return Err(ClientError::Status(status));
    }
    serde_json::from_slice(&body).map_err(|_| ClientError::Json)
}
