//! One measurement, one line, one span a request; a caller who goes away is an outcome of its own.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use pim_core::context::TraceContext;
use pim_core::shard::ShardId;
use pim_core::signal::{Descriptor, Kind, LATENCY_SECONDS, LabelDescriptor, Purpose, SignalRegistry};
use pim_telemetry::exposition::{Format, render};
use pim_telemetry::observe::{HttpSignals, ObserveLayer, Observer};
use pim_telemetry::trace::{Span, SpanKind, TraceStore};
use pim_telemetry::{LogSettings, LogWriter};
use serde_json::Value;
use tower::{Layer as _, ServiceExt as _};

pim_core::closed_enum! {
    pub(crate) enum Route { Stock = "GET /stock", Other = "other" }
}

const ROUTE: LabelDescriptor = LabelDescriptor { name: "route", values: &["GET /stock", "other"] };
const OUTCOME: LabelDescriptor =
    LabelDescriptor { name: "outcome", values: &["success", "refused", "failed", "cancelled"] };

const fn signal(name: &'static str, kind: Kind, labels: &'static [LabelDescriptor]) -> Descriptor {
    let (buckets, unit): (&[f64], _) =
        if matches!(kind, Kind::Histogram) { (LATENCY_SECONDS, "seconds") } else { (&[], "") };
    Descriptor { name, kind, unit, help: "test", labels, purpose: Purpose::Red, buckets, owner: "test", runbook: "" }
}

static REQUESTS: Descriptor = signal("shop_requests", Kind::Counter, &[ROUTE, OUTCOME]);
static SECONDS: Descriptor = signal("shop_request_seconds", Kind::Histogram, &[ROUTE]);
const SHARD: LabelDescriptor =
    LabelDescriptor { name: "shard", values: &["0", "1", "2", "3", "4", "5", "6", "7", "above"] };
static SHARD_REQUESTS: Descriptor = signal("shop_shard_requests", Kind::Counter, &[SHARD, OUTCOME]);
static SHARD_SECONDS: Descriptor = signal("shop_shard_request_seconds", Kind::Histogram, &[SHARD]);

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) struct World {
    pub(crate) registry: SignalRegistry,
    traces: TraceStore,
    lines: Lines,
    pub(crate) writer: LogWriter,
    pub(crate) layer: ObserveLayer<Route>,
}

impl World {
    /// The access lines.
    pub(crate) fn told(&self) -> Vec<Value> {
        self.writer.flush();
        let lines = String::from_utf8(self.lines.0.lock().unwrap().clone()).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub(crate) fn world() -> World {
    let mut registry = SignalRegistry::new();
    let signals = HttpSignals::bind(&mut registry, &REQUESTS, &SECONDS).unwrap();
    let signals = signals.by_shard(&mut registry, &SHARD_REQUESTS, &SHARD_SECONDS).unwrap();
    let (traces, lines) = (TraceStore::new(10), Lines::default());
    let writer = LogWriter::start("shop", lines.clone(), &LogSettings::default()).unwrap();
    let route_of = |_: &Method, path: &str| if path == "/stock" { Route::Stock } else { Route::Other };
    let observer = Observer::new("shop", signals, &traces, Some(writer.clone()), route_of);
    World { registry, traces, lines, writer, layer: ObserveLayer::new(observer) }
}

fn request(trace: TraceContext) -> Request<()> {
    let mut request = Request::get("/stock").body(()).unwrap();
    request.extensions_mut().insert(trace);
    request
}

#[tokio::test]
async fn an_answer_is_measured_when_its_body_ends() {
    let world = world();
    let trace = TraceContext::root();
    let service = world.layer.layer(tower::service_fn(|_: Request<()>| async {
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(b"bolts"))))
    }));
    let response = service.oneshot(request(trace)).await.unwrap();
    assert!(world.traces.of(trace.trace_id()).is_empty(), "the body has not ended");
    response.into_body().collect().await.unwrap();
    let spans = world.traces.of(trace.trace_id());
    assert_eq!((spans.len(), spans[0].status, spans[0].name), (1, Some(200), "GET /stock"));
    let text = world.registry.encode();
    assert!(text.contains("shop_requests_total{route=\"GET /stock\",outcome=\"success\"} 1"), "{text}");
    assert!(text.contains(&trace.trace_id().to_string()), "an exemplar names the kept trace");
    world.writer.flush();
    let lines = String::from_utf8(world.lines.0.lock().unwrap().clone()).unwrap();
    assert_eq!(lines.lines().count(), 1, "{lines}");
    let line: Value = serde_json::from_str(lines.trim()).unwrap();
    assert_eq!((&line["status"], &line["route"]), (&200.into(), &"GET /stock".into()));
}

