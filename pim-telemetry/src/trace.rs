//! Spans in memory: enough to show a journey without a trace server.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use pim_core::clock::Timestamp;
use pim_core::context::{RequestId, TraceId};
use pim_core::role::ClosedEnum as _;
pub use pim_core::signal::{Span, SpanKind};
use pim_core::signal::{SpanSink, Spans};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A span as programs tell it to each other and to people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanLine {
    /// Which trace.
    pub trace_id: String,
    /// Which span.
    pub span_id: String,
    /// The span that it is a child of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<String>,
    /// What a caller from outside named as its trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Which request.
    pub request_id: RequestId,
    /// Which program.
    pub service: String,
    /// What the program did: `server`, `client`, `producer` or `consumer`.
    pub kind: String,
    /// The route, consumer or handler.
    pub name: String,
    /// The event that it acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<Uuid>,
    /// When it began.
    pub began_at: Timestamp,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// Status of the answer.
    pub status: Option<u16>,
}

/// The newest spans, at most so many. Clones share them.
#[derive(Clone, Debug)]
pub struct TraceStore {
    spans: Arc<Mutex<VecDeque<Span>>>,
    max: usize,
}

impl TraceStore {
    /// A store of at most `max` spans, about 200 bytes each; the oldest go first.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { spans: Arc::default(), max: max.max(1) }
    }

    /// Where the spans of one program go to get here.
    #[must_use]
    pub fn spans(&self, service: &'static str) -> Spans {
        Spans::to(Arc::new(self.clone()), service)
    }

    /// The spans of a trace, oldest first.
    #[must_use]
    pub fn of(&self, trace: TraceId) -> Vec<Span> {
        self.matching(|span| span.trace.trace_id() == trace)
    }

    /// The spans of a request, oldest first.
    #[must_use]
    pub fn of_request(&self, request: RequestId) -> Vec<Span> {
        self.matching(|span| span.request == request)
    }

    /// Everything that is kept, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Span> {
        self.matching(|_| true)
    }

    /// Every trace of which something is kept.
    #[must_use]
    pub fn trace_ids(&self) -> HashSet<TraceId> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.iter().map(|span| span.trace.trace_id()).collect()
    }

    fn matching(&self, wanted: impl Fn(&Span) -> bool) -> Vec<Span> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<_> = spans.iter().filter(|span| wanted(span)).cloned().collect();
        drop(spans);
        found.sort_by_key(|span| span.began_at);
        found
    }
}

impl SpanSink for TraceStore {
    fn keep(&self, span: Span) {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        if spans.len() >= self.max {
            spans.pop_front();
        }
        spans.push_back(span);
    }
}

impl From<&Span> for SpanLine {
    fn from(span: &Span) -> Self {
        Self {
            trace_id: span.trace.trace_id().to_string(),
            span_id: span.trace.span_id().to_string(),
            parent_id: span.trace.parent().map(|parent| parent.to_string()),
            link: span.link.as_ref().map(ToString::to_string),
            request_id: span.request,
            service: span.service.to_owned(),
            kind: span.kind.name().to_owned(),
            name: span.name.to_owned(),
            event_id: span.event,
            began_at: span.began_at,
            took_us: u64::try_from(span.took.as_micros()).unwrap_or(u64::MAX),
            status: span.status,
        }
    }
}

impl SpanLine {
    /// When it ended.
    #[must_use]
    pub fn ended_at(&self) -> Timestamp {
        let took = i64::try_from(self.took_us).unwrap_or(i64::MAX);
        Timestamp::from_micros(self.began_at.as_micros().saturating_add(took))
    }
}
