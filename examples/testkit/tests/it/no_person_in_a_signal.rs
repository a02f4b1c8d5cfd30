//! Nothing of the seeded patients is in any log line, metric, event header or problem body of a live run.

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use http::StatusCode;
use pim_core::clock::Clock;
use pim_lab::client::Client;
use pim_testkit::caller::{Caller, fresh_key};
use pim_testkit::folder::Folder;
use pim_testkit::program::Program;
use serde_json::{Value, json};

/// Names, dates of birth, numbers and mail addresses of everybody whom the sre role can find.
async fn particulars(sre: &Caller) -> Vec<String> {
    let mut all = Vec::new();
    for initial in 'a'..='z' {
        let (status, found) = sre.get(&format!("/v1/patients?name={initial}&limit=200")).await.unwrap();
        assert_eq!(status, StatusCode::OK);
        for patient in found["items"].as_array().into_iter().flatten() {
            for member in ["family_name", "birth_date", "syn_number"] {
                all.extend(patient[member].as_str().map(str::to_owned));
            }
        }
    }
    all.push("@example.org".to_owned());
    all.push("202-555-01".to_owned());
    all.sort();
    all.dedup();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_run_with_traffic_and_refusals() {
    let folder = Folder::new("signals").unwrap();
    let (log, data) = (folder.path().join("log"), folder.path().join("data").display().to_string());
    let arguments = ["--data-dir", &data, "--listen", "127.0.0.1:0", "--patients", "300", "--traffic", "8", "--json"];
    let sink = Stdio::from(File::create(&log).unwrap());
    let services = Program::start_logging("services", &arguments, sink).await.unwrap();
    let gateway = services.told("gateway").to_owned();
    let (sre, clinician) =
        (Caller::sign_in(&gateway, "sre").await.unwrap(), Caller::sign_in(&gateway, "clinician").await.unwrap());
    // Bodies that are refused, with something personal in each of them.
    let mut problems = String::new();
    for body in [
        json!({"given_name": "Leakage", "syn_number": "123-45-6789"}),
        json!({"family_name": 7, "mail": "leakage@real.example"}),
        json!("Leakage"),
    ] {
        let (status, problem) = clinician.post("/v1/patients", &fresh_key(), &body).await.unwrap();
        assert!(status.is_client_error(), "{status}");
        problems.push_str(&problem.to_string());
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut metrics = String::new();
    for url in services.ready["services"].as_object().unwrap().values().filter_map(Value::as_str) {
        let (client, url) = (Client::new(), format!("{url}/metrics"));
        let told = client.exchange(http::Method::GET, &url, http::HeaderMap::new(), None, Duration::from_secs(5));
        metrics.push_str(&String::from_utf8_lossy(&told.await.unwrap().2));
    }
    let found = pim_telemetry_undeclared(&metrics);
    assert!(found.is_empty(), "{found:?}");
    let mut personal = particulars(&sre).await;
    personal.extend(["Leakage", "leakage", "123-45-6789"].map(str::to_owned));
    let (code, summary) = services.stop().await.unwrap();
    assert_eq!(code, Some(0), "{summary:?}");
    let lines = std::fs::read_to_string(&log).unwrap();
    assert!(
        lines.lines().filter(|line| line.contains("http.request")).count() > 20,
        "access lines were written:\n{lines}"
    );
    let headers = event_headers(&folder).await;
    assert!(headers.contains("patient.registered"), "events were looked at");
    for (place, text) in [("log", &lines), ("metrics", &metrics), ("problems", &problems), ("event headers", &headers)]
    {
        for particular in &personal {
            assert!(!text.contains(particular.as_str()), "{place} holds {particular}");
        }
    }
}

fn pim_telemetry_undeclared(text: &str) -> std::collections::BTreeSet<String> {
    pim_telemetry::capture::undeclared(text, pim_lab::signals::CATALOGS)
}

/// Everything of the bus's records but their payloads.
async fn event_headers(folder: &Folder) -> String {
    use pim_events::{BusSettings, EmbeddedBus, Subscriber as _};
    let path = folder.path().join("data").join("bus.db");
    let bus = EmbeddedBus::open(&path, BusSettings::default(), Clock::system()).await.unwrap();
    let mut text = String::new();
    for partition in 0..bus.partitions("domain.v1").await.unwrap() {
        for record in bus.fetch("domain.v1", partition, 0, 500).await.unwrap() {
            let event = record.event().unwrap();
            for (name, value) in event.headers().iter() {
                text.push_str(&format!("{name}={value}\n"));
            }
        }
    }
    text
}
