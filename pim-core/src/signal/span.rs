//! Spans: one hop of a request through a program, told to whoever keeps them; members are admitted by type.
//!
//! ```
//! use std::time::Duration;
//! use pim_core::clock::Clock;
//! use pim_core::context::{RequestId, TraceContext};
//! use pim_core::signal::{Span, SpanKind, Spans};
//!
//! let (parent, now) = (TraceContext::root(), Clock::system().now());
//! let took = Duration::from_millis(3);
//! let span = Span::new(SpanKind::Consumer, "stock-count", parent.child(), RequestId::mint(), (now, took));
//! assert_eq!(span.trace.parent(), Some(parent.span_id()));
//! Spans::default().keep(span); // nobody listens
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::clock::Timestamp;
use crate::context::{RequestId, TraceContext};

crate::closed_enum! {
    /// What a program did with a request.
    pub enum SpanKind {
        /// It answered.
        Server = "server",
        /// It asked.
        Client = "client",
        /// It handed an event on.
        Producer = "producer",
        /// It acted on an event.
        Consumer = "consumer",
    }
}

/// One hop of a request through a program.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Span {
    /// Trace, span, and the span that it is a child of.
    pub trace: TraceContext,
    /// Another trace that belongs to it without being trusted: what a caller from outside named.
    pub link: Option<Box<TraceContext>>,
    /// Which request.
    pub request: RequestId,
    /// Which program.
    pub service: &'static str,
    /// What the program did.
    pub kind: SpanKind,
    /// The route, consumer or handler.
    pub name: &'static str,
    /// The event that it acted on.
    pub event: Option<Uuid>,
    /// When it began.
    pub began_at: Timestamp,
    /// How long it took.
    pub took: Duration,
    /// Status of the answer; none when there was no answer to give, or nobody left to take it.
    pub status: Option<u16>,
}

impl Span {
    /// A span whose `trace` is its own, not its parent's; `time` is when it began and how long it took.
    #[must_use]
    pub const fn new(
        kind: SpanKind,
        name: &'static str,
        trace: TraceContext,
        request: RequestId,
        time: (Timestamp, Duration),
    ) -> Self {
        let (began_at, took) = time;
        Self { trace, link: None, request, service: "", kind, name, event: None, began_at, took, status: None }
    }

    /// Names the event that it acted on.
    #[must_use]
    pub const fn of_event(mut self, event: Uuid) -> Self {
        self.event = Some(event);
        self
    }

    /// Links another trace.
    #[must_use]
    pub fn linked(mut self, link: Option<TraceContext>) -> Self {
        self.link = link.map(Box::new);
        self
    }

    /// Says how it was answered.
    #[must_use]
    pub const fn answered(mut self, status: Option<u16>) -> Self {
        self.status = status;
        self
    }
}

/// Keeps spans, within bounds.
pub trait SpanSink: fmt::Debug + Send + Sync {
    /// Takes one; must neither block nor fail.
    fn keep(&self, span: Span);
}

/// Where one program's spans go; nowhere by default. Clones share the sink.
#[derive(Clone, Debug, Default)]
pub struct Spans(Option<(&'static str, Arc<dyn SpanSink>)>);

impl Spans {
    /// The spans of `service` go to `sink`.
    #[must_use]
    pub fn to(sink: Arc<dyn SpanSink>, service: &'static str) -> Self {
        Self(Some((service, sink)))
    }

    /// Hands a span on, unless nobody listens or its trace is not sampled.
    pub fn keep(&self, span: Span) {
        if let Some((service, sink)) = self.0.as_ref().filter(|_| span.trace.sampled()) {
            sink.keep(Span { service, ..span });
        }
    }
}
