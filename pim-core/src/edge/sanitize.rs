//! Which headers of a caller go further.

use http::HeaderMap;

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
    let mut forwarded = HeaderMap::with_capacity(FORWARDED.len());
    for name in FORWARDED.iter().copied() {
        // Every value: of a list that came in several lines, half of it would be another request.
        for value in headers.get_all(name) {
            forwarded.append(name, value.clone());
        }
    }
    forwarded
}
