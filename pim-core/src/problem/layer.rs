//! Answers for everything that went wrong, in one place and one form.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::HeaderName;
use http::header::{
    ALLOW, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, TRANSFER_ENCODING, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tower::{Layer, Service};

use super::{
    BAD_GATEWAY, BAD_REQUEST, BODY_TOO_LARGE, CONFLICT, DEADLINE_EXCEEDED, FORBIDDEN, HEADERS_TOO_LARGE, INTERNAL,
    INVALID_BODY, METHOD_NOT_ALLOWED, NOT_FOUND, Problem, ProblemType, Quota, RATE_LIMITED, STALE_VERSION,
    UNAUTHENTICATED, UNAVAILABLE, UNSUPPORTED_MEDIA_TYPE,
};
use crate::context::RequestId;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// An answer that stands for a problem until [`ProblemLayer`] gives it its body.
pub fn response_of<B: Default>(problem: Problem) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = problem.status();
    response.extensions_mut().insert(problem);
    response
}

/// Gives every failed answer a problem document that names the request, also for panics and for answers of a router.
///
/// Put it inside [`RequestIdLayer`](crate::request_id::RequestIdLayer), outside everything else. A document that an upstream
/// has already made passes unchanged. What a problem came of ([`Problem::because`]) is logged here.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProblemLayer;

impl<S> Layer<S> for ProblemLayer {
    type Service = WithProblems<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WithProblems { inner }
    }
}

/// See [`ProblemLayer`].
#[derive(Clone, Copy, Debug)]
pub struct WithProblems<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for WithProblems<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    R: From<Bytes> + Default + Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let id = request.extensions().get().copied().unwrap_or_else(RequestId::mint);
        let is_head = request.method() == Method::HEAD;
        // A service may panic before it has made its future.
        let called = std::panic::catch_unwind(AssertUnwindSafe(|| self.inner.call(request)));
        Box::pin(async move {
            let answered = match called {
                Ok(future) => AssertUnwindSafe(future).catch_unwind().await,
                Err(panic) => Err(panic),
            };
            let response = match answered {
                Ok(outcome) => outcome?,
                Err(_panic) => {
                    // Not what it said: that may hold what the caller sent.
                    crate::error!("handler.panicked", request_id = id);
                    response_of(Problem::of(INTERNAL))
                }
            };
            Ok(rendered(response, id, is_head))
        })
    }
}

fn rendered<R: From<Bytes> + Default>(mut response: Response<R>, id: RequestId, is_head: bool) -> Response<R> {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => problem,
        None if is_json(&response) => return response,
        None => Problem::of(kind_of(status)),
    };
    if let Some(code) = problem.cause() {
        crate::error!("handler.failed", request_id = id, code = code);
    }
    let status = problem.status();
    *response.status_mut() = status;
    let body = Bytes::from(problem.document(id).to_string());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, MEDIA_TYPE);
    headers.remove(CONTENT_ENCODING);
    headers.remove(TRANSFER_ENCODING);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    if let Some(seconds) = problem.retry_after() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(quota) = problem.exceeded() {
        tell_quota(headers, quota, problem.retry_after());
    }
    if status == StatusCode::UNAUTHORIZED && !headers.contains_key(WWW_AUTHENTICATE) {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(methods) = problem.allowed() {
        headers.insert(ALLOW, HeaderValue::from_static(methods));
    }
    *response.body_mut() = if is_head { R::default() } else { R::from(body) };
    response
}

/// The fields of draft-ietf-httpapi-ratelimit-headers: the policy, and what is left of it.
fn tell_quota(headers: &mut HeaderMap, Quota { calls, window_secs }: Quota, wait_secs: Option<u64>) {
    let policy = format!("\"burst\";q={calls};w={window_secs}");
    let left = format!("\"burst\";r=0;t={}", wait_secs.unwrap_or(window_secs));
    for (name, text) in [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, left)] {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    }
}

fn is_json<R>(response: &Response<R>) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.starts_with("application/problem+json") || kind.starts_with("application/json")
}

/// The type for an answer of a router that knows statuses only. The status stays what it is.
const fn kind_of(status: StatusCode) -> ProblemType {
    match status.as_u16() {
        401 => UNAUTHENTICATED,
        403 => FORBIDDEN,
        404 => NOT_FOUND,
        405 => METHOD_NOT_ALLOWED,
        409 => CONFLICT,
        413 => BODY_TOO_LARGE,
        504 => DEADLINE_EXCEEDED,
        412 => STALE_VERSION,
        415 => UNSUPPORTED_MEDIA_TYPE,
        422 => INVALID_BODY,
        429 => RATE_LIMITED,
        431 => HEADERS_TOO_LARGE,
        502 => BAD_GATEWAY,
        503 => UNAVAILABLE,
        400 => BAD_REQUEST,
        500 => INTERNAL,
        other => ProblemType::new("unspecified", other, "The status is all that is known"),
    }
}
