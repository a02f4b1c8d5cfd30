//! An upstream's answer on its way back to the caller.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::BoxError;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::response::Parts;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use pim_core::deadline::Deadline;
use pim_core::problem::{self, Problem};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout_at};

/// What of an upstream's answer goes back to the caller.
const RETURNED: &[&str] =
    &["allow", "cache-control", "content-length", "content-type", "etag", "retry-after", "x-pim-token"];
/// How much longer than its request an answer may be on its way: for callers that read slowly.
const READING: Duration = Duration::from_secs(5);
/// More than any answer that is handed on as a whole.
const WHOLE_BYTES_MAX: usize = 64 * 1024;

/// Hands an answer on as it comes. Its place is free again when it has ended, or its time is over.
pub(super) fn streamed(answer: http::Response<Incoming>, deadline: Deadline, place: OwnedSemaphorePermit) -> Response {
    let (head, body) = answer.into_parts();
    returned(&head, Body::new(Lent::until(deadline, Held { body, _place: place })))
}

/// Hands an answer on once all of it is there, so that whoever reads it keeps nothing.
pub(super) async fn whole(answer: http::Response<Incoming>, deadline: Deadline) -> Result<Response, Problem> {
    let (head, body) = answer.into_parts();
    match timeout_at(deadline.instant(), Limited::new(body, WHOLE_BYTES_MAX).collect()).await {
        Ok(Ok(body)) => Ok(returned(&head, Body::from(body.to_bytes()))),
        Ok(Err(_)) => Err(Problem::of(problem::BAD_GATEWAY)),
        Err(_elapsed) => Err(Problem::of(problem::DEADLINE_EXCEEDED)),
    }
}

fn returned(head: &Parts, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    for name in RETURNED.iter().copied() {
        if let Some(value) = head.headers.get(name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

/// What an answer that is on its way keeps from others: a connection to its upstream, and a place.
#[derive(Debug)]
struct Held {
    body: Incoming,
    _place: OwnedSemaphorePermit,
}

/// A body that has what it holds for a time only.
///
/// A server does not ask a body for more while its reader takes nothing, so no look at the clock in here would be enough: a task of its
/// own takes back what was lent.
#[derive(Debug)]
struct Lent {
    held: Arc<Mutex<Option<Held>>>,
    taken_back: JoinHandle<()>,
}

impl Lent {
    fn until(deadline: Deadline, held: Held) -> Self {
        let held = Arc::new(Mutex::new(Some(held)));
        let lent = Arc::clone(&held);
        let taken_back = tokio::spawn(async move {
            sleep_until(deadline.instant() + READING).await;
            drop(lock(&lent).take());
        });
        Self { held, taken_back }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.taken_back.abort();
        // The task goes when the runtime comes to it; the place is free now.
        drop(lock(&self.held).take());
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let late = || Some(Err(BoxError::from(io::Error::from(io::ErrorKind::TimedOut))));
        let polled = match lock(&this.held).as_mut() {
            Some(held) => Pin::new(&mut held.body).poll_frame(cx),
            None => return Poll::Ready(late()),
        };
        match polled {
            Poll::Ready(frame) => Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from))),
            // Also woken when what was lent is taken back: the upstream says nothing then.
            Poll::Pending => Pin::new(&mut this.taken_back).poll(cx).map(|_| late()),
        }
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.held).as_ref().is_some_and(|held| held.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.held).as_ref().map(|held| held.body.size_hint()).unwrap_or_default()
    }
}

fn lock(held: &Mutex<Option<Held>>) -> MutexGuard<'_, Option<Held>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}
