//! Everything that nine programs emit, looked at from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use http::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use pim_core::context::TXN_TOKEN_HEADER;
use pim_data::backend::Statement;
use pim_events::Subscriber as _;
use pim_lab::client::Client;
use pim_lab::projections;
use pim_lab::rig::SPANS_PATH;
use pim_lab::routes::ROUTE_LABELS;
use pim_lab::workers::{Stores, commands};
use pim_testkit::caller::Caller;
use pim_testkit::nine::Nine;
use serde_json::Value;

/// The programs of the lab.
pub(super) const PROGRAMS: [&str; 9] = [
    "gateway",
    "session-broker",
    "patient-service",
    "encounter-service",
    "billing-service",
    "admin-service",
    "outbox-processor",
    "projection-worker",
    "persona-simulator",
];
/// Requests whose spans are asked for: the newest.
const REQUESTS_MAX: usize = 150;
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(200);
const PARKED: &str = r#"pim_events_parked_keys{reason="poison"}"#;

/// By program.
pub(super) struct Emitted {
    pub(super) metrics: BTreeMap<&'static str, String>,
    pub(super) logs: BTreeMap<&'static str, String>,
    pub(super) spans: BTreeMap<&'static str, Value>,
    /// What operators are told, by where they ask.
    pub(super) told: BTreeMap<&'static str, String>,
}

