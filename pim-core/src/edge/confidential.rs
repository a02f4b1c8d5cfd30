//! What an answer tells caches and browsers about itself.

use http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Response};

/// Lets nobody keep an answer, or read it as another type than it says: `no-store` (RFC 9111, 5.2.2.5; RFC 6749, 5.1 asks for it
/// where tokens are issued) and `nosniff`. What a handler has said of its own answer stands.
///
/// For tower's `MapResponseLayer`, outside of whatever answers:
///
/// ```
/// use http::Response;
/// use pim_core::edge::confidential;
/// use tower::util::MapResponseLayer;
///
/// let layer = MapResponseLayer::new(confidential::<String>);
/// # let _used = layer;
/// assert_eq!(confidential(Response::new(String::new())).headers()["cache-control"], "no-store");
/// ```
#[must_use]
pub fn confidential<B>(mut answer: Response<B>) -> Response<B> {
    let headers = answer.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(const { HeaderValue::from_static("no-store") });
    headers.entry(X_CONTENT_TYPE_OPTIONS).or_insert(const { HeaderValue::from_static("nosniff") });
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_handler_says_stands() {
        let mut answer = Response::new(());
        answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
        let answer = confidential(answer);
        assert_eq!(answer.headers()[CACHE_CONTROL], "max-age=60");
        assert_eq!(answer.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff");
    }
}
