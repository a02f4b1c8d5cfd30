//! Forwarding an admitted request, and its answer back.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap};
use http::request::Parts;
use http::{HeaderValue, Uri};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use pim_core::context::{RequestId, TXN_TOKEN_HEADER, TraceContext};
use pim_core::deadline::{DEADLINE_HEADER, Deadline};
use pim_core::edge::sanitize;
use pim_core::problem::{self, Problem, ProblemType};
use pim_core::request_id::{REQUEST_ID_HEADER, TRACEPARENT_HEADER};

use super::admit::Admitted;
use super::http::Gateway;
use crate::client::ClientError;
use crate::rig::BODY_BYTES_MAX;
use crate::routes::Class;

/// The caller announced a body and did not send it.
const BODY_LATE: ProblemType = ProblemType::new("body-late", 408, "The body did not arrive in time");
const TRIES_MAX: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// What of an upstream's answer goes back to the caller.
const RETURNED: &[&str] = &["allow", "content-length", "content-type", "etag", "retry-after", "x-pim-token"];

/// Sends the request to its upstream; again when it certainly did not arrive.
pub(super) async fn forward(
    gateway: &Gateway,
    admitted: &Admitted,
    head: &Parts,
    body: Body,
) -> Result<Response, Problem> {
    let upstream = gateway.upstream(admitted.route.upstream).ok_or_else(unavailable)?;
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri: Uri = format!("{upstream}{path}").parse().map_err(|_| Problem::of(problem::BAD_PATH))?;
    // One time for everything: body, tries, and what the upstream is told.
    let deadline = Deadline::after(admitted.route.class.timeout());
    // A slot is held meanwhile: whoever sends slowly must not hold it for ever, nor as long as a sweep may take.
    let sent_by = deadline.capped(Class::Operate.timeout());
    let body = tokio::time::timeout_at(sent_by.instant(), collected(body)).await;
    let body = body.map_err(|_elapsed| Problem::of(BODY_LATE))??;
    let mut headers = sanitize(&head.headers);
    headers.remove(CONTENT_LENGTH);
    speak_for(&mut headers, admitted, &head.extensions);
    for attempt in 1.. {
        let left = deadline.remaining().ok_or_else(|| Problem::of(problem::DEADLINE_EXCEEDED))?;
        headers.insert(DEADLINE_HEADER, HeaderValue::from(whole_ms(left)));
        let mut request = http::Request::new(Full::new(body.clone()));
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = headers.clone();
        match gateway.client().send(request, left).await {
            Ok(response) => return Ok(answer(response)),
            Err(ClientError::Timeout) => return Err(Problem::of(problem::DEADLINE_EXCEEDED)),
            // A read changes nothing, and a write carries its key: both may be sent again.
            Err(ClientError::Broken(_) | ClientError::Connect(_)) if attempt < TRIES_MAX => {
                tokio::time::sleep(RETRY_PAUSE * attempt).await;
            }
            Err(ClientError::Connect(_)) => return Err(unavailable()),
            Err(_) => break,
        }
    }
    Err(Problem::of(problem::BAD_GATEWAY))
}

fn unavailable() -> Problem {
    Problem::of(problem::UNAVAILABLE).detail("the service behind this route does not answer").retry_after_secs(1)
}

async fn collected(body: Body) -> Result<Bytes, Problem> {
    // What is announced is refused before it comes.
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(Problem::of(problem::BODY_TOO_LARGE).with("bytes_max", BODY_BYTES_MAX));
    }
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            Err(Problem::of(problem::BODY_TOO_LARGE).with("bytes_max", BODY_BYTES_MAX))
        }
        Err(_) => Err(Problem::of(problem::BAD_REQUEST).detail("the body broke off")),
    }
}

/// What the gateway itself says to the upstream; nothing of it can come from the caller.
fn speak_for(headers: &mut HeaderMap, admitted: &Admitted, extensions: &http::Extensions) {
    name_request(headers, extensions);
    if let Some(token) = &admitted.txn_token {
        headers.insert(TXN_TOKEN_HEADER, token.clone());
    }
}

fn whole_ms(budget: Duration) -> u64 {
    u64::try_from(budget.as_millis()).unwrap_or(u64::MAX)
}

/// Says which request and which trace a call belongs to.
pub(super) fn name_request(headers: &mut HeaderMap, extensions: &http::Extensions) {
    let id = extensions.get::<RequestId>().map(|id| (REQUEST_ID_HEADER, id.to_string()));
    let trace = extensions.get::<TraceContext>().map(|trace| (TRACEPARENT_HEADER, trace.to_string()));
    for (name, value) in id.into_iter().chain(trace) {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
}

fn answer(response: http::Response<Incoming>) -> Response {
    let (head, body) = response.into_parts();
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = head.status;
    for name in RETURNED.iter().copied() {
        if let Some(value) = head.headers.get(name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}
