//! One session: a persona, a token, and the requests of a script, each of which may need what the ones before found.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use pim_core::clock::Clock;
use pim_core::context::TraceContext;
use pim_core::request_id::{REQUEST_ID_HEADER, TRACEPARENT_HEADER};
use pim_core::signal::{Span, SpanKind, Spans};
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;

use super::operation::Operation;
use super::plan::PlannedSession;
use super::random::below;
use super::record::{Measured, Recorder};
use crate::client::Client;
use crate::rig::Drain;

const PATIENCE: Duration = Duration::from_secs(10);
const TOKEN_GOOD_FOR: Duration = Duration::from_secs(10 * 60);
/// Most providers that are looked up.
const PLACES_MAX: usize = 200;
const PERSONAS_PER_ROLE: u64 = 8;
const DIAGNOSES: &[&str] = &["E11.9", "I10", "J45.909", "Z00.00", "S93.401A", "O09.90"];
const GIVEN: &[&str] = &["Alma", "Boris", "Clea", "Dov", "Esra", "Finn"];
const FAMILY: &[&str] = &["Thornfield", "Wildbrook", "Stonewick", "Marshley"];
const INITIALS: &str = "abcdefghijklmnopqrstuvwxyz";

#[derive(Clone, Debug)]
struct SignedIn {
    authorization: HeaderValue,
    told: Value,
    until: Instant,
}

/// What all sessions of a run share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) gateway: String,
    spans: Spans,
    clock: Clock,
    pub(super) recorder: Recorder,
    pub(super) begun: Instant,
    stop: Drain,
    /// Nothing later than this comes due; set before `stop` begins.
    ended: OnceLock<Instant>,
    /// Tells the keys of two runs apart.
    pub(super) run: uuid::Uuid,
    tokens: Mutex<BTreeMap<String, SignedIn>>,
    /// Facility and provider of whom patients may book with; looked up once, by the first who books.
    places: OnceCell<Vec<(String, String)>>,
}

impl Shared {
    pub(super) fn new(gateway: String, spans: Spans) -> Self {
        Self {
            client: Client::new(),
            gateway,
            spans,
            clock: Clock::system(),
            recorder: Recorder::default(),
            begun: Instant::now(),
            stop: Drain::new(),
            ended: OnceLock::new(),
            run: uuid::Uuid::new_v4(),
            tokens: Mutex::new(BTreeMap::new()),
            places: OnceCell::new(),
        }
    }

    /// When a time of the plan is.
    pub(super) fn intended(&self, at_us: u64) -> Instant {
        self.begun + Duration::from_micros(at_us)
    }

    /// The run is over: nothing comes due from now on.
    pub(super) fn end(&self) {
        self.ended.get_or_init(Instant::now);
        self.stop.begin();
    }

    /// Ends when the run is over.
    pub(super) async fn over(&self) {
        self.stop.begun().await;
    }

    /// Waits for an intended time; says no when the run is over before it.
    pub(super) async fn comes_due(&self, intended: Instant) -> bool {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(intended) => {}
            () = self.over() => {}
        }
        self.ended.get().is_none_or(|ended| intended <= *ended)
    }

    /// A session that could not begin: what it would have asked was due, and was not sent.
    pub(super) fn turn_away(&self, session: &PlannedSession) {
        let is_due = |at_us: u64| self.ended.get().is_none_or(|ended| self.intended(at_us) <= *ended);
        let due = session.steps.iter().filter(|step| is_due(session.at_us + step.at_us)).count();
        self.recorder.turned_away(due as u64);
    }

    /// Signs a persona in, or takes the token that it has.
    async fn sign_in(&self, role: &str, choice: u64) -> Option<SignedIn> {
        let roster = if matches!(role, "admin" | "sre") { 2 } else { PERSONAS_PER_ROLE };
        let subject = format!("{role}-{}", below(choice, roster));
        let mut tokens = self.tokens.lock().await;
        if let Some(known) = tokens.get(&subject).filter(|known| known.until > Instant::now()) {
            return Some(known.clone());
        }
        let url = format!("{}/v1/dev/token", self.gateway);
        let told = self.client.post_json(&url, &json!({"role": role, "subject": subject}), PATIENCE).await.ok()?;
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", told["access_token"].as_str()?)).ok()?;
        authorization.set_sensitive(true);
        let signed = SignedIn { authorization, told, until: Instant::now() + TOKEN_GOOD_FOR };
        tokens.insert(subject, signed.clone());
        Some(signed)
    }

    /// Whom a patient may book with; empty when nobody is there, or nobody says so.
    async fn places(&self, signed: &SignedIn) -> &[(String, String)] {
        let look = || async {
            let url = format!("{}/v1/admin/providers?limit={PLACES_MAX}", self.gateway);
            let headers = HeaderMap::from_iter([(AUTHORIZATION, signed.authorization.clone())]);
            let (status, _, bytes) =
                self.client.exchange(Method::GET, &url, headers, None, PATIENCE).await.map_err(drop)?;
            let told: Value = serde_json::from_slice(&bytes).map_err(drop)?;
            let listed = told["items"].as_array().filter(|_| status.is_success()).ok_or(())?;
            let text = |provider: &Value, member: &str| provider[member].as_str().map(str::to_owned);
            let place = |provider: &Value| Some((text(provider, "facility_id_of")?, text(provider, "id")?));
            let in_use = listed.iter().filter(|provider| provider["active"] == true);
            Ok::<_, ()>(in_use.filter_map(place).collect())
        };
        // What failed is tried again by the next who books.
        self.places.get_or_try_init(look).await.map_or(&[], Vec::as_slice)
    }
}

