//! A lab with three facilities, patients who are treated at several, and callers of every role.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use pim_core::context::IdempotencyScope;
use pim_lab::broker::{Persona, PersonaDirectory, gateway_secret};
use pim_lab::client::Client;
use pim_lab::compose::{Lab, LabSettings, Settled, settle};
use pim_lab::ids::PatientId;
use pim_lab::jobs::UpkeepSettings;
use pim_lab::rig::PostgresSettings;
use pim_lab::signals::Hub;
use pim_testkit::caller::fresh_key;
use pim_testkit::folder::Folder;
use pim_testkit::session::session_of;
use serde_json::{Value, json};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(20);
const FACILITIES: usize = 3;
const PATIENTS: usize = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Patient,
    Appointment,
    Encounter,
    Claim,
}

/// A row as the oracle knows it.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) id: Uuid,
    pub(super) patient: PatientId,
    pub(super) facility: Uuid,
}

/// A caller as the oracle knows them.
#[derive(Clone)]
pub(super) struct Someone {
    pub(super) subject: String,
    pub(super) role: &'static str,
    pub(super) facilities: Vec<Uuid>,
    pub(super) own: Option<PatientId>,
    pub(super) token: String,
}

impl std::fmt::Debug for Someone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} of {:?}, own {:?})", self.subject, self.role, self.facilities, self.own)
    }
}

pub(super) struct People {
    pub(super) lab: Lab,
    pub(super) client: Client,
    pub(super) patients: Vec<PatientId>,
    pub(super) records: Vec<Record>,
    pub(super) everyone: Vec<Someone>,
    pub(super) facilities: Vec<Uuid>,
    pub(super) providers: Vec<Uuid>,
    secret: String,
    _folder: Folder,
}

pub(super) fn bearer(token: &str) -> Result<HeaderMap> {
    Ok(HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}"))?)]))
}

pub(super) fn uuid_of(value: &Value) -> Result<Uuid> {
    Ok(value.as_str().context("no id")?.parse()?)
}

impl People {
    pub(super) async fn new(folder: Folder, postgres: PostgresSettings) -> Result<Self> {
        let lab = Lab::start(LabSettings {
            data_dir: folder.path().to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
            shards: Some(2),
            postgres,
            in_flight_max: 64,
            persona_calls_per_second: 1_000_000,
            upkeep: UpkeepSettings::default(),
            hub: Hub::new(None)?,
        })
        .await?;
        let mut people = Self {
            lab,
            client: Client::new(),
            patients: Vec::new(),
            records: Vec::new(),
            everyone: Vec::new(),
            facilities: Vec::new(),
            providers: Vec::new(),
            secret: gateway_secret(folder.path())?,
            _folder: folder,
        };
        people.build_facilities().await?;
        people.register().await?;
        people.introduce()?;
        people.treat().await?;
        people.sign_everyone_in().await?;
        people.note_down().await?;
        Ok(people)
    }

    async fn build_facilities(&mut self) -> Result<()> {
        let admin = self.token(&json!({"role": "admin"})).await?;
        for number in 0..FACILITIES {
            let body = json!({"name": format!("Clinic {number}"), "state_code": "OR"});
            let facility = uuid_of(&self.make(&admin, "/v1/admin/facilities", &body).await?["id"])?;
            let body = json!({"facility_id": facility, "name": "Dr Example", "specialty": "family"});
            let provider = uuid_of(&self.make(&admin, "/v1/admin/providers", &body).await?["id"])?;
            self.facilities.push(facility);
            self.providers.push(provider);
        }
        Ok(())
    }

    /// Patients at every facility; the last one shares the first one's bucket, so that only the home key tells them apart.
    async fn register(&mut self) -> Result<()> {
        for number in 0..PATIENTS {
            let place = number % FACILITIES;
            let (subject, facility) = (format!("c-{place}"), self.facilities[place]);
            let token = self.token(&json!({"role": "clinician", "subject": subject, "facility": facility})).await?;
            let key = if number + 1 == PATIENTS { self.key_of_a_twin(&subject)? } else { fresh_key() };
            let body = json!({
                "facility_id": facility, "given_name": "Ada", "family_name": "Reach", "sex": "unknown",
                "birth_date": format!("1970-01-0{}", number + 1), "syn_number": format!("SYN-0000000{number}"),
            });
            let made = self.send(&token, Method::POST, "/v1/patients", &key, &body).await?;
            ensure!(made.0 == StatusCode::CREATED, "{:?}", made.1);
            self.patients.push(uuid_of(&made.1["id"])?.to_string().parse()?);
        }
        let (first, last) = (self.patients[0], self.patients[PATIENTS - 1]);
        ensure!(first != last && first.bucket() == last.bucket(), "no twin");
        Ok(())
    }

