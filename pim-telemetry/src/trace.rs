//! Spans in memory: enough to show a journey without a trace server.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pim_core::clock::Timestamp;
use pim_core::context::{RequestId, SpanId, TraceId};
use serde::Serialize;

/// One hop of a request through a program.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Span {
    /// Which trace.
    pub trace: TraceId,
    /// Which span.
    pub span: SpanId,
    /// Which request.
    pub request: RequestId,
    /// Which program.
    pub service: &'static str,
    /// Which route.
    pub route: &'static str,
    /// When it began.
    pub began_at: Timestamp,
    /// How long it took.
    pub took: Duration,
    /// Status of the answer; none when the caller went away.
    pub status: Option<u16>,
}

/// A span for people and machines.
#[derive(Clone, Debug, Serialize)]
pub struct SpanLine {
    /// Which span.
    pub span_id: String,
    /// Which program.
    pub service: &'static str,
    /// Which route.
    pub route: &'static str,
    /// When it began.
    pub began_at: Timestamp,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// Status of the answer.
    pub status: Option<u16>,
}

/// The newest spans, at most so many.
#[derive(Clone, Debug)]
pub struct TraceStore {
    spans: Arc<Mutex<VecDeque<Span>>>,
    max: usize,
}

impl TraceStore {
    /// A store of at most `max` spans; the oldest go first.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { spans: Arc::default(), max: max.max(1) }
    }

    /// Keeps a span.
    pub fn keep(&self, span: Span) {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        if spans.len() >= self.max {
            spans.pop_front();
        }
        spans.push_back(span);
    }

    /// The spans of a trace, oldest first.
    #[must_use]
    pub fn of(&self, trace: TraceId) -> Vec<Span> {
        self.matching(|span| span.trace == trace)
    }

    /// The spans of a request, oldest first.
    #[must_use]
    pub fn of_request(&self, request: RequestId) -> Vec<Span> {
        self.matching(|span| span.request == request)
    }

    fn matching(&self, wanted: impl Fn(&Span) -> bool) -> Vec<Span> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<_> = spans.iter().filter(|span| wanted(span)).cloned().collect();
        found.sort_by_key(|span| span.began_at);
        found
    }
}

impl From<&Span> for SpanLine {
    fn from(span: &Span) -> Self {
        Self {
            span_id: span.span.to_string(),
            service: span.service,
            route: span.route,
            began_at: span.began_at,
            took_us: u64::try_from(span.took.as_micros()).unwrap_or(u64::MAX),
            status: span.status,
        }
    }
}
