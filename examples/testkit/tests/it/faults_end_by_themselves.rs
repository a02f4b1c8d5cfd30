//! A fault on purpose strikes in every program that it targets, and ends by itself when its lease does, whatever became of the
//! program that armed it; only the sre role may ask for it, and only within bounds.

use std::time::{Duration, Instant};

use http::StatusCode;
use pim_core::clock::{Clock, Timestamp};
use pim_testkit::caller::{Caller, fresh_key};
use pim_testkit::folder::Folder;
use pim_testkit::nine::Nine;
use pim_testkit::program::Program;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

fn is_struck((status, problem): &(StatusCode, Value), point: &str) -> bool {
    *status == StatusCode::SERVICE_UNAVAILABLE && problem["chaos"] == point
}

fn ends_at(flag: &Value) -> Timestamp {
    flag["ends_at"].as_str().and_then(|text| text.parse().ok()).expect("an end")
}

/// Asks until the answer is as wanted.
async fn until(caller: &Caller, path: &str, wanted: impl Fn(&(StatusCode, Value)) -> bool) -> (StatusCode, Value) {
    let since = Instant::now();
    loop {
        let answer = caller.get(path).await.expect("answers");
        if wanted(&answer) {
            return answer;
        }
        assert!(since.elapsed() < PATIENCE, "{path} stays at {answer:?}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_one_process_at_once_and_never_beyond_the_bounds() {
    let arguments = ["--ephemeral", "--listen", "127.0.0.1:0", "--patients", "20", "--traffic", "off", "--json"];
    let services = Program::start("services", &arguments).await.unwrap();
    let gateway = services.told("gateway");
    let sre = Caller::sign_in(gateway, "sre").await.unwrap();
    let clinician = Caller::sign_in(gateway, "clinician").await.unwrap();
    let fault = json!({"fault": "error", "percent": 100, "seconds": 8});
    let (status, _) = clinician.put("/v1/admin/chaos/flags/gateway", &fault).await.unwrap();
    assert_eq!(status, StatusCode::FORBIDDEN);
    let refusals = [
        ("gateway", json!({"fault": "error", "percent": 100, "seconds": 100_000}), 422, "a lease lasts"),
        ("gateway", json!({"fault": "error", "percent": 100, "seconds": 0}), 422, "a lease lasts"),
        ("gateway", json!({"fault": "error", "percent": 0, "seconds": 1}), 422, "a share is"),
        ("gateway", json!({"fault": "error", "seconds": 1}), 422, "missing field `percent`"),
        ("gateway", json!({"fault": "error", "percent": 1}), 422, "missing field `seconds`"),
        ("gateway", json!({"fault": "latency", "percent": 1, "seconds": 1}), 422, "an added latency"),
        ("gateway", json!({"fault": "meteor", "percent": 1, "seconds": 1}), 422, "expected one of"),
        ("moon", fault.clone(), 404, "there is no such point"),
    ];
    for (point, body, status, why) in refusals {
        let (found, problem) = sre.put(&format!("/v1/admin/chaos/flags/{point}"), &body).await.unwrap();
        assert_eq!(found.as_u16(), status, "{problem:#}");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(why)), "{body}: {problem:#}");
    }
    let (status, armed) = sre.put("/v1/admin/chaos/flags/gateway", &fault).await.unwrap();
    assert_eq!((status, &armed["point"]), (StatusCode::OK, &json!("gateway")), "{armed:#}");
    let answer = clinician.get("/v1/patients?name=a").await.unwrap();
    assert!(is_struck(&answer, "gateway"), "{answer:?}");
    until(&clinician, "/v1/patients?name=a", |answer| answer.0 == StatusCode::OK).await;
    assert!(Clock::system().now() >= ends_at(&armed), "the fault ended before its lease");
    let (_, left) = sre.get("/v1/admin/chaos/flags").await.unwrap();
    assert_eq!(left["items"], json!([]));
    // One that would go on is ended by hand, and hangs nobody when the lab stops.
    let long = json!({"fault": "stall", "percent": 100, "seconds": 900});
    for point in ["patient-service", "outbox-relay", "consumer"] {
        let (status, armed) = sre.put(&format!("/v1/admin/chaos/flags/{point}"), &long).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{armed:#}");
    }
    let (status, ended) = sre.delete("/v1/admin/chaos/flags/patient-service").await.unwrap();
    assert_eq!(status, StatusCode::OK, "{ended:#}");
    assert_eq!(clinician.get("/v1/patients?name=a").await.unwrap().0, StatusCode::OK);
    assert_eq!(services.stop().await.unwrap().0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_processes_of_their_own_also_when_the_one_that_armed_it_is_killed() {
    let folder = Folder::new("faults").unwrap();
    let mut nine = Nine::start(folder.path()).await.unwrap();
    let sre = Caller::sign_in(&nine.gateway, "sre").await.unwrap();
    let clinician = Caller::sign_in(&nine.gateway, "clinician").await.unwrap();
    let search = "/v1/patients?name=a";
    // The relay: what is committed stays in the outbox until the lease ends.
    let stall = json!({"fault": "stall", "percent": 100, "seconds": 12});
    let (status, stalled) = sre.put("/v1/admin/chaos/flags/outbox-relay", &stall).await.unwrap();
    assert_eq!(status, StatusCode::OK, "{stalled:#}");
    // Longer than any program takes to look several times: what it knows is told by no program.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let outbox = "/v1/admin/outbox";
    let (status, made) = clinician.post("/v1/patients", &fresh_key(), &clinician.registration(7)).await.unwrap();
    assert_eq!(status, StatusCode::CREATED, "{made:#}");
    until(&sre, outbox, |answer| answer.1["backlog"].as_u64() == Some(0)).await;
    assert!(Clock::system().now() >= ends_at(&stalled), "the relay published during its stall");
    // A service and the gateway, each with its own lease.
    for (point, seconds) in [("patient-service", 60), ("gateway", 12)] {
        let fault = json!({"fault": "error", "percent": 100, "seconds": seconds});
        let (status, armed) = sre.put(&format!("/v1/admin/chaos/flags/{point}"), &fault).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{armed:#}");
        until(&clinician, search, |answer| is_struck(answer, point)).await;
        if point == "patient-service" {
            let (status, ended) = sre.delete("/v1/admin/chaos/flags/patient-service").await.unwrap();
            assert_eq!(status, StatusCode::OK, "{ended:#}");
            until(&clinician, search, |answer| answer.0 == StatusCode::OK).await;
        } else {
            nine.kill("admin-service").await.unwrap();
            until(&clinician, search, |answer| answer.0 == StatusCode::OK).await;
            assert!(Clock::system().now() >= ends_at(&armed), "the fault ended with the one that armed it");
        }
    }
    nine.stop().await.unwrap();
}
