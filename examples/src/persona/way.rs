//! The way of a session: what it has found, and the request that each of its steps comes to.

use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use pim_core::context::TraceContext;
use pim_core::request_id::{REQUEST_ID_HEADER, TRACEPARENT_HEADER};
use pim_core::signal::{Span, SpanKind};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::operation::{Operation, Script};
use super::plan::{PlannedSession, PlannedStep};
use super::random::below;
use super::session::{PATIENCE, Shared, SignedIn};
use super::worklist::Visit;
use crate::billing::Money;
use crate::care::Act;
use crate::client::ClientError;

const GIVEN: &[&str] = &["Alma", "Boris", "Clea", "Dov", "Esra", "Finn"];
const FAMILY: &[&str] = &["Thornfield", "Wildbrook", "Stonewick", "Marshley"];
const INITIALS: &str = "abcdefghijklmnopqrstuvwxyz";

/// Where and by whom a patient is seen.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) facility: String,
    pub(super) provider: String,
}

/// What a session knows on its way.
pub(super) struct Way<'s> {
    shared: &'s Shared,
    session: &'s PlannedSession,
    /// As whom the next request is sent.
    pub(super) signed: Arc<SignedIn>,
    patient: Option<String>,
    encounter: Option<String>,
    /// The claim as it was told last.
    claim: Value,
    /// Whom to book with.
    pub(super) place: Option<Place>,
    keys: u32,
}

/// What a step comes to.
pub(super) enum Next {
    /// A request.
    Ask(Method, String, Option<Value>),
    /// Nothing: what it would do has been done by somebody else, or cannot be done yet.
    PassOver,
    /// The end of the session: what it needs was not found.
    Stuck,
}

/// One of a list, chosen by a draw.
pub(super) fn pick<T>(list: &[T], bits: u64) -> Option<&T> {
    let at = below(bits, list.len().max(1) as u64);
    list.get(usize::try_from(at).unwrap_or(0))
}

fn header_of(text: &str) -> Result<HeaderValue, ClientError> {
    Ok(HeaderValue::from_str(text).map_err(http::Error::from)?)
}

impl<'s> Way<'s> {
    pub(super) fn new(shared: &'s Shared, session: &'s PlannedSession, signed: Arc<SignedIn>) -> Self {
        let patient = signed.told["patient_id"].as_str().map(str::to_owned);
        let mut way =
            Self { shared, session, signed, patient, encounter: None, claim: Value::Null, place: None, keys: 0 };
        if session.script == Script::Settle {
            let visit = shared.settling.take();
            (way.patient, way.encounter) = visit.map(|visit| (visit.patient, visit.encounter)).unzip();
        }
        way
    }

