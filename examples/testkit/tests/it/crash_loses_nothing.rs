//! SIGKILL at seeded random instants under mixed writes: what was acknowledged is there afterwards, once, and verifies.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use pim_testkit::caller::{Caller, fresh_key};
use pim_testkit::folder::Folder;
use pim_testkit::program::Program;
use pim_testkit::random::Random;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

const WRITERS: u64 = 8;

/// What the system said it had done: version and state of each record, by its path.
type Acknowledged = Arc<Mutex<BTreeMap<String, (u64, String)>>>;

async fn start(data_dir: &Path) -> Program {
    let data_dir = data_dir.display().to_string();
    let arguments =
        ["--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--patients", "50", "--traffic", "off", "--json"];
    Program::start("services", &arguments).await.expect("services starts on the same directory")
}

/// Registers patients and takes each through an encounter until the process is gone.
async fn write(gateway: String, number: Arc<AtomicU64>, in_flight: Arc<AtomicU64>, acknowledged: Acknowledged) {
    let Ok(caller) = Caller::sign_in(&gateway, "clinician").await else { return };
    loop {
        let body = caller.registration(number.fetch_add(1, Ordering::Relaxed));
        let Some(patient) = step(&caller, "/v1/patients", &body, &in_flight, &acknowledged, "/v1/patients").await
        else {
            return;
        };
        let id = patient["id"].as_str().unwrap_or_default().to_owned();
        let scheduling = json!({"facility_id": caller.facility, "provider_id": caller.provider, "kind": "telehealth",
            "scheduled_at": "2026-01-01T00:00:00Z"});
        let path = format!("/v1/patients/{id}/encounters");
        let Some(encounter) = step(&caller, &path, &scheduling, &in_flight, &acknowledged, "/v1/encounters").await
        else {
            return;
        };
        let path = format!("{path}/{}", encounter["id"].as_str().unwrap_or_default());
        for (part, body) in [
            ("transitions", json!({"to": "in_progress"})),
            ("diagnoses", json!({"code": "J45.909"})),
            ("transitions", json!({"to": "completed"})),
        ] {
            let path = format!("{path}/{part}");
            if step(&caller, &path, &body, &in_flight, &acknowledged, "/v1/encounters").await.is_none() {
                return;
            }
        }
    }
}

/// One write; `None` when the process was gone.
async fn step(
    caller: &Caller,
    path: &str,
    body: &Value,
    in_flight: &AtomicU64,
    acknowledged: &Acknowledged,
    read_under: &str,
) -> Option<Value> {
    in_flight.fetch_add(1, Ordering::SeqCst);
    let answer = caller.post(path, &fresh_key(), body).await;
    let Ok((status, record)) = answer else { return None };
    in_flight.fetch_sub(1, Ordering::SeqCst);
    // A gateway that is losing its services may refuse; that promises nothing.
    if !status.is_success() {
        return None;
    }
    let id = record["id"].as_str().unwrap_or_default();
    let (version, state) = (record["version"].as_u64()?, record["state"].as_str()?.to_owned());
    acknowledged.lock().await.insert(format!("{read_under}/{id}"), (version, state));
    Some(record)
}

async fn check(gateway: &str, acknowledged: &Acknowledged) {
    let caller = Caller::sign_in(gateway, "clinician").await.unwrap();
    for (path, (version, state)) in acknowledged.lock().await.iter() {
        let (status, record) = caller.get(path).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{path} was acknowledged and is gone");
        let found = record["version"].as_u64().unwrap();
        // Later versions may have been written without their acknowledgement having arrived.
        assert!(found >= *version, "{path} was acknowledged in version {version} and is back at {found}");
        assert!(
            found > *version || record["state"] == state.as_str(),
            "{path} is {} instead of {state}",
            record["state"]
        );
    }
}

/// Waits until nothing is on its way, then asks what the stores say.
async fn settled(gateway: &str) -> Value {
    let sre = Caller::sign_in(gateway, "sre").await.unwrap();
    for _ in 0..600 {
        let (status, summary) = sre.get("/v1/admin/runs/summary").await.unwrap();
        let is_quiet = summary["outbox_backlog"] == 0 && summary["consumer_lag"] == 0;
        if status == StatusCode::OK && is_quiet && summary["holds"] == true {
            return summary;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (status, summary) = sre.get("/v1/admin/runs/summary").await.unwrap();
    panic!("the flow did not come to rest: {status} {summary:#}");
}

/// Lineage of a few of the records: history, audit and row agree.
async fn check_lineage(gateway: &str, acknowledged: &Acknowledged) {
    let sre = Caller::sign_in(gateway, "sre").await.unwrap();
    for path in acknowledged.lock().await.keys().rev().take(10) {
        let (kind, id) = path.trim_start_matches("/v1/").split_once('/').unwrap();
        let entity = kind.trim_end_matches('s');
        let (status, told) = sre.get(&format!("/v1/admin/lineage/{entity}/{id}?verify=true")).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{path}");
        assert_eq!(told["verify"]["agrees"], true, "{path}: {told:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_every_kill_the_acknowledged_is_there_once() {
    let kills: u64 = std::env::var("LAB_TEST_CRASH_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let folder = Folder::new("crash").unwrap();
    let (acknowledged, number) = (Acknowledged::default(), Arc::new(AtomicU64::new(1)));
    let mut random = Random::of(20_260_301);
    let mut caught = 0;
    for kill in 0..kills {
        let services = start(folder.path()).await;
        let gateway = services.told("gateway").to_owned();
        let in_flight = Arc::new(AtomicU64::new(0));
        let mut writers = JoinSet::new();
        for _ in 0..WRITERS {
            let (gateway, number) = (gateway.clone(), Arc::clone(&number));
            writers.spawn(write(gateway, number, Arc::clone(&in_flight), Arc::clone(&acknowledged)));
        }
        tokio::time::sleep(Duration::from_millis(150 + random.below(600))).await;
        let flying = in_flight.load(Ordering::SeqCst);
        services.kill().await.unwrap();
        while writers.join_next().await.is_some() {}
        caught += flying;
        let total = acknowledged.lock().await.len();
        println!("kill {kill}: {flying} writes in flight, {total} records acknowledged so far");
    }
    assert!(caught > 0, "no kill caught a write in flight: the test shows nothing");
    let services = start(folder.path()).await;
    let gateway = services.told("gateway").to_owned();
    let summary = settled(&gateway).await;
    check(&gateway, &acknowledged).await;
    check_lineage(&gateway, &acknowledged).await;
    let (code, last) = services.stop().await.unwrap();
    assert_eq!(code, Some(0), "{last:?}");
    let records = acknowledged.lock().await.len();
    println!(
        "{kills} kills, {caught} writes in flight, {records} records checked, {} facts, audit verified",
        summary["facts"]
    );
}
