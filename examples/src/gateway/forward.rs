//! Forwarding a request that may pass.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap};
use http::request::Parts;
use http::{HeaderValue, Response, Uri};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use pim_core::context::{RequestId, TXN_TOKEN_HEADER, TraceContext};
use pim_core::deadline::{DEADLINE_HEADER, Deadline};
use pim_core::edge::sanitize;
use pim_core::problem::{self, Problem, ProblemType};
use pim_core::request_id::{REQUEST_ID_HEADER, TRACEPARENT_HEADER};

use super::http::Gateway;
use crate::client::ClientError;
use crate::routes::Upstream;

/// The caller announced a body and did not send it.
const BODY_LATE: ProblemType = ProblemType::new("body-late", 408, "The body did not arrive in time");
const TRIES_MAX: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// A request that may go on.
pub(super) struct Outgoing<'a> {
    pub(super) upstream: Upstream,
    pub(super) head: &'a Parts,
    pub(super) body: Bytes,
    /// The session context to forward; none for public routes.
    pub(super) txn_token: Option<HeaderValue>,
    /// One time for everything: body, tries, and what the upstream is told.
    pub(super) deadline: Deadline,
}

/// Sends a request to its upstream; again when it certainly did not arrive.
pub(super) async fn forward(gateway: &Gateway, outgoing: Outgoing<'_>) -> Result<Response<Incoming>, Problem> {
    let Outgoing { upstream, head, body, txn_token, deadline } = outgoing;
    let upstream = gateway.upstream(upstream).ok_or_else(unavailable)?;
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri: Uri = format!("{upstream}{path}").parse().map_err(|_| Problem::of(problem::BAD_PATH))?;
    let mut headers = sanitize(&head.headers);
    headers.remove(CONTENT_LENGTH);
    speak_for(&mut headers, txn_token, &head.extensions);
    for attempt in 1.. {
        let left = deadline.remaining().ok_or_else(|| Problem::of(problem::DEADLINE_EXCEEDED))?;
        headers.insert(DEADLINE_HEADER, HeaderValue::from(whole_ms(left)));
        let mut request = http::Request::new(Full::new(body.clone()));
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = headers.clone();
        match gateway.client().send(request, left).await {
            Ok(response) => return Ok(response),
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

/// All of a body, which comes in time and is no larger than this.
pub(super) async fn received(body: Body, by: Deadline, bytes_max: usize) -> Result<Bytes, Problem> {
    let received = tokio::time::timeout_at(by.instant(), collected(body, bytes_max)).await;
    received.map_err(|_elapsed| Problem::of(BODY_LATE))?
}

async fn collected(body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    let too_large = || Problem::of(problem::BODY_TOO_LARGE).with("bytes_max", bytes_max);
    // What is announced is refused before it comes.
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_large());
    }
    match Limited::new(body, bytes_max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => Err(too_large()),
        Err(_) => Err(Problem::of(problem::BAD_REQUEST).detail("the body broke off")),
    }
}

/// What the gateway itself says to the upstream; nothing of it can come from the caller.
fn speak_for(headers: &mut HeaderMap, txn_token: Option<HeaderValue>, extensions: &http::Extensions) {
    name_request(headers, extensions);
    if let Some(token) = txn_token {
        headers.insert(TXN_TOKEN_HEADER, token);
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
