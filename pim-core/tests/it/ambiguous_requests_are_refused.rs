//! The guard refuses what two parsers could read differently; each refusal has a twin that passes.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version};
use http_body_util::Full;
use pim_core::edge::{EdgeGuardLayer, check_path, sanitize};
use pim_core::problem::Problem;
use tower::{Layer as _, ServiceExt as _, service_fn};

type Headers = Vec<(&'static str, Vec<u8>)>;

fn request(method: Method, uri: &str, version: Version, headers: &Headers) -> Request<()> {
    let mut request = Request::builder().method(method).uri(uri).version(version).body(()).unwrap();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers_mut().append(name, HeaderValue::from_bytes(value).unwrap());
    }
    request
}

/// The slug that the guard answers with, or none when the request arrives.
async fn slug_of(request: Request<()>) -> Option<&'static str> {
    let arrived = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&arrived);
    let inner = service_fn(move |_: Request<()>| {
        counter.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) }
    });
    let response = EdgeGuardLayer.layer(inner).oneshot(request).await.unwrap();
    let problem = response.extensions().get::<Problem>();
    assert_eq!(arrived.load(Ordering::SeqCst) == 0, problem.is_some(), "a refused request never arrives");
    problem.map(|problem| problem.kind().slug)
}

fn fields(list: &[(&'static str, &str)]) -> Headers {
    list.iter().map(|(name, value)| (*name, value.as_bytes().to_vec())).collect()
}

#[tokio::test]
async fn by_header() {
    let h11 = Version::HTTP_11;
    let many = |count: usize| {
        let mut headers = fields(&[("host", "a")]);
        headers.extend((1..count).map(|_| ("x-many", b"1".to_vec())));
        headers
    };
    let large = |bytes: usize| vec![("host", b"a".to_vec()), ("x-large", vec![b'x'; bytes])];
    let host = |more: &[(&'static str, &str)]| {
        let mut headers = fields(&[("host", "a")]);
        headers.extend(fields(more));
        headers
    };
    let two = |name: &'static str, value: &str| host(&[(name, value), (name, value)]);
    let cases: Vec<(&str, Headers, Headers)> = vec![
        ("no Host", fields(&[]), host(&[])),
        ("two Hosts", fields(&[("host", "a"), ("host", "a")]), host(&[])),
        (
            "TE with CL",
            host(&[("transfer-encoding", "chunked"), ("content-length", "1")]),
            host(&[("transfer-encoding", "chunked")]),
        ),
        ("another coding", host(&[("transfer-encoding", "gzip, chunked")]), host(&[("transfer-encoding", "Chunked")])),
        ("identity", host(&[("transfer-encoding", "identity")]), host(&[("content-length", "0")])),
        ("two TE", two("transfer-encoding", "chunked"), host(&[("transfer-encoding", "chunked")])),
        ("two CL", two("content-length", "1"), host(&[("content-length", "1")])),
        ("signed CL", host(&[("content-length", "+1")]), host(&[("content-length", "1")])),
        ("a list of CL", host(&[("content-length", "1, 1")]), host(&[("content-length", "01")])),
        ("empty CL", host(&[("content-length", "")]), host(&[("content-length", "0")])),
        ("CL beyond 64 bits", host(&[("content-length", "99999999999999999999")]), host(&[("content-length", "9")])),
        ("two Authorization", two("authorization", "Bearer a"), host(&[("authorization", "Bearer a")])),
        ("two Content-Type", two("content-type", "a/b"), host(&[("content-type", "a/b")])),
        ("two If-Match", two("if-match", "\"1\""), host(&[("if-match", "\"1\"")])),
        ("two keys", two("idempotency-key", "k"), host(&[("idempotency-key", "k")])),
        ("Upgrade", host(&[("upgrade", "websocket")]), host(&[("x-upgrade", "websocket")])),
        ("Connection names a header", host(&[("connection", "close, x-pim-token")]), host(&[("connection", "close")])),
        ("Connection: upgrade", host(&[("connection", "upgrade")]), host(&[("connection", "Keep-Alive, TE")])),
        (
            "Connection that is no text",
            vec![("host", b"a".to_vec()), ("connection", b"close, x-pim-token, \xff".to_vec())],
            host(&[("connection", "close")]),
        ),
        ("underscore", host(&[("x_pim_role", "admin")]), host(&[("x-role", "admin")])),
    ];
    for (name, refused, twin) in &cases {
        let at = |headers| request(Method::GET, "/v1/x", h11, headers);
        assert_eq!(slug_of(at(refused)).await, Some("bad-request"), "{name}");
        assert_eq!(slug_of(at(twin)).await, None, "{name}, the twin");
    }
    for (refused, twin) in [(many(65), many(64)), (large(16 * 1024), large(16 * 1024 - 64))] {
        assert_eq!(slug_of(request(Method::GET, "/v1/x", h11, &refused)).await, Some("headers-too-large"));
        assert_eq!(slug_of(request(Method::GET, "/v1/x", h11, &twin)).await, None);
    }
}

#[tokio::test]
async fn by_method_and_host() {
    let host = fields(&[("host", "a.test")]);
    for method in [Method::TRACE, Method::CONNECT] {
        assert_eq!(slug_of(request(method, "/", Version::HTTP_11, &host)).await, Some("method-not-allowed"));
    }
    let (h11, h2) = (Version::HTTP_11, Version::HTTP_2);
    let none = fields(&[]);
    let table = [
        ("http://b.test/x", h11, &host, Some("bad-request")),
        ("http://A.test/x", h11, &host, None),
        ("https://b.test/x", h2, &host, Some("bad-request")),
        ("https://a.test/x", h2, &none, None),
        ("/x", h2, &none, Some("bad-request")),
        ("/x", h2, &host, None),
        ("/x", Version::HTTP_10, &none, None),
    ];
    for (uri, version, headers, expected) in table {
        assert_eq!(slug_of(request(Method::GET, uri, version, headers)).await, expected, "{uri} {version:?}");
    }
}

#[test]
fn by_path() {
    let refused = [
        "",
        "*",
        "v1",
        "//",
        "/v1//x",
        "/v1/./x",
        "/v1/../x",
        "/..",
        "/v1/%2e%2e/x",
        "/v1/%2E",
        "/v1%2fx",
        "/v1%2Fx",
        "/v1%5cx",
        "/v1\\x",
        "/v1;a=b/x",
        "/v1/%00",
        "/v1/%0a",
        "/v1/%1b",
        "/v1/%7f",
        "/v1/%",
        "/v1/%4",
        "/v1/%zz",
        "/v1/ x",
        "/v1/\u{e4}",
        "/v1/%ff",
        "/v1/%c0%af",
        "/v1/%ed%a0%80",
    ];
    for path in refused {
        assert_eq!(check_path(path).unwrap_err().kind().slug, "bad-path", "{path}");
    }
    for path in
        ["/", "/v1/x", "/v1/x/", "/v1/a.b", "/v1/..a", "/v1/%20", "/v1/%C3%A4", "/v1/a%25", "/v1/~a!$&'()*+,=:@"]
    {
        assert!(check_path(path).is_ok(), "{path}");
    }
}

#[tokio::test]
async fn by_length_of_the_path() {
    let host = fields(&[("host", "a")]);
    let path = |bytes: usize| format!("/{}?q=1", "x".repeat(bytes - 5));
    let at = |uri: &str| request(Method::GET, uri, Version::HTTP_11, &host);
    assert_eq!(slug_of(at(&path(2049))).await, Some("bad-path"));
    assert_eq!(slug_of(at(&path(2048))).await, None);
}

#[test]
fn only_named_headers_go_further() {
    let dropped = [
        "authorization",
        "cookie",
        "txn-token",
        "x-pim-request-id",
        "x-pim-deadline-ms",
        "x-pim-role",
        "traceparent",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-real-ip",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "proxy-authorization",
        "host",
        "x-anything",
    ];
    let mut headers = HeaderMap::new();
    for name in dropped {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static("forged"));
    }
    assert!(sanitize(&headers).is_empty());
    headers.append("accept", HeaderValue::from_static("text/html"));
    headers.append("accept", HeaderValue::from_static("application/json"));
    headers.insert("idempotency-key", HeaderValue::from_static("k-1"));
    headers.insert("x-pim-token", HeaderValue::from_static("t"));
    let forwarded = sanitize(&headers);
    let names: Vec<_> = forwarded.keys().map(HeaderName::as_str).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(forwarded.get_all("accept").iter().count(), 2, "a list stays whole");
}
