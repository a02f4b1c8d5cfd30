//! What is measured of a request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use pim_core::clock::{Clock, Timestamp};
use pim_core::context::{ContextNote, RequestId, TraceContext};
use pim_core::identity::Actor;
use pim_core::redact::Shown;
use pim_core::request_id::TraceLink;
use pim_core::role::ClosedEnum;
use pim_core::shard::ShardId;
use pim_core::signal::{CounterFamily, Descriptor, HistogramFamily, ShardGroup, SignalError, SignalRegistry, Spans};

use crate::log::{LogWriter, Origin, Verdict, line};
use crate::trace::{Span, SpanKind, TraceStore};

/// The one line of a request.
const ACCESS: &str = "http.request";

pim_core::closed_enum! {
    /// How a request ended.
    pub enum Outcome {
        /// Answered below 400.
        Success = "success",
        /// Refused: 4xx.
        Refused = "refused",
        /// Failed: 5xx.
        Failed = "failed",
        /// The caller went away first.
        Cancelled = "cancelled",
    }
}

/// Finds the route of a request among the program's closed set.
pub type RouteOf<R> = fn(&Method, &str) -> R;

/// RED of HTTP requests, by the program's own closed set of routes.
#[derive(Clone, Debug)]
pub struct HttpSignals<R: ClosedEnum> {
    requests: CounterFamily<(R, Outcome)>,
    seconds: HistogramFamily<R>,
    by_shard: Option<ByShard>,
}

#[derive(Clone, Debug)]
struct ByShard {
    requests: CounterFamily<(ShardGroup, Outcome)>,
    seconds: HistogramFamily<ShardGroup>,
}

impl<R: ClosedEnum> HttpSignals<R> {
    /// Binds a counter by (route, outcome) and a histogram by route, as the program declares them.
    ///
    /// # Errors
    /// [`SignalError`] when a descriptor does not fit its labels.
    pub fn bind(
        registry: &mut SignalRegistry,
        requests: &'static Descriptor,
        seconds: &'static Descriptor,
    ) -> Result<Self, SignalError> {
        Ok(Self { requests: registry.counter(requests)?, seconds: registry.histogram(seconds)?, by_shard: None })
    }

    /// Counts and measures by [`ShardGroup`] too, those requests whose work went to a shard.
    ///
    /// # Errors
    /// [`SignalError`] when a descriptor does not fit its labels.
    pub fn by_shard(
        mut self,
        registry: &mut SignalRegistry,
        requests: &'static Descriptor,
        seconds: &'static Descriptor,
    ) -> Result<Self, SignalError> {
        let (requests, seconds) = (registry.counter(requests)?, registry.histogram(seconds)?);
        self.by_shard = Some(ByShard { requests, seconds });
        Ok(self)
    }
}

/// Everything that an observed request is told to.
#[derive(Clone, Debug)]
pub struct Observer<R: ClosedEnum>(Arc<Inner<R>>);

#[derive(Debug)]
struct Inner<R: ClosedEnum> {
    service: &'static str,
    signals: HttpSignals<R>,
    spans: Spans,
    lines: Option<LogWriter>,
    clock: Clock,
    route_of: RouteOf<R>,
}

impl<R: ClosedEnum> Observer<R> {
    /// An observer for one program. Without a writer no access lines are logged.
    #[must_use]
    pub fn new(
        service: &'static str,
        signals: HttpSignals<R>,
        traces: &TraceStore,
        lines: Option<LogWriter>,
        route_of: RouteOf<R>,
    ) -> Self {
        let (spans, clock) = (traces.spans(service), Clock::system());
        Self(Arc::new(Inner { service, signals, spans, lines, clock, route_of }))
    }

