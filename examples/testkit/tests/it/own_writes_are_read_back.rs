//! Whoever has written finds it in every read model that the answer's token is brought to, without waiting by themselves.

use std::time::{Duration, Instant};

use http::StatusCode;
use pim_testkit::caller::Caller;
use pim_testkit::labs;
use serde_json::Value;

/// Enough that a model that is asked too early would be caught at least once.
const PATIENTS: u64 = 20;

/// The first answer but for that the model is behind, as it may be for a while on a busy machine.
async fn answered(clinician: &Caller, path: &str, token: &str) -> (StatusCode, Value) {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        let (status, told) = clinician.get_after(path, token).await.unwrap();
        let is_behind = status == StatusCode::GATEWAY_TIMEOUT || told["type"] == "urn:pim:problem:read-model-behind";
        if !is_behind || Instant::now() > give_up {
            return (status, told);
        }
    }
}

async fn check(gateway: &str) {
    let clinician = Caller::sign_in(gateway, "clinician").await.unwrap();
    for number in 0..PATIENTS {
        let body = clinician.registration(number);
        let (patient, token) = clinician.post_for_token("/v1/patients", &body).await.unwrap();
        let id = patient["id"].as_str().unwrap();
        let summary = answered(&clinician, &format!("/v1/patients/{id}/summary"), &token).await;
        assert_eq!((summary.0.as_u16(), summary.1["patient_id"].as_str()), (200, Some(id)), "{:#}", summary.1);
        let timeline = answered(&clinician, &format!("/v1/patients/{id}/timeline"), &token).await;
        assert_eq!(timeline.1["items"].as_array().map(Vec::len), Some(1), "{:#}", timeline.1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_one_process() {
    labs::in_one_process(check).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_processes_of_their_own() {
    labs::in_processes_of_their_own("read-back", check).await.unwrap();
}
