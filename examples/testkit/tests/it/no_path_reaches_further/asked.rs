//! Over HTTP: the same questions at the gateway, and at the service behind it with the session that the gateway would send.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http::header::{HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use pim_lab::ids::PatientId;
use pim_lab::routes::{Match, find};
use pim_testkit::caller::fresh_key;
use serde_json::{Value, json};
use uuid::Uuid;

use super::people::{Kind, People, Record, Someone, bearer, uuid_of};
use super::{searches, sees, sees_all};

const PATIENCE: Duration = Duration::from_secs(20);

/// One caller at one door.
struct Asking<'a> {
    people: &'a People,
    someone: &'a Someone,
    headers: HeaderMap,
    /// Whether they stand before a service, not before the gateway.
    inside: bool,
}

pub(super) async fn agree(people: &People, someone: &Someone, patient: PatientId, other: PatientId) -> Result<()> {
    let outside = bearer(&someone.token)?;
    for (headers, inside) in [(outside, false), (people.session(someone).await?, true)] {
        let asking = Asking { people, someone, headers, inside };
        asking.records(patient).await?;
        asking.lists(patient).await?;
        asking.models(patient).await?;
        asking.operations(patient).await?;
        asking.writes(patient, other).await?;
    }
    Ok(())
}

impl Asking<'_> {
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Value)> {
        let plain = path.split('?').next().unwrap_or(path);
        let Match::Found(route) = find(&method, plain) else { anyhow::bail!("{path} is no route") };
        let service = self.people.lab.url_of(route.upstream.name()).context("no such service")?;
        let base = if self.inside { service } else { &self.people.lab.gateway };
        let mut headers = self.headers.clone();
        if body.is_some() {
            headers.insert("idempotency-key", HeaderValue::from_str(&fresh_key())?);
        }
        let answer = self.people.client.exchange(method, &format!("{base}{path}"), headers, body, PATIENCE).await?;
        Ok((answer.0, serde_json::from_slice(&answer.2).unwrap_or(Value::Null)))
    }

    /// One thing is shown to whoever sees it, and to nobody else.
    async fn one(&self, path: &str, id: Uuid, is_seen: bool) -> Result<()> {
        let (status, body) = self.ask(Method::GET, path, None).await?;
        let (someone, inside) = (self.someone, self.inside);
        if is_seen {
            assert_eq!(status, StatusCode::OK, "{path} {inside} {someone:?}: {body}");
            let shown = if body["id"].is_null() { &body["patient_id"] } else { &body["id"] };
            assert_eq!(uuid_of(shown)?, id, "{path}");
        } else {
            assert!(is_refusal(status), "{path} {inside} {status} {someone:?}: {body}");
            assert!(!body.to_string().contains("Reach"), "{path}: the refusal tells the name");
        }
        Ok(())
    }

    /// A list shows exactly these; a refused one shows nothing, so there must be nothing to see.
    async fn many(&self, path: &str, member: &str, expected: BTreeSet<Uuid>) -> Result<()> {
        let (status, page) = self.ask(Method::GET, path, None).await?;
        let shown: Result<BTreeSet<Uuid>> =
            page["items"].as_array().into_iter().flatten().map(|item| uuid_of(&item[member])).collect();
        assert!(status == StatusCode::OK || is_refusal(status), "{path} {status}: {page}");
        assert_eq!(shown?, expected, "{path} {} {:?}", self.inside, self.someone);
        Ok(())
    }

    async fn records(&self, patient: PatientId) -> Result<()> {
        let seen = |record: &Record| sees(self.someone, record);
        for record in self.people.of(patient, Kind::Patient) {
            self.one(&format!("/v1/patients/{patient}"), record.id, seen(record)).await?;
            self.one(&format!("/v1/patients/{patient}/summary"), record.id, seen(record)).await?;
        }
        for (kind, name) in [(Kind::Encounter, "encounters"), (Kind::Claim, "claims")] {
            for record in self.people.of(patient, kind) {
                self.one(&format!("/v1/{name}/{}", record.id), record.id, seen(record)).await?;
                // The id of something else leads nowhere, whoever asks.
                self.one(&format!("/v1/patients/{}", record.id), record.id, false).await?;
            }
        }
        Ok(())
    }

    async fn lists(&self, patient: PatientId) -> Result<()> {
        let kinds = [(Kind::Appointment, "appointments"), (Kind::Encounter, "encounters"), (Kind::Claim, "claims")];
        for (kind, name) in kinds {
            let expected = self.people.of(patient, kind).filter(|record| sees(self.someone, record));
            let expected = expected.map(|record| record.id).collect();
            self.many(&format!("/v1/patients/{patient}/{name}"), "id", expected).await?;
        }
        let told = self.people.records.iter().filter(|record| record.kind != Kind::Claim);
        let told = told.filter(|record| record.patient == patient && sees(self.someone, record));
        let told = told.map(|record| record.id).collect();
        self.many(&format!("/v1/patients/{patient}/timeline"), "entity_id", told).await
    }

    async fn models(&self, patient: PatientId) -> Result<()> {
        let everybody = self.people.records.iter().filter(|record| record.kind == Kind::Patient);
        let seen: Vec<_> = everybody.filter(|record| searches(self.someone) && sees(self.someone, record)).collect();
        let ids = |found: &[&Record]| found.iter().map(|record| record.id).collect::<BTreeSet<Uuid>>();
        self.many("/v1/patients?name=Reach", "id", ids(&seen)).await?;
        // What is asked for narrows what is seen, and never widens it.
        for facility in &self.people.facilities {
            let there: Vec<_> = seen.iter().copied().filter(|record| record.facility == *facility).collect();
            self.many(&format!("/v1/patients?facility={facility}"), "id", ids(&there)).await?;
        }
        let behind: Vec<_> = seen.iter().copied().filter(|record| record.patient == patient).collect();
        let born = self.people.patients.iter().position(|known| *known == patient).context("nobody")?;
        self.many(&format!("/v1/patients?birth_date=1970-01-0{}", born + 1), "id", ids(&behind)).await?;
        let all =
            if sees_all(self.someone) { self.people.facilities.iter().copied().collect() } else { BTreeSet::new() };
        self.many("/v1/revenue?from=2000-01-01&to=2100-01-01", "facility_id", all).await
    }

    async fn operations(&self, patient: PatientId) -> Result<()> {
        let is_sre = self.someone.role == "sre";
        for record in self.people.records.iter().filter(|record| record.patient == patient) {
            let entity = match record.kind {
                Kind::Patient => "patient",
                Kind::Appointment => "appointment",
                Kind::Encounter => "encounter",
                Kind::Claim => "claim",
            };
            self.one(&format!("/v1/admin/lineage/{entity}/{}", record.id), record.id, is_sre).await?;
        }
        let (status, trail) = self.ask(Method::GET, "/v1/admin/audit?user_id=all", None).await?;
        assert_eq!(status == StatusCode::OK, sees_all(self.someone), "{:?}: {trail}", self.someone);
        Ok(())
    }

    /// Nothing that is out of sight can be changed, nor anything by way of another patient's path.
    async fn writes(&self, patient: PatientId, other: PatientId) -> Result<()> {
        let record = self.people.of(patient, Kind::Patient).next().context("no such patient")?;
        let place = self.people.facilities.iter().position(|known| *known == record.facility).context("no facility")?;
        let (facility, provider) = (record.facility, self.people.providers[place]);
        let booking = json!({"facility_id": facility, "provider_id": provider, "scheduled_at": "2027-01-15T09:00:00Z"});
        let mut tries = Vec::new();
        if !sees(self.someone, record) {
            tries.push((Method::PATCH, format!("/v1/patients/{patient}"), json!({"given_name": "Eve"})));
            tries.push((Method::POST, format!("/v1/patients/{patient}/transitions"), json!({"to": "active"})));
            tries.push((Method::POST, format!("/v1/patients/{patient}/appointments"), booking.clone()));
            let mut scheduling = booking;
            scheduling["kind"] = json!("office_visit");
            tries.push((Method::POST, format!("/v1/patients/{patient}/encounters"), scheduling));
        }
        if other != patient {
            for encounter in self.people.of(patient, Kind::Encounter) {
                let path = format!("/v1/patients/{other}/encounters/{}/transitions", encounter.id);
                tries.push((Method::POST, path, json!({"to": "archived"})));
            }
            for claim in self.people.of(patient, Kind::Claim) {
                let path = format!("/v1/patients/{other}/claims/{}/transitions", claim.id);
                tries.push((Method::POST, path, json!({"to": "adjudicated"})));
            }
        }
        for (method, path, body) in tries {
            let (status, answer) = self.ask(method, &path, Some(&body)).await?;
            assert!(is_refusal(status), "{path} {} {status} {:?}: {answer}", self.inside, self.someone);
        }
        Ok(())
    }
}

fn is_refusal(status: StatusCode) -> bool {
    [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&status)
}
