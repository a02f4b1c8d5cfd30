//! Refuses ambiguous requests.

use std::task::{Context, Poll};

use futures_util::future::Either;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, IF_MATCH, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Method, Request, Response, Version};
use tower::{Layer, Service};

use crate::problem::{BAD_PATH, BAD_REQUEST, HEADERS_TOO_LARGE, METHOD_NOT_ALLOWED, Problem, response_of};

/// Longest path with its query, in bytes.
pub const PATH_BYTES_MAX: usize = 2048;
const HEADERS_MAX: usize = 64;
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Headers of which a second one would let two readers disagree.
const SINGLETONS: &[HeaderName] = &[AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, IF_MATCH, TRANSFER_ENCODING];
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Refuses requests that are ambiguous or too large in their head, with a named problem, before they reach the service.
#[derive(Clone, Copy, Debug, Default)]
pub struct EdgeGuardLayer;

impl<S> Layer<S> for EdgeGuardLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Guarded { inner }
    }
}

/// See [`EdgeGuardLayer`].
#[derive(Clone, Copy, Debug)]
pub struct Guarded<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<S::Future, std::future::Ready<Result<Response<R>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match check(&request) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(problem) => Either::Right(std::future::ready(Ok(response_of(problem)))),
        }
    }
}

fn check<B>(request: &Request<B>) -> Result<(), Problem> {
    let bad = |why: &'static str| Err(Problem::of(BAD_REQUEST).detail(why));
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return Err(Problem::of(METHOD_NOT_ALLOWED)
            .detail("CONNECT and TRACE are not served")
            .allow("GET, POST, PATCH, PUT, DELETE"));
    }
    let headers = request.headers();
    check_size(headers)?;
    let twice = SINGLETONS.iter().find(|name| headers.get_all(*name).iter().nth(1).is_some());
    if twice.is_some() || headers.get_all(IDEMPOTENCY_KEY).iter().nth(1).is_some() {
        return bad("a header that may stand once stands twice");
    }
    if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH) {
        return bad("Transfer-Encoding and Content-Length together");
    }
    if headers.get(TRANSFER_ENCODING).is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return bad("a Transfer-Encoding other than chunked");
    }
    let is_number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u64>().is_ok();
    if headers.get(CONTENT_LENGTH).is_some_and(|value| !value.to_str().is_ok_and(is_number)) {
        return bad("Content-Length is no number");
    }
    check_host(request).or_else(bad)?;
    if headers.contains_key(UPGRADE) || connection_names_forwarded(headers) {
        return bad("Upgrade, or a Connection header that names an end-to-end header");
    }
    if headers.keys().any(|name| name.as_str().contains('_')) {
        return bad("a header name with an underscore");
    }
    let uri = request.uri();
    if uri.path_and_query().is_some_and(|all| all.as_str().len() > PATH_BYTES_MAX) {
        return Err(Problem::of(BAD_PATH).detail("longer than 2048 bytes"));
    }
    check_path(uri.path())
}

/// One host, said once, or twice the same.
fn check_host<B>(request: &Request<B>) -> Result<(), &'static str> {
    let host = request.headers().get(HOST).map(http::HeaderValue::as_bytes);
    let authority = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    match (host, authority) {
        (Some(host), Some(authority)) if !host.eq_ignore_ascii_case(authority) => Err("two different hosts"),
        (None, _) if request.version() == Version::HTTP_11 => Err("no Host"),
        (None, None) if request.version() > Version::HTTP_11 => Err("no authority"),
        _ => Ok(()),
    }
}

fn check_size(headers: &HeaderMap) -> Result<(), Problem> {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if headers.len() > HEADERS_MAX || bytes > HEADER_BYTES_MAX {
        return Err(Problem::of(HEADERS_TOO_LARGE).detail("at most 64 header fields of 16 KiB together"));
    }
    Ok(())
}

fn connection_names_forwarded(headers: &HeaderMap) -> bool {
    // What cannot be read as text names nothing that is harmless.
    let listed = headers.get_all(CONNECTION).iter().map(|value| value.to_str().unwrap_or("?"));
    let mut names = listed.flat_map(|list| list.split(',')).map(str::trim);
    names.any(|name| {
        let harmless = ["close", "keep-alive", TE.as_str()];
        !harmless.iter().any(|known| name.eq_ignore_ascii_case(known))
    })
}

/// Refuses every path that is not in canonical form.
///
/// # Errors
/// A `bad-path` problem.
pub fn check_path(path: &str) -> Result<(), Problem> {
    let bad = |why: &'static str| Err(Problem::of(BAD_PATH).detail(why));
    if !path.starts_with('/') {
        return bad("does not begin with a slash");
    }
    if path.contains("//") || path.contains(['\\', ';']) {
        return bad("empty segments, backslashes and semicolons are refused");
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let (high, low) = (rest.next().and_then(hex), rest.next().and_then(hex));
            match (high, low) {
                // / \ NUL and dot, of which the encoded form only serves to hide them.
                (Some(2), Some(0xf | 0xe)) | (Some(5), Some(0xc)) | (Some(0 | 1), Some(_)) | (Some(7), Some(0xf)) => {
                    return bad("an encoded slash, backslash, dot or control character");
                }
                (Some(high), Some(low)) => decoded.push(high << 4 | low),
                _ => return bad("a malformed percent encoding"),
            }
        } else if !byte.is_ascii_graphic() {
            return bad("a character that must be encoded");
        } else {
            decoded.push(byte);
        }
    }
    if std::str::from_utf8(&decoded).is_err() {
        return bad("percent encoding of something that is no UTF-8");
    }
    if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return bad("dot segments are refused");
    }
    Ok(())
}

const fn hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}