#[tokio::test]
async fn a_shard_that_the_work_went_to_is_told_and_counted() {
    let world = world();
    for shard in [Some(ShardId(3)), Some(ShardId(12)), None] {
        let service = world.layer.layer(tower::service_fn(move |_: Request<()>| async move {
            let mut response = Response::new(Full::new(Bytes::new()));
            if let Some(shard) = shard {
                response.extensions_mut().insert(shard);
            }
            Ok::<_, std::convert::Infallible>(response)
        }));
        let response = service.oneshot(request(TraceContext::root())).await.unwrap();
        assert!(response.extensions().get::<ShardId>().is_none(), "it goes no further");
        response.into_body().collect().await.unwrap();
    }
    world.writer.flush();
    let lines = String::from_utf8(world.lines.0.lock().unwrap().clone()).unwrap();
    let told: Vec<_> = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect();
    assert_eq!((&told[0]["shard_id"], &told[1]["shard_id"]), (&3.into(), &12.into()), "{lines}");
    assert!(told[2].get("shard_id").is_none(), "{lines}");
    let text = world.registry.encode();
    for line in [
        "shop_shard_requests_total{shard=\"3\",outcome=\"success\"} 1",
        "shop_shard_requests_total{shard=\"above\",outcome=\"success\"} 1",
        "shop_shard_requests_total{shard=\"0\",outcome=\"success\"} 0",
        "shop_shard_request_seconds_count{shard=\"3\"} 1",
    ] {
        assert!(text.contains(line), "no {line} in {text}");
    }
}

#[tokio::test]
async fn a_caller_who_goes_away_is_an_outcome_of_its_own() {
    let world = world();
    let service = world.layer.layer(tower::service_fn(|_: Request<()>| {
        std::future::pending::<Result<Response<Full<Bytes>>, std::convert::Infallible>>()
    }));
    drop(service.oneshot(request(TraceContext::root())));
    // Called, then dropped: the first line above never polls, so nothing has begun.
    let service = world.layer.layer(tower::service_fn(|_: Request<()>| {
        std::future::pending::<Result<Response<Full<Bytes>>, std::convert::Infallible>>()
    }));
    let waiting = tokio::time::timeout(std::time::Duration::ZERO, service.oneshot(request(TraceContext::root())));
    assert!(waiting.await.is_err());
    let text = world.registry.encode();
    assert!(text.contains("shop_requests_total{route=\"GET /stock\",outcome=\"cancelled\"} 1"), "{text}");
}

#[tokio::test]
async fn a_caller_who_goes_away_in_the_middle_is_no_success() {
    let world = world();
    let service = world.layer.layer(tower::service_fn(|_: Request<()>| async {
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(b"bolts"))))
    }));
    let response = service.oneshot(request(TraceContext::root())).await.unwrap();
    drop(response);
    let text = world.registry.encode();
    assert!(text.contains("shop_requests_total{route=\"GET /stock\",outcome=\"cancelled\"} 1"), "{text}");
    assert!(text.contains("shop_requests_total{route=\"GET /stock\",outcome=\"success\"} 0"), "{text}");
}

