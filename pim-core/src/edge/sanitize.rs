//! Which headers of a caller go further.

use std::task::{Context, Poll};

use http::{HeaderMap, Request};
use tower::{Layer, Service};

/// Headers beginning with this are the gateway's own; a caller's are dropped.
pub const INTERNAL_PREFIX: &str = "x-pim-";

/// The headers of a caller that are forwarded; everything else is not. The consistency token is the one internal header
/// among them: it carries no authority.
pub const FORWARDED: &[&str] = &[
    "accept",
    "accept-language",
    "content-length",
    "content-type",
    "idempotency-key",
    "if-match",
    "if-none-match",
    "user-agent",
    "x-pim-token",
];

/// What of a caller's headers goes to the upstream: by allow-list, never the credentials, never `x-pim-*` or `txn-token`.
///
/// ```
/// use http::HeaderMap;
/// let mut headers = HeaderMap::new();
/// headers.insert("accept", "application/json".parse()?);
/// headers.insert("txn-token", "forged".parse()?);
/// headers.insert("x-pim-deadline-ms", "1".parse()?);
/// let forwarded = pim_core::edge::sanitize(&headers);
/// assert_eq!(forwarded.len(), 1);
/// # Ok::<(), http::header::InvalidHeaderValue>(())
/// ```
#[must_use]
pub fn sanitize(headers: &HeaderMap) -> HeaderMap {
    allowed(headers, FORWARDED)
}

fn allowed(headers: &HeaderMap, names: &[&'static str]) -> HeaderMap {
    let mut forwarded = HeaderMap::with_capacity(names.len());
    for name in names.iter().copied() {
        // Every value: of a list that came in several lines, half of it would be another request.
        for value in headers.get_all(name) {
            forwarded.append(name, value.clone());
        }
    }
    forwarded
}

/// Leaves a request only the headers of an allow-list, before the service sees it.
///
/// Put it inside whatever reads the caller's credentials and outside what forwards. Without more it allows [`FORWARDED`]:
///
/// ```
/// use pim_core::edge::HeaderSanitizeLayer;
/// let layer = HeaderSanitizeLayer::default();
/// # let _ = layer;
/// ```
///
/// A program's own list; every name is in lower case, or it is refused:
///
/// ```
/// use pim_core::edge::HeaderSanitizeLayer;
/// let layer = HeaderSanitizeLayer::allowing(&["accept", "x-shop-currency"])?;
/// # let _ = layer;
/// assert!(HeaderSanitizeLayer::allowing(&["X-Shop"]).is_err());
/// assert!(HeaderSanitizeLayer::allowing(&["txn-token"]).is_err());
/// # Ok::<(), pim_core::edge::HeaderListError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct HeaderSanitizeLayer(&'static [&'static str]);

impl Default for HeaderSanitizeLayer {
    fn default() -> Self {
        Self(FORWARDED)
    }
}

/// A list of headers that must not be forwarded as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderListError {
    /// Not the name of a header in lower case.
    #[error("`{0}` is not the name of a header in lower case")]
    Name(&'static str),
    /// It carries authority, which a caller must not bring.
    #[error("`{0}` carries authority and is never forwarded")]
    Authority(&'static str),
}

/// Headers by which a hop of ours speaks to another.
const AUTHORITY: &[&str] = &["authorization", "cookie", "proxy-authorization", "txn-token"];

impl HeaderSanitizeLayer {
    /// Allows these headers and no other.
    ///
    /// # Errors
    /// [`HeaderListError`] for a name that is none, for credentials, and for internal headers other than the consistency token.
    pub fn allowing(names: &'static [&'static str]) -> Result<Self, HeaderListError> {
        for name in names.iter().copied() {
            if http::HeaderName::from_lowercase(name.as_bytes()).is_err() {
                return Err(HeaderListError::Name(name));
            }
            let is_internal = name.starts_with(INTERNAL_PREFIX) && !FORWARDED.contains(&name);
            if is_internal || AUTHORITY.contains(&name) {
                return Err(HeaderListError::Authority(name));
            }
        }
        Ok(Self(names))
    }
}

impl<S> Layer<S> for HeaderSanitizeLayer {
    type Service = Sanitized<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Sanitized { inner, names: self.0 }
    }
}

/// See [`HeaderSanitizeLayer`].
#[derive(Clone, Copy, Debug)]
pub struct Sanitized<S> {
    inner: S,
    names: &'static [&'static str],
}

impl<S, B> Service<Request<B>> for Sanitized<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        *request.headers_mut() = allowed(request.headers(), self.names);
        self.inner.call(request)
    }
}
