//! Every request gets an id and a trace, and every answer says which.
//!
//! At the edge id and trace are always minted: a client's own are not trusted, its trace becomes a [`TraceLink`]. Behind the edge the
//! id of the earlier hop is taken over, and the span is a child of its span.

use std::task::{Context, Poll};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::context::{RequestId, TraceContext};

/// Carries the request id between hops and back to the caller.
pub const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-pim-request-id");
/// W3C Trace Context.
pub const TRACEPARENT_HEADER: HeaderName = HeaderName::from_static("traceparent");

/// The trace that a caller from outside named: to be shown beside our own, never to be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceLink(pub TraceContext);

/// Whether earlier hops are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Mint everything anew.
    Edge,
    /// Take over what the earlier hop says.
    Inside,
}

/// Puts a [`RequestId`] and a [`TraceContext`] into the request's extensions and the id on the answer.
///
/// ```
/// use pim_core::request_id::{RequestIdLayer, Trust};
/// let layer = RequestIdLayer::new(Trust::Edge);
/// # let _ = layer;
/// ```
#[derive(Clone, Copy, Debug)]
pub struct RequestIdLayer(Trust);

impl RequestIdLayer {
    /// A layer for the edge or for the inside.
    #[must_use]
    pub const fn new(trust: Trust) -> Self {
        Self(trust)
    }
}

impl<S> Layer<S> for RequestIdLayer {
    type Service = WithRequestId<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WithRequestId { inner, trust: self.0 }
    }
}

/// See [`RequestIdLayer`].
#[derive(Clone, Copy, Debug)]
pub struct WithRequestId<S> {
    inner: S,
    trust: Trust,
}

impl<S, B, R> Service<Request<B>> for WithRequestId<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Echo<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let (id, trace) = match self.trust {
            Trust::Edge => {
                if let Some(link) = parsed(request.headers(), &TRACEPARENT_HEADER) {
                    request.extensions_mut().insert(TraceLink(link));
                }
                (RequestId::mint(), TraceContext::root())
            }
            Trust::Inside => {
                let id = parsed(request.headers(), &REQUEST_ID_HEADER).unwrap_or_else(RequestId::mint);
                let trace = parsed::<TraceContext>(request.headers(), &TRACEPARENT_HEADER);
                (id, trace.map_or_else(TraceContext::root, TraceContext::child))
            }
        };
        request.extensions_mut().insert(id);
        request.extensions_mut().insert(trace);
        Echo { inner: self.inner.call(request), id }
    }
}

fn parsed<T: std::str::FromStr>(headers: &HeaderMap, name: &HeaderName) -> Option<T> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

pin_project! {
    /// Names the request in its answer.
    #[derive(Debug)]
    pub struct Echo<F> {
        #[pin]
        inner: F,
        id: RequestId,
    }
}

impl<F, R, E> Future for Echo<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<R>, E>;

    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.inner.poll(cx).map_ok(|mut response| {
            if let Ok(value) = HeaderValue::from_str(&this.id.to_string()) {
                response.headers_mut().insert(REQUEST_ID_HEADER, value);
            }
            response
        })
    }
}