    pub(super) fn begin<B>(&self, request: &mut http::Request<B>) -> Measure<R> {
        let note = request.extensions_mut().get_or_insert_default::<ContextNote>().clone();
        let extensions = request.extensions();
        Measure {
            observer: self.clone(),
            route: (self.0.route_of)(request.method(), request.uri().path()),
            method: method_name(request.method()),
            request: extensions.get().copied().unwrap_or_else(RequestId::mint),
            trace: extensions.get().copied().unwrap_or_else(TraceContext::root),
            link: extensions.get().map(|TraceLink(link)| *link),
            began_at: self.0.clock.now(),
            began: Instant::now(),
            status: None,
            // Of an answer to HEAD the head is all, whatever body the service made; nobody asks that body for its end.
            ended: request.method() == Method::HEAD,
            left: None,
            actor: None,
            shard: None,
            note,
        }
    }
}

/// A request under way. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Measure<R: ClosedEnum> {
    observer: Observer<R>,
    route: R,
    method: &'static str,
    request: RequestId,
    trace: TraceContext,
    link: Option<TraceContext>,
    began_at: Timestamp,
    began: Instant,
    pub(super) status: Option<u16>,
    /// Whether the answer went out to its end. A head alone is not an answer.
    pub(super) ended: bool,
    /// Bytes that are still to come of an answer that said how many it has.
    pub(super) left: Option<u64>,
    pub(super) actor: Option<Actor>,
    /// Where the request's work went, when it went to one shard.
    pub(super) shard: Option<ShardId>,
    /// Who and where, in case no answer says so.
    note: ContextNote,
}

impl<R: ClosedEnum> Drop for Measure<R> {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        let outcome = match self.status {
            Some(500..) => Outcome::Failed,
            None => Outcome::Cancelled,
            Some(_) if !self.ended => Outcome::Cancelled,
            Some(..400) => Outcome::Success,
            Some(_) => Outcome::Refused,
        };
        let inner = &self.observer.0;
        inner.signals.requests.get((self.route, outcome)).inc();
        let histogram = inner.signals.seconds.get(self.route);
        // An exemplar is attached only when its trace is kept.
        if self.trace.sampled() {
            histogram.observe_traced(took, self.trace.trace_id());
        } else {
            histogram.observe_duration(took);
        }
        if let (Some(shard), Some(signals)) = (self.shard(), &inner.signals.by_shard) {
            signals.requests.get((ShardGroup::of(shard), outcome)).inc();
            signals.seconds.get(ShardGroup::of(shard)).observe_duration(took);
        }
        let span = Span::new(SpanKind::Server, self.route.name(), self.trace, self.request, (self.began_at, took));
        inner.spans.keep(span.linked(self.link).answered(self.status));
        if let Some(lines) = &inner.lines {
            // What failed is always told.
            let verdict = match outcome {
                Outcome::Failed => Verdict::Write { suppressed: 0 },
                _ => lines.verdict(Origin::Named(ACCESS), Instant::now()),
            };
            if let Verdict::Write { suppressed } = verdict {
                lines.take(self.access_line(outcome, took, suppressed));
            }
        }
    }
}

impl<R: ClosedEnum> Measure<R> {
    fn shard(&self) -> Option<ShardId> {
        self.shard.or_else(|| self.note.context()?.shard())
    }

    fn access_line(&self, outcome: Outcome, took: Duration, suppressed: u64) -> String {
        let actor = self.actor.as_ref().or_else(|| Some(self.note.context()?.actor()));
        let members = [
            ("trace_id", Some(Shown::from(self.trace.trace_id()))),
            ("span_id", Some(Shown::from(self.trace.span_id()))),
            ("request_id", Some(Shown::from(self.request))),
            ("user_id", actor.map(|actor| Shown::from(actor.subject()))),
            ("role", actor.map(|actor| Shown::from(actor.role()))),
            ("shard_id", self.shard().map(Shown::from)),
            ("method", Some(Shown::from(self.method))),
            ("route", Some(Shown::from(self.route.name()))),
            ("status", self.status.map(Shown::from)),
            ("outcome", Some(Shown::from(outcome.name()))),
            ("took_us", Some(Shown::from(took))),
            ("suppressed", (suppressed > 0).then(|| Shown::from(suppressed))),
        ];
        let level = if outcome == Outcome::Failed { "warn" } else { "info" };
        line(self.observer.0.clock.now(), level, self.observer.0.service, ACCESS, &members)
    }
}

fn method_name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "OTHER",
    }
}