    fn pick<'a>(&self, list: &[&'a str], salt: u32) -> &'a str {
        let bits = self.session.choice.rotate_left(salt);
        list[usize::try_from(below(bits, list.len() as u64)).unwrap_or(0)]
    }

    /// The request of a step.
    pub(super) fn next(&self, step: &PlannedStep) -> Next {
        let found = match step.act {
            Some(act) => self.of_care(act),
            None => self.plain(step.operation).map(|(method, path, body)| Next::Ask(method, path, body)),
        };
        found.unwrap_or(Next::Stuck)
    }

    fn patient_path(&self) -> Option<String> {
        self.patient.as_ref().map(|id| format!("/v1/patients/{id}"))
    }

    fn encounter_path(&self) -> Option<String> {
        Some(format!("{}/encounters/{}", self.patient_path()?, self.encounter.as_ref()?))
    }

    /// An act of care; `None` when what it needs was not found.
    fn of_care(&self, act: Act<'_>) -> Option<Next> {
        let told = |member: &str| self.signed.told[member].clone();
        let (path, body) = match act {
            Act::Schedule { kind } => (
                format!("{}/encounters", self.patient_path()?),
                json!({"facility_id": told("facility_id"), "provider_id": told("provider_id"), "kind": kind,
                    "scheduled_at": "2026-03-02T09:00:00Z"}),
            ),
            Act::Diagnose { code } => (format!("{}/diagnoses", self.encounter_path()?), json!({"code": code})),
            Act::Perform { code } => (format!("{}/procedures", self.encounter_path()?), json!({"code": code})),
            Act::Order { kind, code } => {
                (format!("{}/orders", self.encounter_path()?), json!({"kind": kind, "code": code}))
            }
            Act::Measure { kind, value } => {
                (format!("{}/observations", self.encounter_path()?), json!({"kind": kind, "value": value}))
            }
            Act::Note { text } => (format!("{}/notes", self.encounter_path()?), json!({"text": text})),
            Act::Submit | Act::Adjudicate | Act::Pay { .. } | Act::Close => return self.of_billing(act),
        };
        Some(Next::Ask(Method::POST, path, Some(body)))
    }

    /// What is done to a claim, if it is not done yet: a billing cycle may have been faster.
    fn of_billing(&self, act: Act<'_>) -> Option<Next> {
        let path = format!("{}/claims/{}", self.patient_path()?, self.claim["id"].as_str()?);
        let owed = || {
            let money = |member: &str| serde_json::from_value::<Money>(self.claim[member].clone()).ok();
            Some(money("total")?.cents() - money("paid")?.cents())
        };
        let (needs, path, body) = match act {
            Act::Submit => ("draft", format!("{path}/transitions"), json!({"to": "submitted"})),
            Act::Adjudicate => ("submitted", format!("{path}/transitions"), json!({"to": "adjudicated"})),
            // Its payment was refused, or not answered.
            Act::Close if owed()? != 0 => return Some(Next::PassOver),
            Act::Pay { method, percent } => {
                let cents = owed()? * i64::try_from(percent).ok()? / 100;
                if cents == 0 {
                    return Some(Next::PassOver);
                }
                let amount = Money::usd_cents(cents);
                ("adjudicated", format!("{path}/payments"), json!({"amount": amount, "method": method}))
            }
            Act::Close => ("adjudicated", format!("{path}/transitions"), json!({"to": "closed"})),
            _ => return None,
        };
        let is_due = self.claim["state"] == needs;
        Some(if is_due { Next::Ask(Method::POST, path, Some(body)) } else { Next::PassOver })
    }

    /// The request of an operation without an act; `None` when what it needs was not found.
    fn plain(&self, operation: Operation) -> Option<(Method, String, Option<Value>)> {
        let get = |path: String| Some((Method::GET, path, None));
        let post = |path: String, body: Value| Some((Method::POST, path, Some(body)));
        match operation {
            Operation::PatientSearch => {
                let at = usize::try_from(below(self.session.choice.rotate_left(3), 26)).unwrap_or(0);
                get(format!("/v1/patients?name={}&limit=5", &INITIALS[at..=at]))
            }
            Operation::PatientRead => get(self.patient_path()?),
            Operation::SummaryRead => get(format!("{}/summary", self.patient_path()?)),
            Operation::PatientRegister => post("/v1/patients".to_owned(), self.registration()),
            Operation::EncounterList => get(format!("{}/encounters?limit=10", self.patient_path()?)),
            Operation::EncounterStart => {
                post(format!("{}/transitions", self.encounter_path()?), json!({"to": "in_progress"}))
            }
            Operation::EncounterComplete => {
                post(format!("{}/transitions", self.encounter_path()?), json!({"to": "completed"}))
            }
            Operation::TimelineRead => get(format!("{}/timeline?limit=20", self.patient_path()?)),
            Operation::ClaimList => get(format!("{}/claims?limit=50", self.patient_path()?)),
            Operation::AppointmentBook => {
                let Place { facility, provider } = self.place.as_ref()?;
                post(
                    format!("{}/appointments", self.patient_path()?),
                    json!({"facility_id": facility, "provider_id": provider, "scheduled_at": "2026-04-01T10:00:00Z"}),
                )
            }
            Operation::FacilityList => get("/v1/admin/facilities?limit=10".to_owned()),
            Operation::RevenueRead => get("/v1/revenue?from=2026-01-01&to=2030-12-31".to_owned()),
            Operation::ShardsRead => get("/v1/admin/shards".to_owned()),
            Operation::OutboxRead => get("/v1/admin/outbox".to_owned()),
            // These come with an act.
            Operation::EncounterSchedule
            | Operation::DiagnosisAdd
            | Operation::ProcedureAdd
            | Operation::OrderAdd
            | Operation::ObservationAdd
            | Operation::NoteAdd
            | Operation::ClaimSubmit
            | Operation::ClaimAdjudicate
            | Operation::ClaimPay
            | Operation::ClaimClose => None,
        }
    }

    fn registration(&self) -> Value {
        json!({
            "facility_id": self.signed.told["facility_id"], "given_name": self.pick(GIVEN, 11),
            "family_name": self.pick(FAMILY, 13), "birth_date": "1984-06-15", "sex": "unknown",
            "syn_number": format!("SYN-{:08}", 90_000_000 + below(self.session.choice.rotate_left(17), 10_000_000)),
        })
    }

    pub(super) async fn send(
        &mut self,
        operation: Operation,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), ClientError> {
        let (trace, began) = (TraceContext::root(), (self.shared.clock.now(), Instant::now()));
        let mut headers = HeaderMap::with_capacity(3);
        headers.insert(TRACEPARENT_HEADER, header_of(&trace.to_string())?);
        headers.insert(AUTHORIZATION, self.signed.authorization.clone());
        if body.is_some() {
            self.keys += 1;
            let key = format!("{}-{}-{}", self.shared.run.as_simple(), self.session.number, self.keys);
            headers.insert("idempotency-key", header_of(&key)?);
        }
        let url = format!("{}{path}", self.shared.gateway);
        let exchange = self.shared.client.exchange(method.clone(), &url, headers, body, PATIENCE);
        let (status, told, bytes) = exchange.await?;
        // Under the id that the answer names: a caller's own trace is a link, no part of the lab's.
        if let Some(request) = told.get(REQUEST_ID_HEADER).and_then(|id| id.to_str().ok()?.parse().ok()) {
            let time = (began.0, began.1.elapsed());
            let span = Span::new(SpanKind::Client, operation.name(), trace, request, time);
            self.shared.spans.keep(span.answered(Some(status.as_u16())));
        }
        Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    /// Takes from an answer what later steps need, and leaves a completed visit to billing.
    pub(super) fn learn(&mut self, operation: Operation, status: StatusCode, document: &Value) {
        if !status.is_success() {
            return;
        }
        let id = |value: &Value| value["id"].as_str().map(str::to_owned);
        let items = document["items"].as_array().map_or(&[][..], Vec::as_slice);
        match operation {
            Operation::PatientSearch => {
                let found = pick(items, self.session.choice.rotate_left(23)).and_then(id);
                self.patient = found.or(self.patient.take());
            }
            Operation::PatientRegister => self.patient = id(document).or(self.patient.take()),
            Operation::EncounterSchedule => self.encounter = id(document),
            Operation::EncounterComplete => {
                if let (Some(patient), Some(encounter)) = (self.patient.clone(), self.encounter.clone()) {
                    self.shared.settling.leave(Visit { patient, encounter });
                }
            }
            Operation::ClaimList => {
                let ours = |claim: &&Value| claim["encounter_id"].as_str() == self.encounter.as_deref();
                self.claim = items.iter().find(ours).cloned().unwrap_or_default();
            }
            Operation::ClaimSubmit | Operation::ClaimAdjudicate | Operation::ClaimPay | Operation::ClaimClose => {
                self.claim = document.clone();
            }
            _ => {}
        }
    }
}
