//! At the first start portal, timeline and revenue show what patients have behind them, and nothing of it happens twice.

use std::time::Duration;

use http::StatusCode;
use pim_testkit::caller::Caller;
use pim_testkit::program::Program;
use serde_json::{Value, json};

async fn until(caller: &Caller, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..400 {
        let (status, document) = caller.get(path).await.unwrap();
        if status == StatusCode::OK && wanted(&document) {
            return document;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{path} did not become what was expected: {:?}", caller.get(path).await);
}

/// Guard: a claim that came with its encounter is not drafted once more.
#[tokio::test(flavor = "multi_thread")]
async fn in_portal_timeline_and_revenue() {
    let arguments = ["--ephemeral", "--listen", "127.0.0.1:0", "--patients", "200", "--history", "30"];
    let arguments = [&arguments[..], &["--traffic", "off", "--json"]].concat();
    let services = Program::start("services", &arguments).await.unwrap();
    assert!(services.ready["backlog"].is_u64(), "{}", services.ready);
    let gateway = services.told("gateway");
    let patient = Caller::sign_in(gateway, "patient").await.unwrap();
    let own = format!("/v1/patients/{}", patient.patient);
    let summary = until(&patient, &format!("{own}/summary"), |summary| summary["claims"] == 1).await;
    assert_eq!((&summary["state"], &summary["encounters_completed"]), (&json!("active"), &json!(1)), "{summary:#}");
    assert_eq!(summary["appointments_open"], 0, "{summary:#}");
    let told = until(&patient, &format!("{own}/timeline?limit=50"), |timeline| {
        timeline["items"].as_array().is_some_and(|items| items.iter().any(|it| it["event"] == "encounter.completed"))
    })
    .await;
    let events: Vec<_> = told["items"].as_array().unwrap().iter().filter_map(|it| it["event"].as_str()).collect();
    for event in ["patient.registered", "appointment.made", "encounter.started", "encounter.extended"] {
        assert!(events.contains(&event), "{event}: {events:?}");
    }
    let claims = until(&patient, &format!("{own}/claims"), |_| true).await;
    assert_eq!(claims["items"].as_array().map(Vec::len), Some(1), "{claims:#}");
    let admin = Caller::sign_in(gateway, "admin").await.unwrap();
    let is_earned = |revenue: &Value| {
        let lines = revenue["items"].as_array().map_or(&[][..], Vec::as_slice);
        let sum = |member: &str| lines.iter().filter_map(|line| line[member].as_u64()).sum::<u64>();
        sum("claims") > 30 && sum("payments") > 20
    };
    until(&admin, "/v1/revenue?from=2020-01-01&to=2100-01-01", is_earned).await;
    let (code, summary) = services.stop().await.unwrap();
    let summary = summary.unwrap();
    assert_eq!((code, &summary["parked_keys"], &summary["lost"]), (Some(0), &json!(0), &json!(0)), "{summary:#}");
}
