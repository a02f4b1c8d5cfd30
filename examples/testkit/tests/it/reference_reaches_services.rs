//! A change of a facility reaches what services hold in memory, long before they would look again by themselves.

use std::time::{Duration, Instant};

use pim_testkit::caller::{Caller, fresh_key};
use pim_testkit::labs;
use serde_json::{Value, json};

/// Well below the minute after which a service looks again by itself.
const PATIENCE: Duration = Duration::from_secs(25);
const LOOK_EVERY: Duration = Duration::from_millis(50);

struct Told<'a> {
    clinician: &'a Caller,
    number: u64,
}

impl Told<'_> {
    async fn registers(&mut self) -> (u16, Value) {
        self.number += 1;
        let body = self.clinician.registration(self.number);
        let (status, told) = self.clinician.post("/v1/patients", &fresh_key(), &body).await.expect("an answer");
        (status.as_u16(), told)
    }

    async fn until(&mut self, wanted: u16) -> Value {
        let since = Instant::now();
        loop {
            let (status, told) = self.registers().await;
            if status == wanted {
                return told;
            }
            assert!(since.elapsed() < PATIENCE, "still {status}: {told:#}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

async fn check(gateway: &str) {
    let clinician = Caller::sign_in(gateway, "clinician").await.unwrap();
    let admin = Caller::sign_in(gateway, "admin").await.unwrap();
    let facility = format!("/v1/admin/facilities/{}", clinician.facility);
    let mut told = Told { clinician: &clinician, number: 0 };
    let (status, patient) = told.registers().await;
    assert_eq!(status, 201, "{patient:#}");
    let (status, closed) = admin.patch(&facility, &json!({"active": false})).await.unwrap();
    assert_eq!((status.as_u16(), &closed["active"]), (200, &json!(false)), "{closed:#}");
    let refused = told.until(422).await;
    assert_eq!(refused["type"], "urn:pim:problem:inactive-reference");
    assert_eq!(refused["pointer"], "/facility_id");
    let encounters = format!("/v1/patients/{}/encounters", patient["id"].as_str().unwrap());
    let scheduling = json!({"facility_id": clinician.facility, "provider_id": clinician.facility, "kind": "telehealth",
        "scheduled_at": "2026-03-02T09:00:00Z"});
    let (status, open) = admin.patch(&facility, &json!({"active": true})).await.unwrap();
    assert_eq!((status.as_u16(), &open["version"]), (200, &json!(3)), "{open:#}");
    let _registered = told.until(201).await;
    // A provider that there is not, at another service.
    let (status, refused) = clinician.post(&encounters, &fresh_key(), &scheduling).await.unwrap();
    assert_eq!((status.as_u16(), &refused["pointer"]), (422, &json!("/provider_id")), "{refused:#}");
    assert_eq!(refused["type"], "urn:pim:problem:unknown-reference");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_one_process() {
    labs::in_one_process(check).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_processes_of_their_own() {
    labs::in_processes_of_their_own("reference", check).await.unwrap();
}
