//! A data directory of its own, a broker's key, and the three services behind their gate.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use axum::Router;
use axum::body::Body;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use pim_core::clock::{Clock, Timestamp};
use pim_core::context::{IdempotencyScope, RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::id::Id;
use pim_core::identity::Actor;
use pim_core::rbac::{Permit, SystemScope, Write};
use pim_core::role::{ClosedEnum as _, RoleCode};
use pim_core::token::{KeySource, KeySourceError, Signer};
use pim_data::cluster::{Access, Cluster};
use pim_events::AppendExt as _;
use pim_lab::ids::{FacilityId, PatientId, ProviderId};
use pim_lab::policy::{LabAction, LabResource, LabRole};
use pim_lab::reference::{Facility, Provider, ReferenceChanged};
use pim_lab::rig::{Drain, TRUST_DOMAIN, TXN_ISSUER, sessions};
use pim_lab::signals::Hub;
use pim_lab::workers::{Stores, service_actor};
use pim_lab::{admin, billing, encounter, patient};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use uuid::Uuid;

struct Keys(String);

#[async_trait]
impl KeySource for Keys {
    async fn fetch(&self) -> Result<String, KeySourceError> {
        Ok(self.0.clone())
    }
}

pub(crate) struct World {
    dir: PathBuf,
    pub(crate) clock: Clock,
    pub(crate) cluster: Cluster,
    pub(crate) stores: Stores,
    pub(crate) router: Router,
    signer: Signer,
    pub(crate) facility: FacilityId,
    pub(crate) provider: ProviderId,
}

impl Drop for World {
    fn drop(&mut self) {
        let _leftover = std::fs::remove_dir_all(&self.dir);
        // Backups stand beside what they are of.
        let mut backups = self.dir.clone().into_os_string();
        backups.push("-backups");
        let _leftover = std::fs::remove_dir_all(backups);
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answered {
    /// The problem's type, without its prefix.
    pub(crate) fn problem(&self) -> &str {
        self.body["type"].as_str().unwrap_or_default().trim_start_matches("urn:pim:problem:")
    }

    pub(crate) fn id(&self) -> String {
        self.body["id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn etag(&self) -> &str {
        self.headers["etag"].to_str().unwrap()
    }
}

fn signer() -> Signer {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let public = pair.public_key().as_ref().to_vec();
    Signer::es256(pair.to_pkcs8v1().unwrap().as_ref(), &public).unwrap()
}

async fn open(dir: &Path, clock: &Clock) -> Stores {
    let hub = Hub::new(None).unwrap();
    Stores::open(dir, Some(2), Access::Shared, clock.clone(), &hub).await.unwrap()
}

/// Where and by whom patients are seen.
pub(crate) async fn furnish(cluster: &Cluster, facility: FacilityId, provider: ProviderId) {
    const REASON: SystemScope = SystemScope::new("furnish a test");
    let actor = service_actor("test").unwrap();
    let cx = RequestContext::new(RequestId::mint(), actor, Deadline::after(Duration::from_secs(20)));
    let (name, state_code) = ("North Clinic".to_owned(), "OR".to_owned());
    let place = Facility { id: facility, version: 0, name: name.clone(), state_code, active: true };
    let specialty = "family".to_owned();
    let person = Provider { id: provider, version: 0, facility_id_of: facility, name, specialty, active: true };
    let mut unit = cluster.begin_control(&cx, facility);
    let permit = Permit::<Write>::system(REASON, LabAction::Write, LabResource::Facility);
    let version = unit.save(&permit, &place).unwrap();
    unit.append(&ReferenceChanged { table: "facility".to_owned(), id: facility.uuid(), version }).unwrap();
    unit.commit().await.unwrap();
    let mut unit = cluster.begin_control(&cx, provider);
    let permit = Permit::<Write>::system(REASON, LabAction::Write, LabResource::Provider);
    let version = unit.save(&permit, &person).unwrap();
    unit.append(&ReferenceChanged { table: "provider".to_owned(), id: provider.uuid(), version }).unwrap();
    unit.commit().await.unwrap();
}

fn router(stores: &Stores, signer: &Signer, clock: &Clock) -> Router {
    let keys = || Keys(json!({"keys": [signer.jwk()]}).to_string());
    let sessions = sessions(keys(), clock.clone());
    let drain = Drain::new();
    // Each has its own health and document; the routes are what these tests drive.
    let mut gated = Router::new();
    for service in [patient::SERVICE, encounter::SERVICE, billing::SERVICE, admin::SERVICE] {
        gated = gated.merge((service.endpoints)().into_router().with_state(stores.clone()));
    }
    patient::SERVICE.framing(gated, stores, &sessions, &drain)
}

impl World {
    pub(crate) async fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("pim-lab-{}", Uuid::new_v4()));
        let clock = Clock::manual(Timestamp::from_micros(1_800_000_000_000_000));
        let (stores, signer) = (open(&dir, &clock).await, signer());
        let router = router(&stores, &signer, &clock);
        let (facility, provider) = (Id::derive(b"facility", 1), Id::derive(b"provider", 1));
        furnish(&stores.cluster, facility, provider).await;
        Self { dir, clock, cluster: stores.cluster.clone(), stores, router, signer, facility, provider }
    }

    /// The same data directory, opened once more as another program would.
    pub(crate) async fn beside(&self) -> Stores {
        open(&self.dir, &self.clock).await
    }

    /// The same of a program whose clock is ahead.
    pub(crate) async fn beside_ahead_by(&self, time: Duration) -> Stores {
        open(&self.dir, &Clock::manual(self.clock.now().plus(time))).await
    }

    /// The same of a program whose clock is behind.
    pub(crate) async fn beside_behind_by(&self, time: Duration) -> Stores {
        open(&self.dir, &Clock::manual(self.clock.now().minus(time))).await
    }

    /// Ends everything and opens the same data directory again.
    pub(crate) async fn restarted(mut self) -> Self {
        let away = std::env::temp_dir().join(format!("pim-lab-{}", Uuid::new_v4()));
        let other = open(&away, &self.clock).await;
        self.router = Router::new();
        drop((std::mem::replace(&mut self.cluster, other.cluster.clone()), std::mem::replace(&mut self.stores, other)));
        let stores = open(&self.dir, &self.clock).await;
        self.router = router(&stores, &self.signer, &self.clock);
        (self.cluster, self.stores) = (stores.cluster.clone(), stores);
        let _leftover = std::fs::remove_dir_all(away);
        self
    }

    pub(crate) fn session(&self, role: &str, facilities: &[FacilityId], patient: Option<PatientId>) -> String {
        let now = self.clock.now().as_micros() / 1_000_000;
        let facilities: Vec<_> = facilities.iter().map(ToString::to_string).collect();
        let mut context = json!({"role": role, "facilities": facilities, "sid": Uuid::nil(), "policy_version": 1});
        if let Some(patient) = patient {
            context["patient"] = json!(patient.to_string());
        }
        let claims = json!({
            "iss": TXN_ISSUER, "aud": TRUST_DOMAIN, "sub": format!("dev-{role}"), "txn": Uuid::new_v4(),
            "iat": now, "exp": now + 60, "tctx": context,
        });
        self.signer.sign("txntoken+jwt", &claims).unwrap()
    }

    /// What a service makes of a request of somebody without facilities.
    pub(crate) fn context(
        &self,
        role: &str,
        method: &str,
        path: &str,
        key: &str,
        body: &Value,
    ) -> (RequestContext, Actor) {
        let role_code = RoleCode::of(LabRole::from_name(role).unwrap());
        let actor = Actor::new(format!("dev-{role}").parse().unwrap(), role_code);
        let cx = RequestContext::new(RequestId::mint(), actor.clone(), Deadline::after(Duration::from_secs(20)));
        let scope = IdempotencyScope::new(actor.subject().as_str(), method, path, key, body.to_string().as_bytes());
        (cx.with_idempotency(scope), actor)
    }

    pub(crate) fn clinician(&self) -> String {
        self.session("clinician", &[self.facility], None)
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answered {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answered { status: head.status, headers: head.headers, body }
    }

    pub(crate) async fn get_text(&self, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    pub(crate) async fn get(&self, token: &str, path: &str) -> Answered {
        self.send(Request::get(path).header("txn-token", token).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post(&self, token: &str, path: &str, key: &str, body: &Value) -> Answered {
        self.send(Self::writing(token, path, key).body(Body::from(body.to_string())).unwrap()).await
    }

    pub(crate) fn writing(token: &str, path: &str, key: &str) -> http::request::Builder {
        let request = Request::post(path).header("txn-token", token).header("content-type", "application/json");
        request.header("idempotency-key", key)
    }

    pub(crate) fn registration(&self) -> Value {
        json!({
            "facility_id": self.facility, "given_name": "Ada", "family_name": "Example", "birth_date": "1980-02-29",
            "sex": "female", "syn_number": "SYN-00000042", "telephone": "202-555-0142", "mail": "ada@example.org",
        })
    }

    pub(crate) async fn registered(&self, key: &str) -> Answered {
        let answered = self.post(&self.clinician(), "/v1/patients", key, &self.registration()).await;
        assert_eq!(answered.status, StatusCode::CREATED, "{:?}", answered.body);
        answered
    }

    pub(crate) fn scheduling(&self) -> Value {
        json!({
            "facility_id": self.facility, "provider_id": self.provider, "kind": "office_visit",
            "scheduled_at": "2027-01-15T09:00:00Z",
        })
    }

    pub(crate) fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }
}
