//! Every failed answer is a problem document that names its request.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use pim_core::context::RequestId;
use pim_core::problem::{
    METHOD_NOT_ALLOWED, PROBLEM_TYPES, Problem, ProblemLayer, Quota, RATE_LIMITED, UNAUTHENTICATED, response_of,
};
use serde_json::Value;
use tower::{Layer as _, Service, ServiceExt as _, service_fn};

type Body = Full<Bytes>;

async fn answer<S>(service: S, method: Method) -> (RequestId, Response<Bytes>)
where
    S: Service<Request<()>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    let id = RequestId::mint();
    let mut request = Request::builder().method(method).uri("/v1/x").body(()).unwrap();
    request.extensions_mut().insert(id);
    let (parts, body) = ProblemLayer.layer(service).oneshot(request).await.unwrap().into_parts();
    (id, Response::from_parts(parts, body.collect().await.unwrap().to_bytes()))
}

/// Answers each request with what `make` makes.
fn with(
    make: impl Fn() -> Response<Body> + Clone + Send + 'static,
) -> impl Service<Request<()>, Response = Response<Body>, Error = Infallible, Future: Send + 'static> {
    service_fn(move |_| {
        let response = make();
        async move { Ok(response) }
    })
}

fn document(response: &Response<Bytes>) -> Value {
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert_eq!(response.headers()["content-length"], response.body().len().to_string());
    serde_json::from_slice(response.body()).unwrap()
}

#[tokio::test]
async fn a_panic_is_a_500_that_tells_nothing() {
    let later = service_fn(|request: Request<()>| async move {
        tokio::task::yield_now().await;
        assert_eq!(request.method(), Method::PUT, "secret of Jane Doe");
        Ok::<_, Infallible>(Response::new(Body::default()))
    });
    let at_once = service_fn(|request: Request<()>| {
        assert_eq!(request.method(), Method::PUT, "secret of Jane Doe");
        async { Ok::<_, Infallible>(Response::new(Body::default())) }
    });
    for (id, response) in [answer(later, Method::GET).await, answer(at_once, Method::GET).await] {
        assert_eq!(response.status(), 500);
        let document = document(&response);
        assert_eq!(document["type"], "urn:pim:problem:internal");
        assert_eq!(document["instance"], format!("urn:uuid:{id}"));
        assert!(!document.to_string().contains("Jane"));
    }
}

#[tokio::test]
async fn head_is_answered_without_a_body() {
    let quota = Quota { calls: 400, window_secs: 2 };
    let failed = move || response_of(Problem::of(RATE_LIMITED).retry_after_secs(2).quota(quota));
    let (_, response) = answer(with(failed), Method::HEAD).await;
    assert_eq!((response.status(), response.body().len()), (StatusCode::TOO_MANY_REQUESTS, 0));
    assert_eq!(response.headers()["retry-after"], "2");
    assert_eq!(response.headers()["ratelimit-policy"], "\"burst\";q=400;w=2");
    assert_eq!(response.headers()["ratelimit"], "\"burst\";r=0;t=2");
    let (_, twin) = answer(with(failed), Method::GET).await;
    assert_eq!(document(&twin)["status"], 429);
}

#[tokio::test]
async fn a_405_says_what_is_allowed_and_a_401_how_to_ask() {
    let ours = || response_of(Problem::of(METHOD_NOT_ALLOWED).allow("GET, POST"));
    let (_, response) = answer(with(ours), Method::PUT).await;
    assert_eq!(
        (response.status(), &response.headers()["allow"]),
        (StatusCode::METHOD_NOT_ALLOWED, &"GET, POST".parse().unwrap())
    );
    // A router's own Allow stays.
    let routers = || Response::builder().status(405).header("allow", "DELETE").body(Body::default()).unwrap();
    let (_, response) = answer(with(routers), Method::PUT).await;
    assert_eq!(response.headers()["allow"], "DELETE");
    assert_eq!(document(&response)["type"], METHOD_NOT_ALLOWED.uri());
    let (_, response) = answer(with(|| response_of(Problem::of(UNAUTHENTICATED))), Method::GET).await;
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
}

#[tokio::test]
async fn what_an_upstream_says_passes_unchanged() {
    for kind in ["application/problem+json", "application/json"] {
        let said = move || {
            let body = Body::from("{\"title\": \"theirs\"}");
            Response::builder().status(409).header("content-type", kind).body(body).unwrap()
        };
        let (_, response) = answer(with(said), Method::GET).await;
        assert_eq!(
            (response.status(), response.body().as_ref()),
            (StatusCode::CONFLICT, &b"{\"title\": \"theirs\"}"[..])
        );
    }
    let fine = || Response::new(Body::from("fine"));
    let (_, response) = answer(with(fine), Method::GET).await;
    assert_eq!(response.body().as_ref(), b"fine");
}

#[tokio::test]
async fn status_and_document_agree_for_each_status_of_a_router() {
    for status in 400..600_u16 {
        let bare = move || {
            let body = Body::from("<html>");
            Response::builder().status(status).header("content-encoding", "gzip").body(body).unwrap()
        };
        let (_, response) = answer(with(bare), Method::GET).await;
        let document = document(&response);
        assert_eq!((response.status().as_u16(), &document["status"]), (status, &Value::from(status)));
        assert!(!response.headers().contains_key("content-encoding"));
        let declared = PROBLEM_TYPES.iter().find(|kind| document["type"] == kind.uri());
        assert!(declared.is_none_or(|kind| kind.status == status), "{status}: {document}");
        assert_eq!(document["type"] == "urn:pim:problem:conflict", status == 409, "{document}");
        assert!(declared.is_some() || document["type"] == "urn:pim:problem:unspecified", "{status}: {document}");
    }
}

#[test]
fn slugs_are_unique_and_members_cannot_be_overwritten() {
    let mut slugs: Vec<_> = PROBLEM_TYPES.iter().map(|kind| kind.slug).collect();
    slugs.sort_unstable();
    slugs.dedup();
    assert_eq!(slugs.len(), PROBLEM_TYPES.len());
    let document = Problem::of(UNAUTHENTICATED).with("status", 200).with("more", 1).document(RequestId::mint());
    assert_eq!((&document["status"], &document["more"]), (&Value::from(401), &Value::from(1)));
}