/// Guard: `left_behind`. A server asks a body that does not foresee its end for no more than it has announced.
#[tokio::test]
async fn who_was_sent_all_that_was_announced_did_not_go_away() {
    for (asked_for, outcome) in [(2, "success"), (1, "cancelled")] {
        let world = world();
        let service = world.layer.layer(tower::service_fn(|_: Request<()>| async {
            let frames = ["bo", "lts"].map(|part| Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(part))));
            let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)));
            response.headers_mut().insert("content-length", 5.into());
            Ok::<_, std::convert::Infallible>(response)
        }));
        let mut body = service.oneshot(request(TraceContext::root())).await.unwrap().into_body();
        for _ in 0..asked_for {
            assert!(body.frame().await.is_some());
        }
        drop(body);
        assert_eq!(world.told()[0]["outcome"], outcome);
    }
}

/// Nobody asks for the body of an answer to HEAD, and many a service makes one.
#[tokio::test]
async fn an_answer_to_head_is_its_head() {
    let world = world();
    let service = world.layer.layer(tower::service_fn(|_: Request<()>| async {
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(b"bolts"))))
    }));
    let mut request = request(TraceContext::root());
    *request.method_mut() = Method::HEAD;
    drop(service.oneshot(request).await.unwrap());
    let text = world.registry.encode();
    assert!(text.contains("shop_requests_total{route=\"GET /stock\",outcome=\"success\"} 1"), "{text}");
    assert_eq!((&world.told()[0]["method"], &world.told()[0]["outcome"]), (&"HEAD".into(), &"success".into()));
    // One that is given up before it has an answer is none.
    let service = world.layer.layer(tower::service_fn(|_: Request<()>| {
        std::future::pending::<Result<Response<Full<Bytes>>, std::convert::Infallible>>()
    }));
    let request = Request::head("/stock").body(()).unwrap();
    assert!(tokio::time::timeout(std::time::Duration::ZERO, service.oneshot(request)).await.is_err());
    assert_eq!(world.told()[1]["outcome"], "cancelled");
}

#[tokio::test]
async fn an_example_goes_with_its_trace_and_is_not_in_plain_text() {
    let world = world();
    let trace = TraceContext::root();
    let service = world.layer.layer(tower::service_fn(|_: Request<()>| async {
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::new())))
    }));
    service.oneshot(request(trace)).await.unwrap().into_body().collect().await.unwrap();
    let shown = |format| render(&world.registry, format, &world.traces);
    let example = format!(" # {{trace_id=\"{}\"}} ", trace.trace_id());
    let open = shown(Format::OpenMetrics);
    assert!(open.contains(&example) && open.contains("# UNIT shop_request_seconds seconds\n"), "{open}");
    let plain = shown(Format::Plain);
    assert!(!plain.contains(" # "), "{plain}");
    assert!(plain.contains("# TYPE shop_requests_total counter\n") && !plain.contains("# EOF"), "{plain}");
    assert!(plain.contains("# HELP shop_requests_total test.\n# TYPE shop_requests_total counter\n"), "{plain}");
    assert!(plain.contains("shop_requests_total{route=\"GET /stock\",outcome=\"success\"} 1\n"), "{plain}");
    // Ten more requests push the span out of the store, which has room for ten.
    for _ in 0..10 {
        let other = TraceContext::root();
        let began = (pim_core::clock::Clock::system().now(), std::time::Duration::ZERO);
        let id = pim_core::context::RequestId::mint();
        world.traces.spans("shop").keep(Span::new(SpanKind::Server, "GET /stock", other, id, began));
    }
    let open = shown(Format::OpenMetrics);
    assert!(!open.contains(&example) && open.ends_with("# EOF\n"), "the trace is gone, and so is the example: {open}");
}

#[tokio::test]
async fn an_unsampled_trace_leaves_no_exemplar() {
    let world = world();
    let trace = TraceContext::root().with_sampled(false);
    let service = world.layer.layer(tower::service_fn(|_: Request<()>| async {
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::new())))
    }));
    service.oneshot(request(trace)).await.unwrap().into_body().collect().await.unwrap();
    assert!(!world.registry.encode().contains(&trace.trace_id().to_string()));
}