/// Plays one session to its end.
pub(super) async fn play(shared: Arc<Shared>, session: PlannedSession) {
    let Some(signed) = shared.sign_in(session.role, session.choice).await else {
        shared.turn_away(&session);
        return;
    };
    let mut way = Way::new(&shared, &session, &signed);
    for step in &session.steps {
        let intended = shared.intended(session.at_us + step.at_us);
        if !shared.comes_due(intended).await {
            return;
        }
        if step.operation == Operation::AppointmentBook {
            way.place = pick(shared.places(&signed).await, session.choice.rotate_left(29));
        }
        let Some((method, path, body)) = way.request(step.operation) else {
            shared.recorder.cut_short();
            return;
        };
        shared.recorder.due();
        let sent = Instant::now();
        let answer = way.send(step.operation, &method, &path, body.as_ref()).await;
        let service = sent.elapsed();
        let failed = !answer.as_ref().is_some_and(|(status, _)| status.is_success());
        let lateness = sent.saturating_duration_since(intended);
        let (operation, role) = (step.operation, session.role);
        shared.recorder.done(Measured { operation, role, lateness, service, failed });
        if let Some((_, document)) = answer {
            way.learn(operation, &document);
        }
    }
}

/// What a session knows on its way.
struct Way<'s> {
    shared: &'s Shared,
    session: &'s PlannedSession,
    signed: &'s SignedIn,
    patient: Option<String>,
    encounter: Option<String>,
    /// Facility and provider to book with.
    place: Option<&'s (String, String)>,
    keys: u32,
}

fn pick<T>(list: &[T], bits: u64) -> Option<&T> {
    let at = below(bits, list.len().max(1) as u64);
    list.get(usize::try_from(at).unwrap_or(0))
}

type Planned = (Method, String, Option<Value>);

impl<'s> Way<'s> {
    fn new(shared: &'s Shared, session: &'s PlannedSession, signed: &'s SignedIn) -> Self {
        let patient = signed.told["patient_id"].as_str().map(str::to_owned);
        Self { shared, session, signed, patient, encounter: None, place: None, keys: 0 }
    }

