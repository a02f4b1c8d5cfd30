//! One writer: what it sends, and what it puts up with.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::StatusCode;
use pim_testkit::caller::{Caller, fresh_key};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{PATIENCE, REFUSED_PAUSE, WRITERS, Workload};

/// Whoever returns to patients leaves the machine to others in between.
const BETWEEN_VISITS: Duration = Duration::from_millis(400);

/// One write as it was sent.
#[derive(Clone, Debug)]
pub(super) struct Submission {
    pub(super) path: String,
    pub(super) key: String,
    pub(super) body: Value,
    /// Where the record that it leads to is read.
    pub(super) under: &'static str,
}

impl Submission {
    /// Where the record is read that the answer shows.
    pub(super) fn leads_to(&self, record: &Value) -> String {
        format!("{}/{}", self.under, record["id"].as_str().unwrap_or_default())
    }
}

/// What the system said of a write.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Said {
    pub(super) status: StatusCode,
    pub(super) record: Value,
}

/// Not now, not so fast, not in time, or not from whoever was asked: none of them says what there is.
pub(super) fn is_for_later(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::GATEWAY_TIMEOUT
            | StatusCode::BAD_GATEWAY
    )
}

/// Somebody who writes, at a system that is up: whoever cannot sign in now can in a while.
pub(super) async fn clinician(gateway: &str) -> Caller {
    let give_up = Instant::now() + PATIENCE;
    loop {
        match Caller::sign_in(gateway, "clinician").await {
            Ok(caller) => return caller,
            Err(error) => assert!(Instant::now() < give_up, "no clinician can sign in: {error:#}"),
        }
        tokio::time::sleep(REFUSED_PAUSE).await;
    }
}

/// Sends again what is not available now: that is what a key is for.
pub(super) async fn send(caller: &Caller, submission: &Submission) -> Said {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let (status, record) = caller.post(&submission.path, &submission.key, &submission.body).await.unwrap();
        if !is_for_later(status) || Instant::now() > give_up {
            return Said { status, record };
        }
        tokio::time::sleep(REFUSED_PAUSE).await;
    }
}

/// Why a write was not acknowledged.
pub(super) enum Silence {
    /// Nobody answers any more.
    Gone,
    /// A gateway that is losing its services may say that it is for later; like no answer at all, that tells nothing.
    Refused,
}

pub(super) struct Writer<'a> {
    pub(super) workload: &'a Workload,
    pub(super) caller: &'a Caller,
    pub(super) last: Option<(Submission, Said)>,
    /// Which of the regulars comes next.
    pub(super) turn: u64,
}

impl Writer<'_> {
    /// A patient who was not there before.
    pub(super) async fn patient(&mut self) -> Result<String, Silence> {
        let number = self.workload.0.number.fetch_add(1, Ordering::Relaxed) + 1;
        let registration = self.caller.registration(number);
        let patient = self.write("/v1/patients".to_owned(), registration, "/v1/patients").await?;
        Ok(patient["id"].as_str().unwrap_or_default().to_owned())
    }

    /// A patient and their encounter.
    pub(super) async fn encounter(&mut self) -> Result<(), Silence> {
        let patient = match self.workload.0.regulars.get() {
            Some(known) => {
                tokio::time::sleep(BETWEEN_VISITS).await;
                known[usize::try_from(self.turn).unwrap_or(0) % known.len()].clone()
            }
            None => self.patient().await?,
        };
        self.turn += WRITERS;
        let scheduling = json!({"facility_id": self.caller.facility, "provider_id": self.caller.provider,
            "kind": "telehealth", "scheduled_at": "2026-01-01T00:00:00Z"});
        let path = format!("/v1/patients/{patient}/encounters");
        let encounter = self.write(path.clone(), scheduling, "/v1/encounters").await?;
        let path = format!("{path}/{}", encounter["id"].as_str().unwrap_or_default());
        for (part, body) in [
            ("transitions", json!({"to": "in_progress"})),
            ("diagnoses", json!({"code": "J45.909"})),
            ("transitions", json!({"to": "completed"})),
        ] {
            self.write(format!("{path}/{part}"), body, "/v1/encounters").await?;
        }
        Ok(())
    }

    async fn write(&mut self, path: String, body: Value, under: &'static str) -> Result<Value, Silence> {
        let submission = Submission { path, key: fresh_key(), body, under };
        let in_flight = &self.workload.0.in_flight;
        in_flight.fetch_add(1, Ordering::SeqCst);
        let sent = Instant::now();
        let answer = self.caller.post(&submission.path, &submission.key, &submission.body).await;
        if answer.is_ok() {
            in_flight.fetch_sub(1, Ordering::SeqCst);
        }
        let took = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.workload.0.slowest_us.fetch_max(took, Ordering::SeqCst);
        let mut told = self.workload.0.told.lock().await;
        let (status, record) = match answer {
            Ok((status, record)) if status.is_success() => (status, record),
            Ok((status, problem)) if !is_for_later(status) => {
                panic!("{submission:?} was refused for good: {status}, {}", problem["type"])
            }
            other => {
                told.unknown.push(submission);
                return Err(if other.is_ok() { Silence::Refused } else { Silence::Gone });
            }
        };
        self.workload.0.acknowledgement.notify_waiters();
        let said = Said { status, record };
        told.acknowledge(&submission, &said);
        let record = said.record.clone();
        self.last = Some((submission, said));
        Ok(record)
    }
}