    fn key_of_a_twin(&self, subject: &str) -> Result<String> {
        let bucket = self.patients[0].bucket();
        let lands_there = |key: &String| {
            let scope = IdempotencyScope::new(subject, "POST", "/v1/patients", key, b"");
            PatientId::derive(scope.scope(), 0).bucket() == bucket
        };
        (0..1_000_000_u32).map(|n| format!("twin-{n}")).find(lands_there).context("no key for a twin")
    }

    /// Tells the identity provider who there is: callers with one facility, with two, with none, and with a record of nobody.
    fn introduce(&mut self) -> Result<()> {
        let mut add = |subject: String, role, facilities: &[Uuid], own| {
            let facilities = facilities.to_vec();
            self.everyone.push(Someone { subject, role, facilities, own, token: String::new() });
        };
        let all = self.facilities.clone();
        add("all".to_owned(), "clinician", &all, None);
        for (name, some) in [("one", &all[..1]), ("two", &all[1..]), ("none", &all[..0])] {
            add(format!("d-{name}"), "clinician", some, None);
        }
        add("d-stranger".to_owned(), "clinician", &[Uuid::new_v4()], None);
        for (number, patient) in self.patients.iter().enumerate() {
            add(format!("p-{number}"), "patient", &[], Some(*patient));
        }
        // Affiliations of a patient say nothing about rows.
        add("p-worker".to_owned(), "patient", &all, Some(self.patients[1]));
        add("p-nobody".to_owned(), "patient", &[], Some(PatientId::derive(b"nobody", 0)));
        add("p-none".to_owned(), "patient", &[], None);
        add("a".to_owned(), "admin", &[], None);
        add("s".to_owned(), "sre", &[], None);
        let personas: Vec<Persona> = self.everyone.iter().map(persona).collect();
        Ok(PersonaDirectory::write(self.lab.stores.cluster.data_dir(), &personas)?)
    }

    /// An appointment, an encounter at home and one elsewhere for everybody; the claims follow by events.
    async fn treat(&mut self) -> Result<()> {
        let doctor = self.token(&json!({"subject": "all"})).await?;
        for (number, patient) in self.patients.iter().enumerate() {
            for place in [number % FACILITIES, (number + 1) % FACILITIES] {
                let (facility, provider) = (self.facilities[place], self.providers[place]);
                let base = format!("/v1/patients/{patient}/encounters");
                let mut body = json!({
                    "facility_id": facility, "provider_id": provider, "scheduled_at": "2026-12-01T09:00:00Z",
                });
                let _made = self.make(&doctor, &format!("/v1/patients/{patient}/appointments"), &body).await?;
                body["kind"] = json!("office_visit");
                let id = uuid_of(&self.make(&doctor, &base, &body).await?["id"])?;
                for to in ["in_progress", "completed"] {
                    let path = format!("{base}/{id}/transitions");
                    let moved = self.send(&doctor, Method::POST, &path, &fresh_key(), &json!({"to": to})).await?;
                    ensure!(moved.0 == StatusCode::OK, "{:?}", moved.1);
                }
            }
        }
        ensure!(settle(&self.lab.stores).await == Settled::Yes, "the flow does not come to rest");
        Ok(())
    }

    async fn sign_everyone_in(&mut self) -> Result<()> {
        for number in 0..self.everyone.len() {
            let subject = self.everyone[number].subject.clone();
            self.everyone[number].token = self.token(&json!({"subject": subject})).await?;
        }
        // Claims leave their draft, so that there is revenue to see.
        let admin = self.everyone.iter().find(|someone| someone.role == "admin").context("no admin")?.token.clone();
        for patient in &self.patients {
            for claim in self.items(&admin, &format!("/v1/patients/{patient}/claims")).await? {
                let path = format!("/v1/patients/{patient}/claims/{}/transitions", uuid_of(&claim["id"])?);
                let moved = self.send(&admin, Method::POST, &path, &fresh_key(), &json!({"to": "submitted"})).await?;
                ensure!(moved.0 == StatusCode::OK, "{:?}", moved.1);
            }
        }
        ensure!(settle(&self.lab.stores).await == Settled::Yes, "the flow does not come to rest");
        Ok(())
    }

