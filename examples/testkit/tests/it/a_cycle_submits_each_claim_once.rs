//! A billing cycle submits the draft claims of its period: each once, and revenue shows them.

use std::time::Duration;

use http::StatusCode;
use pim_core::clock::{Clock, Timestamp};
use pim_lab::jobs::PERIOD_SETTLES;
use pim_testkit::caller::{Caller, fresh_key};
use pim_testkit::program::Program;
use serde_json::{Value, json};

const PATIENTS: u64 = 3;
const HOUR: Duration = Duration::from_secs(3600);

async fn until(caller: &Caller, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..400 {
        let (status, document) = caller.get(path).await.unwrap();
        if status == StatusCode::OK && wanted(&document) {
            return document;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{path} did not become what was expected: {:?}", caller.get(path).await);
}

async fn completed(clinician: &Caller, number: u64) -> String {
    let post = async |path: String, body: Value| {
        let (status, record) = clinician.post(&path, &fresh_key(), &body).await.unwrap();
        assert!(status.is_success(), "{path}: {status} {record:#}");
        record["id"].as_str().unwrap_or_default().to_owned()
    };
    let patient = post("/v1/patients".to_owned(), clinician.registration(number)).await;
    let scheduling = json!({"facility_id": clinician.facility, "provider_id": clinician.provider, "kind": "wellness",
        "scheduled_at": "2026-01-01T00:00:00Z"});
    let encounter = post(format!("/v1/patients/{patient}/encounters"), scheduling).await;
    for to in ["in_progress", "completed"] {
        post(format!("/v1/patients/{patient}/encounters/{encounter}/transitions"), json!({"to": to})).await;
    }
    patient
}

#[tokio::test(flavor = "multi_thread")]
async fn and_revenue_shows_them() {
    let arguments = ["--ephemeral", "--listen", "127.0.0.1:0", "--patients", "20", "--history", "0"];
    let arguments = [&arguments[..], &["--traffic", "off", "--json"]].concat();
    let services = Program::start("services", &arguments).await.unwrap();
    let gateway = services.told("gateway");
    let clinician = Caller::sign_in(gateway, "clinician").await.unwrap();
    let admin = Caller::sign_in(gateway, "admin").await.unwrap();
    let mut patients = Vec::new();
    for number in 0..PATIENTS {
        patients.push(completed(&clinician, number).await);
    }
    for patient in &patients {
        let path = format!("/v1/patients/{patient}/claims");
        until(&clinician, &path, |claims| claims["items"][0]["state"] == "draft").await;
    }
    let now = Clock::system().now();
    let period_to = |to: Timestamp| json!({"from": "2020-01-01T00:00:00Z", "to": to});
    // A period that goes on is billed by nobody, however slow this machine is. Another one ends now.
    let (period, too_long) = (period_to(now), period_to(now.plus(HOUR)));
    let early = admin.post("/v1/billing-cycles", &fresh_key(), &too_long).await.unwrap();
    assert_eq!((early.0, &early.1["type"]), (StatusCode::CONFLICT, &json!("urn:pim:problem:period-not-over")));
    tokio::time::sleep(PERIOD_SETTLES + Duration::from_millis(100)).await;
    // Twice: the second finds nothing that is still a draft.
    for submitted in [PATIENTS, 0] {
        let (status, cycle) = admin.post("/v1/billing-cycles", &fresh_key(), &period).await.unwrap();
        assert_eq!(status, StatusCode::CREATED, "{cycle:#}");
        let done = until(&admin, "/v1/billing-cycles", |cycles| {
            let mine = cycles["items"].as_array().and_then(|all| all.iter().find(|it| it["id"] == cycle["id"]));
            mine.is_some_and(|mine| mine["state"] == "done")
        })
        .await;
        let mine = done["items"].as_array().unwrap().iter().find(|it| it["id"] == cycle["id"]).unwrap().clone();
        assert_eq!(mine["submitted"], submitted, "{mine:#}");
    }
    let all_claims = |document: &Value| {
        let lines = document["items"].as_array().map_or(&[][..], Vec::as_slice);
        lines.iter().filter_map(|line| line["claims"].as_u64()).sum::<u64>() == PATIENTS
    };
    until(&admin, "/v1/revenue?from=2020-01-01&to=2100-01-01", all_claims).await;
    let (code, summary) = services.stop().await.unwrap();
    assert_eq!(code, Some(0), "{summary:?}");
}