    fn pick<'a>(&self, list: &[&'a str], salt: u32) -> &'a str {
        let bits = self.session.choice.rotate_left(salt);
        list[usize::try_from(below(bits, list.len() as u64)).unwrap_or(0)]
    }

    /// The request of an operation; `None` when what it needs was not found.
    fn request(&self, operation: Operation) -> Option<Planned> {
        let get = |path: String| Some((Method::GET, path, None));
        let post = |path: String, body: Value| Some((Method::POST, path, Some(body)));
        let patient = || self.patient.clone().map(|id| format!("/v1/patients/{id}"));
        let encounter = || Some(format!("{}/encounters/{}", patient()?, self.encounter.clone()?));
        let told = |member: &str| self.signed.told[member].clone();
        match operation {
            Operation::PatientSearch => {
                let at = usize::try_from(below(self.session.choice.rotate_left(3), 26)).unwrap_or(0);
                get(format!("/v1/patients?name={}&limit=5", &INITIALS[at..=at]))
            }
            Operation::PatientRead => get(patient()?),
            Operation::SummaryRead => get(format!("{}/summary", patient()?)),
            Operation::PatientRegister => post("/v1/patients".to_owned(), self.registration()),
            Operation::EncounterList => get(format!("{}/encounters?limit=10", patient()?)),
            Operation::EncounterSchedule => post(
                format!("{}/encounters", patient()?),
                json!({"facility_id": told("facility_id"), "provider_id": told("provider_id"), "kind": "office_visit",
                    "scheduled_at": "2026-03-02T09:00:00Z"}),
            ),
            Operation::EncounterStart => post(format!("{}/transitions", encounter()?), json!({"to": "in_progress"})),
            Operation::DiagnosisAdd => {
                post(format!("{}/diagnoses", encounter()?), json!({"code": self.pick(DIAGNOSES, 7)}))
            }
            Operation::EncounterComplete => post(format!("{}/transitions", encounter()?), json!({"to": "completed"})),
            Operation::TimelineRead => get(format!("{}/timeline?limit=20", patient()?)),
            Operation::ClaimList => get(format!("{}/claims?limit=10", patient()?)),
            Operation::AppointmentBook => {
                let (facility, provider) = self.place?;
                post(
                    format!("{}/appointments", patient()?),
                    json!({"facility_id": facility, "provider_id": provider, "scheduled_at": "2026-04-01T10:00:00Z"}),
                )
            }
            Operation::FacilityList => get("/v1/admin/facilities?limit=10".to_owned()),
            Operation::RevenueRead => get("/v1/revenue?from=2026-01-01&to=2030-12-31".to_owned()),
            Operation::ShardsRead => get("/v1/admin/shards".to_owned()),
            Operation::OutboxRead => get("/v1/admin/outbox".to_owned()),
        }
    }

    fn registration(&self) -> Value {
        json!({
            "facility_id": self.signed.told["facility_id"], "given_name": self.pick(GIVEN, 11),
            "family_name": self.pick(FAMILY, 13), "birth_date": "1984-06-15", "sex": "unknown",
            "syn_number": format!("SYN-{:08}", 90_000_000 + below(self.session.choice.rotate_left(17), 10_000_000)),
        })
    }

    async fn send(
        &mut self,
        operation: Operation,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Option<(StatusCode, Value)> {
        let (trace, began) = (TraceContext::root(), (self.shared.clock.now(), Instant::now()));
        let mut headers = HeaderMap::with_capacity(3);
        headers.insert(TRACEPARENT_HEADER, HeaderValue::from_str(&trace.to_string()).ok()?);
        headers.insert(AUTHORIZATION, self.signed.authorization.clone());
        if body.is_some() {
            self.keys += 1;
            let key = format!("{}-{}-{}", self.shared.run.as_simple(), self.session.number, self.keys);
            headers.insert("idempotency-key", HeaderValue::from_str(&key).ok()?);
        }
        let url = format!("{}{path}", self.shared.gateway);
        let answer = self.shared.client.exchange(method.clone(), &url, headers, body, PATIENCE).await;
        let (status, told, bytes) = answer.ok()?;
        // Under the id that the answer names: a caller's own trace is a link, no part of the lab's.
        if let Some(request) = told.get(REQUEST_ID_HEADER).and_then(|id| id.to_str().ok()?.parse().ok()) {
            let time = (began.0, began.1.elapsed());
            let span = Span::new(SpanKind::Client, operation.name(), trace, request, time);
            self.shared.spans.keep(span.answered(Some(status.as_u16())));
        }
        Some((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    fn learn(&mut self, operation: Operation, document: &Value) {
        let id = |value: &Value| value["id"].as_str().map(str::to_owned);
        match operation {
            Operation::PatientSearch => {
                let found = document["items"].as_array().map_or(&[][..], Vec::as_slice);
                let at = usize::try_from(below(self.session.choice.rotate_left(23), found.len().max(1) as u64));
                self.patient = found.get(at.unwrap_or(0)).and_then(id).or(self.patient.take());
            }
            Operation::PatientRegister => self.patient = id(document).or(self.patient.take()),
            Operation::EncounterSchedule => self.encounter = id(document),
            _ => {}
        }
    }
}