    /// Everything that there is, as one who sees all of it reads it.
    async fn note_down(&mut self) -> Result<()> {
        let sre = self.sre().token.clone();
        for patient in self.patients.clone() {
            let kinds = [(Kind::Appointment, "appointments"), (Kind::Encounter, "encounters"), (Kind::Claim, "claims")];
            let shown = self.get(&sre, &format!("/v1/patients/{patient}")).await?.1;
            let mut rows = vec![(Kind::Patient, shown)];
            for (kind, list) in kinds {
                let items = self.items(&sre, &format!("/v1/patients/{patient}/{list}")).await?;
                ensure!(items.len() == 2, "{} {list}", items.len());
                rows.extend(items.into_iter().map(|item| (kind, item)));
            }
            for (kind, row) in rows {
                let (id, facility) = (uuid_of(&row["id"])?, uuid_of(&row["facility_id"])?);
                self.records.push(Record { kind, id, patient, facility });
            }
        }
        Ok(())
    }

    pub(super) fn sre(&self) -> &Someone {
        self.everyone.iter().rfind(|someone| someone.role == "sre").expect("there is one")
    }

    pub(super) fn of(&self, patient: PatientId, kind: Kind) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| record.patient == patient && record.kind == kind)
    }

    /// The text of every row.
    pub(super) async fn dump(&self) -> Result<BTreeSet<String>> {
        let sre = self.sre().token.clone();
        let mut rows = BTreeSet::new();
        for patient in &self.patients {
            rows.insert(self.get(&sre, &format!("/v1/patients/{patient}")).await?.1.to_string());
            for list in ["appointments", "encounters", "claims"] {
                let items = self.items(&sre, &format!("/v1/patients/{patient}/{list}")).await?;
                rows.extend(items.iter().map(Value::to_string));
            }
        }
        Ok(rows)
    }

    async fn token(&self, asked: &Value) -> Result<String> {
        let url = format!("{}/v1/dev/token", self.lab.gateway);
        let told = self.client.post_json(&url, asked, PATIENCE).await.context("sign in")?;
        Ok(told["access_token"].as_str().context("no token")?.to_owned())
    }

    /// What the gateway would forward for a caller, so that services can be asked without it.
    pub(super) async fn session(&self, someone: &Someone) -> Result<HeaderMap> {
        let broker = self.lab.url_of("session-broker").context("no broker")?;
        let token = session_of(broker, &self.secret, &someone.token).await?;
        Ok(HeaderMap::from_iter([("txn-token".parse()?, token)]))
    }

    async fn send(
        &self,
        token: &str,
        method: Method,
        path: &str,
        key: &str,
        body: &Value,
    ) -> Result<(StatusCode, Value)> {
        let mut headers = bearer(token)?;
        headers.insert("idempotency-key", HeaderValue::from_str(key)?);
        let url = format!("{}{path}", self.lab.gateway);
        let (status, _, bytes) = self.client.exchange(method, &url, headers, Some(body), PATIENCE).await?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    async fn make(&self, token: &str, path: &str, body: &Value) -> Result<Value> {
        let (status, made) = self.send(token, Method::POST, path, &fresh_key(), body).await?;
        ensure!(status == StatusCode::CREATED, "{path}: {made}");
        Ok(made)
    }

    async fn get(&self, token: &str, path: &str) -> Result<(StatusCode, Value)> {
        let url = format!("{}{path}", self.lab.gateway);
        let (status, _, bytes) = self.client.exchange(Method::GET, &url, bearer(token)?, None, PATIENCE).await?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    async fn items(&self, token: &str, path: &str) -> Result<Vec<Value>> {
        let (status, page) = self.get(token, path).await?;
        ensure!(status == StatusCode::OK, "{path}: {page}");
        Ok(page["items"].as_array().cloned().unwrap_or_default())
    }
}

fn persona(someone: &Someone) -> Persona {
    Persona {
        subject: someone.subject.clone(),
        role: someone.role.to_owned(),
        facilities: someone.facilities.clone(),
        patient: someone.own.map(PatientId::uuid),
        provider: None,
    }
}