impl Emitted {
    pub(super) async fn by(nine: &Nine, sre: &Caller, logs: &Path) -> Self {
        watched(&nine.internal["projection-worker"]).await;
        let of_log = |name: &'static str| {
            let text = std::fs::read_to_string(logs.join(format!("{name}.log"))).unwrap();
            (name, text)
        };
        let logs: BTreeMap<_, _> = PROGRAMS.into_iter().map(of_log).collect();
        let session = nine.session_of(sre.token()).await.unwrap();
        let requests = requests_in(&logs["gateway"]);
        let (mut metrics, mut spans) = (BTreeMap::new(), BTreeMap::new());
        for program in PROGRAMS {
            let url = &nine.internal[program];
            let mut told = Vec::new();
            for request in &requests {
                told.extend(spans_at(url, &session, request).await);
            }
            spans.insert(program, Value::Array(told));
            metrics.insert(program, metrics_at(url).await);
        }
        let told = told_to_operators(nine, sre, &requests).await;
        Self { metrics, logs, spans, told }
    }

    /// Names, kinds and services of spans are of closed sets.
    pub(super) fn check_spans(&self) {
        let consumers = projections::all().into_iter().map(|model| model.name());
        let consumers = consumers.chain(commands().into_iter().map(|command| command.name()));
        let names: BTreeSet<&str> = ROUTE_LABELS.iter().copied().chain(consumers).collect();
        for (program, spans) in &self.spans {
            for span in spans.as_array().unwrap() {
                let text = |member: &str| span[member].as_str().unwrap_or_default();
                assert_eq!(text("service"), *program, "{span}");
                let (kind, name) = (text("kind"), text("name"));
                let is_known = match kind {
                    "server" | "consumer" => names.contains(name),
                    // The persona's operations, and the relay's one.
                    "client" | "producer" => name.bytes().all(|b| b.is_ascii_lowercase() || b"_-.".contains(&b)),
                    _ => false,
                };
                assert!(is_known, "{program} keeps a span that nobody declared: {span}");
            }
        }
    }

    /// The run was not empty: each program has told something, and what was provoked shows.
    pub(super) fn check_that_something_happened(&self) {
        for program in PROGRAMS {
            let counted = self.metrics[program].lines().any(|line| line.contains("_total") && !line.ends_with(" 0"));
            assert!(counted, "{program} has counted nothing");
            assert!(!self.spans[program].as_array().unwrap().is_empty(), "{program} remembers no span");
            // The simulator logs nothing: it tells its people.
            assert_eq!(self.logs[program].is_empty(), program == "persona-simulator", "log of {program}");
            for line in self.logs[program].lines() {
                assert!(
                    serde_json::from_str::<Value>(line).is_ok(),
                    "{program} writes a line that is no object: {line}"
                );
            }
        }
        for (program, series) in [
            ("gateway", r#"pim_edge_requests_total{route="GET /v1/patients",outcome="success"}"#),
            ("gateway", r#"pim_edge_requests_total{route="GET /v1/patients",outcome="refused"}"#),
            ("patient-service", r#"pim_service_requests_total{route="GET /v1/patients",outcome="failed"}"#),
            ("patient-service", r#"pim_service_requests_total{route="POST /v1/patients",outcome="refused"}"#),
            ("outbox-processor", "pim_events_publish_seconds_count{}"),
            ("projection-worker", PARKED),
            ("projection-worker", r#"pim_events_records_total{kind="projection",fate="parked"}"#),
            ("projection-worker", r#"pim_events_records_total{kind="projection",fate="unreadable"}"#),
            ("projection-worker", "pim_events_dead_records{}"),
        ] {
            assert!(value_of(series, &self.metrics[program]) > 0.0, "{program} does not show {series}");
        }
        for program in ["patient-service", "encounter-service", "billing-service"] {
            let says = |line: &str| line.contains("\"http.request\"") && line.contains("\"shard_id\":");
            assert!(self.logs[program].lines().any(says), "no access line of {program} names its shard");
            let counted =
                self.metrics[program].lines().filter(|line| line.starts_with("pim_service_shard_requests_total"));
            assert!(counted.into_iter().any(|line| !line.ends_with(" 0")), "{program} counts nothing by shard");
        }
        for (place, hint) in [
            ("a journey", "\"hops\""),
            ("a journey in words", "complete"),
            ("a drawn journey", "sequenceDiagram"),
            ("the lineage of a patient", "\"agrees\":true"),
            ("the audit trail", "\"user\""),
            ("dead letters", "poison"),
        ] {
            assert!(self.told[place].contains(hint), "{place} was not told: {:.2000}", self.told[place]);
        }
        for (program, event) in [
            ("projection-worker", "key.parked"),
            ("projection-worker", "consumer.waits"),
            ("outbox-processor", "chaos.taken"),
            ("patient-service", "http.request"),
            ("admin-service", "chaos.armed"),
        ] {
            assert!(self.logs[program].contains(event), "{program} has logged no {event}");
        }
    }
}

fn value_of(series: &str, metrics: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}

/// Waits until the gauges have seen what is parked: they are set from time to time. Lines are written much sooner.
async fn watched(url: &str) {
    let since = Instant::now();
    while value_of(PARKED, &metrics_at(url).await) == 0.0 {
        assert!(since.elapsed() < PATIENCE, "nobody looks at what is parked");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Ids of the newest requests of people in an access log.
fn requests_in(log: &str) -> Vec<String> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_people = lines.filter(|line| line["event"] == "http.request" && line["role"].is_string());
    let mut ids: Vec<String> = of_people.filter_map(|line| Some(line["request_id"].as_str()?.to_owned())).collect();
    ids.split_off(ids.len().saturating_sub(REQUESTS_MAX))
}

/// With its examples, so that these are searched too.
async fn metrics_at(url: &str) -> String {
    let accept = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/openmetrics-text"))]);
    let asked = Client::new().exchange(Method::GET, &format!("{url}/metrics"), accept, None, PATIENCE).await.unwrap();
    assert_eq!(asked.0, StatusCode::OK);
    String::from_utf8(asked.2.to_vec()).unwrap()
}

async fn spans_at(url: &str, session: &HeaderValue, request: &str) -> Vec<Value> {
    let shown = HeaderMap::from_iter([(TXN_TOKEN_HEADER, session.clone())]);
    let url = format!("{url}{SPANS_PATH}?request_id={request}");
    let (status, _, body) = Client::new().exchange(Method::GET, &url, shown, None, PATIENCE).await.unwrap();
    assert_eq!(status, StatusCode::OK, "{url}");
    serde_json::from_slice(&body).unwrap()
}

/// Everything of all events but their payloads: in every outbox, and of every record on the bus.
pub(super) async fn event_headers(stores: &Stores) -> String {
    const SELECT: &str = "SELECT topic, event_type, aggregate, traceparent, actor, role FROM outbox_event";
    let mut text = String::new();
    for source in stores.cluster.sources() {
        let db = stores.cluster.database(source).unwrap();
        for row in db.query(Statement::sqlite(SELECT)).await.unwrap() {
            for column in 0..6 {
                text.push_str(row.text(column).unwrap());
                text.push('\n');
            }
        }
    }
    for topic in ["domain.v1", "ops.v1"] {
        for partition in 0..stores.bus.partitions(topic).await.unwrap() {
            let mut offset = 0;
            loop {
                let records = stores.bus.fetch(topic, partition, offset, 500).await.unwrap();
                let Some(last) = records.last() else { break };
                offset = last.offset + 1;
                for (name, value) in records.iter().flat_map(|record| record.headers.iter()) {
                    text.push_str(&format!("{name}={value}\n"));
                }
            }
        }
    }
    text
}

/// The answers of everything that operators ask: journeys in each form, lineage, trail, stores, faults.
async fn told_to_operators(nine: &Nine, sre: &Caller, requests: &[String]) -> BTreeMap<&'static str, String> {
    const JOURNEYS_MAX: usize = 25;
    let mut told: BTreeMap<&'static str, String> = BTreeMap::new();
    let mut ask = async |place: &'static str, url: String, accept: &'static str| {
        let bearer = HeaderValue::from_str(&format!("Bearer {}", sre.token())).unwrap();
        let headers = HeaderMap::from_iter([(AUTHORIZATION, bearer), (ACCEPT, HeaderValue::from_static(accept))]);
        let (status, _, body) = Client::new().exchange(Method::GET, &url, headers, None, PATIENCE).await.unwrap();
        assert!(status.is_success() || status == StatusCode::NOT_FOUND, "{url}: {status}");
        told.entry(place).or_default().push_str(std::str::from_utf8(&body).unwrap());
    };
    let at = |path: &str| format!("{}{path}", nine.gateway);
    for request in requests.iter().rev().take(JOURNEYS_MAX) {
        let journey = at(&format!("/v1/admin/journeys/{request}"));
        ask("a journey", journey.clone(), "application/json").await;
        ask("a journey in words", journey.clone(), "text/plain").await;
        ask("a drawn journey", journey, "text/vnd.mermaid").await;
        ask("the audit trail", at(&format!("/v1/admin/audit?request_id={request}")), "application/json").await;
    }
    for (place, path) in [
        ("outboxes", "/v1/admin/outbox"),
        ("shards", "/v1/admin/shards"),
        ("findings", "/v1/admin/shards/findings"),
        ("moves", "/v1/admin/shards/moves"),
        ("dead letters", "/v1/admin/dead-letters"),
        ("projections", "/v1/admin/projections"),
        ("operations", "/v1/admin/operations"),
        ("faults", "/v1/admin/chaos/flags"),
        ("the run", "/v1/admin/runs/summary"),
    ] {
        ask(place, at(path), "application/json").await;
    }
    // The OpenAPI documents know no data: their examples are as invented as the people are.
    for program in PROGRAMS {
        for path in ["/chaos/flags", "/healthz/shards", "/healthz/ready"] {
            ask("what programs tell inside", format!("{}{path}", nine.internal[program]), "application/json").await;
        }
    }
    told
}

/// The lineage of one of everything that a patient has.
pub(super) async fn lineage_of(sre: &Caller, patient: &str) -> String {
    let mut text = String::new();
    let mut things = vec![("patient".to_owned(), patient.to_owned())];
    for (entity, list) in [("encounter", "encounters"), ("appointment", "appointments"), ("claim", "claims")] {
        let (_, listed) = sre.get(&format!("/v1/patients/{patient}/{list}")).await.unwrap();
        let first = listed["items"][0]["id"].as_str().map(str::to_owned);
        things.extend(first.map(|id| (entity.to_owned(), id)));
    }
    for (entity, id) in things {
        let path = format!("/v1/admin/lineage/{entity}/{id}?verify=true");
        let (status, lineage) = sre.get(&path).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{path}");
        text.push_str(&lineage.to_string());
    }
    text
}
