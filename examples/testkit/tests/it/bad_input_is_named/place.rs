//! The whole lab over real sockets, with a patient, an encounter and a claim that nobody works on meanwhile.

use std::collections::BTreeMap;

use anyhow::Result;
use pim_lab::compose::{Lab, LabSettings, Settled, settle};
use pim_lab::jobs::UpkeepSettings;
use pim_lab::rig::PostgresSettings;
use pim_lab::seed::{SeedSettings, seed};
use pim_lab::signals::Hub;
use pim_testkit::caller::{Caller, fresh_key};
use pim_testkit::folder::Folder;
use pim_testkit::raw::{self, RawAnswer};
use serde_json::{Value, json};

use super::case::{Case, Who};

pub(super) struct Place {
    pub(super) lab: Lab,
    pub(super) clinician: Caller,
    tokens: BTreeMap<Who, String>,
    /// Registered, never moved on.
    pub(super) patient: String,
    /// Somebody else, in another bucket.
    pub(super) stranger: String,
    /// Scheduled.
    pub(super) encounter: String,
    /// Of the stranger.
    pub(super) elsewhere: String,
    /// A draft, of the patient.
    pub(super) claim: String,
    _folder: Folder,
}

async fn made(caller: &Caller, path: &str, body: &Value) -> String {
    let (status, made) = caller.post(path, &fresh_key(), body).await.expect("an answer");
    assert!(status.is_success(), "{path}: {made:#}");
    made["id"].as_str().expect("an id").to_owned()
}

impl Place {
    pub(super) async fn open() -> Self {
        let folder = Folder::new("bad-input").unwrap();
        let lab = Lab::start(LabSettings {
            data_dir: folder.path().to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
            shards: Some(2),
            postgres: PostgresSettings::default(),
            in_flight_max: 64,
            persona_calls_per_second: 100_000,
            upkeep: UpkeepSettings::default(),
            hub: Hub::new(None).unwrap(),
        });
        let lab = lab.await.unwrap();
        seed(&lab.stores, &SeedSettings { patients: 20, seed: 1, history_percent: 0 }, |_| {}).await.unwrap();
        let clinician = Caller::sign_in(&lab.gateway, "clinician").await.unwrap();
        let mut tokens = BTreeMap::from([(Who::Clinician, clinician.token().to_owned())]);
        for (who, role) in [(Who::Patient, "patient"), (Who::Admin, "admin"), (Who::Sre, "sre")] {
            tokens.insert(who, Caller::sign_in(&lab.gateway, role).await.unwrap().token().to_owned());
        }
        let patient = made(&clinician, "/v1/patients", &clinician.registration(1)).await;
        let stranger = made(&clinician, "/v1/patients", &clinician.registration(2)).await;
        let scheduling = json!({"facility_id": clinician.facility, "provider_id": clinician.provider,
            "kind": "telehealth", "scheduled_at": "2026-03-02T09:00:00Z"});
        let of = |patient: &str| format!("/v1/patients/{patient}/encounters");
        let encounter = made(&clinician, &of(&patient), &scheduling).await;
        let elsewhere = made(&clinician, &of(&stranger), &scheduling).await;
        let held = made(&clinician, &of(&patient), &scheduling).await;
        for to in ["in_progress", "completed"] {
            made(&clinician, &format!("{}/{held}/transitions", of(&patient)), &json!({"to": to})).await;
        }
        assert_eq!(settle(&lab.stores).await, Settled::Yes, "the claim is drafted, and nothing goes on by itself");
        let (_, claims) = clinician.get(&format!("/v1/patients/{patient}/claims")).await.unwrap();
        let claim = claims["items"][0]["id"].as_str().expect("a claim").to_owned();
        Self { lab, clinician, tokens, patient, stranger, encounter, elsewhere, claim, _folder: folder }
    }

    pub(super) async fn send(&self, case: &Case) -> Result<RawAnswer> {
        let token = self.tokens.get(&case.who).map(String::as_str);
        raw::exchange(&self.lab.gateway, &case.bytes(token)).await
    }

    pub(super) async fn close(self) {
        self.lab.stop().await;
    }
}
