//! The tower layer.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http::header::CONTENT_LENGTH;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pim_core::identity::Actor;
use pim_core::role::ClosedEnum;
use pim_core::shard::ShardId;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use super::measure::{Measure, Observer};

/// Observes each request. Put it inside the layer that mints request ids, outside everything else.
///
/// An [`Actor`] and a [`ShardId`] in the answer's extensions are named in the access line, and requests are counted by shard when
/// the signals say so. Where no such answer comes, because time is over or the caller has gone, they are those of the
/// [`ContextNote`](pim_core::context::ContextNote) that goes along with the request.
#[derive(Clone, Debug)]
pub struct ObserveLayer<R: ClosedEnum>(Observer<R>);

impl<R: ClosedEnum> ObserveLayer<R> {
    /// A layer that tells `observer`.
    #[must_use]
    pub const fn new(observer: Observer<R>) -> Self {
        Self(observer)
    }
}

impl<S, R: ClosedEnum> Layer<S> for ObserveLayer<R> {
    type Service = Observed<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        Observed { inner, observer: self.0.clone() }
    }
}

/// See [`ObserveLayer`].
#[derive(Clone, Debug)]
pub struct Observed<S, R: ClosedEnum> {
    inner: S,
    observer: Observer<R>,
}

impl<S, R, B, A> Service<Request<B>> for Observed<S, R>
where
    S: Service<Request<B>, Response = Response<A>>,
    A: Body,
    R: ClosedEnum,
{
    type Response = Response<ObservedBody<A, R>>;
    type Error = S::Error;
    type Future = Answering<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let measure = self.observer.begin(&mut request);
        Answering { inner: self.inner.call(request), measure: Some(measure) }
    }
}

pin_project! {
    /// An answer on its way; dropping it counts as the caller's going away.
    #[derive(Debug)]
    pub struct Answering<F, R: ClosedEnum> {
        #[pin]
        inner: F,
        measure: Option<Measure<R>>,
    }
}

impl<F, R, A, E> Future for Answering<F, R>
where
    F: Future<Output = Result<Response<A>, E>>,
    A: Body,
    R: ClosedEnum,
{
    type Output = Result<Response<ObservedBody<A, R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match ready!(this.inner.poll(cx)) {
            Ok(response) => response,
            Err(error) => {
                if let Some(measure) = this.measure {
                    measure.status = Some(500);
                }
                return Poll::Ready(Err(error));
            }
        };
        let mut measure = this.measure.take();
        if let Some(measure) = &mut measure {
            measure.left = announced(&response);
            measure.ended |= response.body().is_end_stream() || measure.left == Some(0);
            measure.status = Some(response.status().as_u16());
            measure.actor = response.extensions_mut().remove::<Actor>();
            measure.shard = response.extensions_mut().remove::<ShardId>();
        }
        Poll::Ready(Ok(response.map(|inner| ObservedBody { inner, measure })))
    }
}

/// How many bytes an answer says that it has.
fn announced<A: Body>(response: &Response<A>) -> Option<u64> {
    let header = || response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
    response.body().size_hint().exact().or_else(header)
}

fn left_behind<D: Buf>(left: Option<u64>, frame: &Frame<D>) -> Option<u64> {
    let sent = frame.data_ref().map_or(0, |data| data.remaining() as u64);
    left.map(|left| left.saturating_sub(sent))
}

pin_project! {
    /// A body whose end closes the measurement.
    #[derive(Debug)]
    pub struct ObservedBody<A, R: ClosedEnum> {
        #[pin]
        inner: A,
        measure: Option<Measure<R>>,
    }
}

impl<A: Body, R: ClosedEnum> Body for ObservedBody<A, R> {
    type Data = A::Data;
    type Error = A::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        if let Some(measure) = this.measure.as_mut() {
            match &frame {
                Some(Err(_)) => measure.status = Some(500),
                // A server may not ask again after the last frame of a known length, whether or not the body foresees its end.
                Some(Ok(frame)) => {
                    measure.left = left_behind(measure.left, frame);
                    measure.ended |= this.inner.is_end_stream() || measure.left == Some(0);
                }
                None => measure.ended = true,
            }
        }
        if frame.is_none() {
            this.measure.take();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
