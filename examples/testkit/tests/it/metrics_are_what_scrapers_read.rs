//! `/metrics` of a live lab, read strictly in both forms; an example's trace is one whose journey can be told.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use pim_lab::client::Client;
use pim_lab::signals::CATALOGS;
use pim_telemetry::capture::undeclared;
use pim_testkit::caller::{Caller, fresh_key};
use pim_testkit::exposition::{Family, Form, examples, read};
use pim_testkit::program::Program;

const PATIENCE: Duration = Duration::from_secs(10);
const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

async fn scraped(url: &str, accept: Option<&'static str>) -> (String, String) {
    let headers: HeaderMap = accept.map(|accept| (ACCEPT, HeaderValue::from_static(accept))).into_iter().collect();
    let (client, url) = (Client::new(), format!("{url}/metrics"));
    let (status, headers, body) = client.exchange(Method::GET, &url, headers, None, PATIENCE).await.unwrap();
    assert_eq!(status, StatusCode::OK);
    (headers[CONTENT_TYPE].to_str().unwrap().to_owned(), String::from_utf8(body.to_vec()).unwrap())
}

fn counted(families: &[Family], name: &str) -> f64 {
    let samples = families.iter().flat_map(|family| &family.samples);
    samples.filter(|sample| sample.name == name).map(|sample| sample.value).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn in_both_forms_and_with_traces_that_lead_somewhere() {
    let arguments = ["--ephemeral", "--listen", "127.0.0.1:0", "--patients", "50", "--traffic", "20", "--json"];
    let lab = Program::start("services", &arguments).await.unwrap();
    let gateway = lab.told("gateway").to_owned();
    let clinician = Caller::sign_in(&gateway, "clinician").await.unwrap();
    let (status, _) = clinician.post("/v1/patients", &fresh_key(), &clinician.registration(7)).await.unwrap();
    assert_eq!(status, StatusCode::CREATED);

    for accept in [None, Some("*/*"), Some("text/plain")] {
        let (kind, text) = scraped(&gateway, accept).await;
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8", "{accept:?}");
        let families = read(&text, Form::Plain).unwrap();
        assert!(counted(&families, "pim_edge_requests_total") >= 2.0);
        assert!(undeclared(&text, CATALOGS).is_empty());
        check_by_promtool(&text);
    }

    let (kind, text) = scraped(&gateway, Some(PROMETHEUS)).await;
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let families = read(&text, Form::Open).unwrap();
    assert!(undeclared(&text, CATALOGS).is_empty());
    let told: BTreeSet<&str> = families.iter().filter_map(|family| family.unit.as_deref()).collect();
    assert!(told.contains("seconds") && told.contains("bytes"), "units are told: {told:?}");
    journey_of_the_registration(&gateway, &families).await;
    let (code, summary) = lab.stop().await.unwrap();
    // A busy machine may be too late for a run that says something; then that is said.
    assert!(matches!(code, Some(0 | 6)), "{summary:?}");
}

/// Prometheus's own reader, where there is one; our rules hold without it.
fn check_by_promtool(text: &str) {
    let mut promtool = Command::new("promtool");
    let started =
        promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = started.spawn() else { return };
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "promtool refuses: {}", String::from_utf8_lossy(&output.stderr));
}

/// The example of the route that was called is the trace of a journey that begins there.
async fn journey_of_the_registration(gateway: &str, families: &[Family]) {
    const ROUTE: &str = "POST /v1/patients";
    let of_route = |name: &'static str| {
        let of_it = examples(families).filter(move |(sample, _)| sample.name == name);
        of_it.filter(|(sample, _)| sample.label("route") == Some(ROUTE))
    };
    let (_, example) = of_route("pim_edge_request_seconds_bucket").next().expect("the route has an example");
    let at_the_service = of_route("pim_service_request_seconds_bucket").next();
    assert!(at_the_service.is_some(), "services have theirs");
    assert_eq!(example.labels.len(), 1);
    let (label, trace) = &example.labels[0];
    assert_eq!(label, "trace_id");
    let sre = Caller::sign_in(gateway, "sre").await.unwrap();
    let since = Instant::now();
    let journey = loop {
        let (status, journey) = sre.get(&format!("/v1/admin/journeys/{trace}")).await.unwrap();
        assert_eq!(status, StatusCode::OK, "the example leads somewhere: {journey:#}");
        if journey["complete"] == true || since.elapsed() > PATIENCE {
            break journey;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(journey["trace_id"], trace.as_str());
    let stages: BTreeSet<&str> =
        journey["hops"].as_array().unwrap().iter().filter_map(|hop| hop["stage"].as_str()).collect();
    assert!(
        ["edge", "service", "commit", "publish", "apply"].iter().all(|stage| stages.contains(stage)),
        "{journey:#}"
    );
}
