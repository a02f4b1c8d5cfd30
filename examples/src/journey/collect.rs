//! Joining what the stores know for good with what the programs remember for a while.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::FromRef;
use http::HeaderValue;
use pim_core::clock::Timestamp;
use pim_core::context::{RequestContext, RequestId, TraceId};
use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::rbac::{Permit, Read};
use pim_data::audit::{AuditEntry, AuditFilter};
use pim_data::fan_out::FanOut;
use pim_events::StoreError;
use pim_telemetry::trace::SpanLine;
use uuid::Uuid;

use super::programs::{Programs, Sought};
use super::quiet::{Reader, is_quiet};
use super::{Hop, HopState, Journey, Stage};
use crate::client::Client;
use crate::operations::{Trail, TrailError};
use crate::projections::{self, Hop as Applied, QueryError, hops_of};
use crate::rig::Failure;
use crate::workers::{Stores, commands};

const JOURNEY: FanOut = FanOut::because("journey");
/// Most pages of records that a journey tells of; a longer one is not complete.
const TRAIL_PAGES_MAX: usize = 4;

/// A journey that cannot be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JourneyError {
    /// The audit trail.
    #[error("read the audit trail")]
    Audit(#[from] TrailError),
    /// The read models.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The consumers' heads.
    #[error("read the consumers' heads")]
    Heads(#[from] StoreError),
    /// Nobody knows the request.
    #[error("no store knows this request")]
    Unknown,
}

impl From<JourneyError> for Failure {
    fn from(error: JourneyError) -> Self {
        match error {
            JourneyError::Unknown => {
                Problem::of(problem::NOT_FOUND).detail("nobody knows this request, or it is past retention").into()
            }
            JourneyError::Query(error) => error.into_problem().into(),
            JourneyError::Audit(error) => error.into(),
            JourneyError::Heads(_) => Problem::of(problem::UNAVAILABLE).into(),
        }
    }
}

/// Tells journeys, from the stores and from the programs that it knows.
#[derive(Clone, Debug)]
pub struct Journeys {
    stores: Stores,
    client: Client,
}

/// Who acts on events: a read model or a command.
struct Consumer {
    name: &'static str,
    topic: &'static str,
    stage: Stage,
    handles: Box<dyn Fn(&str) -> bool + Send + Sync>,
}

fn consumers() -> Vec<Consumer> {
    let models = projections::all().into_iter().map(|model| {
        let (name, topic, handles) = (model.name(), model.topic(), Arc::clone(&model));
        Consumer { name, topic, stage: Stage::Apply, handles: Box::new(move |event| handles.handles(event)) }
    });
    let commands = commands().into_iter().map(|command| {
        let (name, topic, handles) = (command.name(), command.topic(), Arc::clone(&command));
        Consumer { name, topic, stage: Stage::Command, handles: Box::new(move |event| handles.handles(event)) }
    });
    models.chain(commands).collect()
}

impl FromRef<Stores> for Journeys {
    fn from_ref(stores: &Stores) -> Self {
        Self::over(stores.clone())
    }
}

impl Journeys {
    /// Over the stores, and the programs that they name.
    #[must_use]
    pub fn over(stores: Stores) -> Self {
        Self { client: stores.client.clone(), stores }
    }

    /// Tells the journey of a request. `session` is the session context of who asks, which other programs are shown.
    ///
    /// # Errors
    /// [`JourneyError::Unknown`] when nobody knows it; else the store that does not answer.
    pub async fn of(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        session: &HeaderValue,
        request: Uuid,
    ) -> Result<Journey, JourneyError> {
        let (stores, filter) = (&self.stores, AuditFilter::Request(request));
        let trail = Trail::gather((&stores.cluster, cx, permit), JOURNEY, &filter, TRAIL_PAGES_MAX).await?;
        let audit = trail.entries;
        let applied = hops_of(&self.stores.reads, request).await?;
        let (spans, silent) = self.spans(cx, session, Sought::Request(RequestId::from_uuid(request))).await;
        if audit.is_empty() && applied.is_empty() && spans.is_empty() {
            return Err(JourneyError::Unknown);
        }
        let trace_id = applied.first().map(|event| event.trace_id.clone());
        let mut hops: Vec<Hop> = spans.iter().filter_map(request_hop).collect();
        hops.extend(audit.iter().map(commit_hop));
        hops.extend(self.settled_hops(request, &audit, applied, &spans).await?);
        let complete = trail.complete && hops.iter().all(|hop| hop.state == HopState::Ok);
        hops.extend(silent.iter().map(|name| unknown_hop(name)));
        let of_audit = || audit.first().and_then(|entry| entry.body["trace"].as_str().map(str::to_owned));
        let trace_id = trace_id.or_else(of_audit).or_else(|| spans.first().map(|span| span.trace_id.clone()));
        Ok(Journey { request_id: request, trace_id, complete, unknown: silent, hops: in_order(hops) })
    }

    /// The request whose trace this is, for as long as some program remembers it: what the example of a metric names.
    pub async fn request_of(&self, cx: &RequestContext, session: &HeaderValue, trace: TraceId) -> Option<Uuid> {
        let (spans, _) = self.spans(cx, session, Sought::Trace(trace)).await;
        spans.iter().min_by_key(|span| span.began_at).map(|span| span.request_id.uuid())
    }

    /// What this process remembers, and the others.
    async fn spans(
        &self,
        cx: &RequestContext,
        session: &HeaderValue,
        sought: Sought,
    ) -> (Vec<SpanLine>, Vec<&'static str>) {
        let (programs, traces): (&Programs, _) = (&self.stores.programs, self.stores.hub.traces());
        let (mut spans, silent) = programs.spans_of(&self.client, cx, session, sought).await;
        let own = match sought {
            Sought::Request(request) => traces.of_request(request),
            Sought::Trace(trace) => traces.of(trace),
        };
        spans.extend(own.iter().map(SpanLine::from));
        (spans, silent)
    }

    /// As [`Journeys::event_hops`]; of what is not there yet it is found out whether it still can come.
    async fn settled_hops(
        &self,
        request: Uuid,
        audit: &[AuditEntry],
        applied: Vec<Applied>,
        spans: &[SpanLine],
    ) -> Result<Vec<Hop>, JourneyError> {
        let hops = self.event_hops(audit, &applied, spans).await?;
        // Behind so many events a read model is not asked what it knows.
        let is_whole = applied.len() < projections::HOPS_MAX;
        let sought: BTreeSet<Sighting> = pending(&hops).collect();
        let readers: Vec<Reader> = consumers().iter().map(|consumer| (consumer.name, consumer.topic)).collect();
        if sought.is_empty() || !is_whole || !is_quiet(&self.stores, &readers).await {
            return Ok(hops);
        }
        // What had committed before nothing was on its way any more is there from then on, or does not come.
        let applied = hops_of(&self.stores.reads, request).await?;
        let mut hops = self.event_hops(audit, &applied, spans).await?;
        give_up(&mut hops, &sought);
        Ok(hops)
    }

    /// Every event of the request: when the bus took it, and who acted on it.
    async fn event_hops(
        &self,
        audit: &[AuditEntry],
        applied: &[Applied],
        spans: &[SpanLine],
    ) -> Result<Vec<Hop>, JourneyError> {
        let consumers = consumers();
        let (mut hops, mut told) = (Vec::new(), BTreeSet::new());
        for event in applied {
            told.insert((event.home, event.n));
            hops.push(hop(Stage::Publish, event.event.clone(), event.home, event.n, event.published_at));
            let wanted: Vec<&Consumer> = consumers.iter().filter(|one| (one.handles)(&event.event)).collect();
            let found = self.consumer_hops(&wanted, (event.home, event.n), Some((event, spans))).await?;
            hops.extend(found);
        }
        // What committed but is not known to the read models yet is on its way.
        for entry in audit {
            let (Some(home), Some(n)) = (uuid_of(entry, "home"), entry.body["n"].as_u64()) else { continue };
            if told.insert((home, n)) {
                let mut pending = hop(Stage::Publish, "event".to_owned(), home, n, None);
                pending.state = HopState::Pending;
                hops.push(pending);
                let models: Vec<&Consumer> = consumers.iter().filter(|one| one.stage == Stage::Apply).collect();
                hops.extend(self.consumer_hops(&models, (home, n), None).await?);
            }
        }
        Ok(hops)
    }

    /// One hop for each consumer: done when its head has reached the event.
    async fn consumer_hops(
        &self,
        wanted: &[&Consumer],
        (home, n): (Uuid, u64),
        event: Option<(&Applied, &[SpanLine])>,
    ) -> Result<Vec<Hop>, JourneyError> {
        let names: Vec<&str> = wanted.iter().map(|consumer| consumer.name).collect();
        let heads = self.stores.reads.heads(&names, home).await?;
        let held = self.stores.reads.holds_of(home).await?;
        let mut hops = Vec::with_capacity(wanted.len());
        for consumer in wanted {
            let name = consumer.name;
            let head = heads.iter().find(|(known, head, _)| known == name && head.n >= n);
            let is_held = held.iter().any(|key| key.consumer == name && key.n_first <= n);
            let mut hop = hop(consumer.stage, name.to_owned(), home, n, None);
            match head {
                Some((_, head, at)) => {
                    let told = event.and_then(|(event, spans)| end_of(name, event, spans));
                    // Without its span the head's own time is an upper bound, and exact for its last event.
                    hop.at = Some(told.unwrap_or(*at));
                    hop.at_most = told.is_none() && head.n > n;
                }
                None if is_held => hop.state = HopState::DeadLettered,
                None => hop.state = HopState::Pending,
            }
            hops.push(hop);
        }
        Ok(hops)
    }
}

/// What tells a hop of an event from others.
type Sighting = (Uuid, Option<u64>, u8, String);

fn sighting(hop: &Hop) -> Sighting {
    (hop.home, hop.n, hop.stage as u8, hop.what.clone())
}

fn pending(hops: &[Hop]) -> impl Iterator<Item = Sighting> {
    hops.iter().filter(|hop| hop.state == HopState::Pending).map(sighting)
}

/// What is still pending is lost if it was sought before. What was not may have committed since then, and be on its way.
fn give_up(hops: &mut [Hop], sought: &BTreeSet<Sighting>) {
    let still = hops.iter_mut().filter(|hop| hop.state == HopState::Pending);
    still.filter(|hop| sought.contains(&sighting(hop))).for_each(|hop| hop.state = HopState::Lost);
}

/// When a consumer was done with an event, as it remembers itself or as the read model noted.
fn end_of(consumer: &str, event: &Applied, spans: &[SpanLine]) -> Option<Timestamp> {
    let span = spans.iter().rfind(|span| span.name == consumer && span.event_id == Some(event.event_id));
    let noted = (consumer == projections::HOPS).then_some(event.applied_at);
    span.map(SpanLine::ended_at).or(noted)
}

/// The way in: who asked and who answered.
fn request_hop(span: &SpanLine) -> Option<Hop> {
    let stage = match (span.kind.as_str(), span.service.as_str()) {
        ("client", _) => Stage::Caller,
        ("server", "gateway") => Stage::Edge,
        ("server", _) => Stage::Service,
        _ => return None,
    };
    let status = span.status.map_or_else(|| "cancelled".to_owned(), |status| status.to_string());
    let what = format!("{} {} {status} in {} us", span.service, span.name, span.took_us);
    let hop = hop(stage, what, Uuid::nil(), 0, Some(span.began_at));
    Some(Hop { n: None, span_id: Some(span.span_id.clone()), parent_id: span.parent_id.clone(), ..hop })
}

/// What a program that does not answer would have told.
fn unknown_hop(program: &'static str) -> Hop {
    let stage = match program {
        "gateway" => Stage::Edge,
        "persona-simulator" => Stage::Caller,
        "outbox-processor" => Stage::Publish,
        "projection-worker" => Stage::Apply,
        _ => Stage::Service,
    };
    let hop = hop(stage, format!("{program} does not answer"), Uuid::nil(), 0, None);
    Hop { n: None, state: HopState::Unknown, ..hop }
}

fn commit_hop(entry: &AuditEntry) -> Hop {
    let text = |member: &str| entry.body[member].as_str().unwrap_or_default();
    let what = format!("{} {} v{}", text("action"), text("entity"), entry.body["version"]);
    let mut commit = hop(Stage::Commit, what, uuid_of(entry, "home").unwrap_or_default(), 0, Some(entry.at));
    commit.n = entry.body["n"].as_u64();
    commit.by = Some(format!("{} ({})", text("user"), text("role")));
    commit
}

/// By time; those without one come last.
fn in_order(mut hops: Vec<Hop>) -> Vec<Hop> {
    let first = hops.iter().filter_map(|hop| hop.at).min();
    for hop in &mut hops {
        let since = hop.at.zip(first).map(|(at, first)| at.since(first).as_micros());
        hop.after_us = since.and_then(|us| u64::try_from(us).ok());
    }
    hops.sort_by_key(|hop| (hop.at.is_none(), hop.at, hop.stage as u8));
    hops
}

fn hop(stage: Stage, what: String, home: Uuid, n: u64, at: Option<Timestamp>) -> Hop {
    Hop {
        stage,
        what,
        home,
        n: Some(n),
        state: HopState::Ok,
        at,
        at_most: false,
        after_us: None,
        by: None,
        span_id: None,
        parent_id: None,
    }
}

fn uuid_of(entry: &AuditEntry, member: &str) -> Option<Uuid> {
    entry.body[member].as_str().and_then(|text| Uuid::try_parse(text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guard: what came while it was looked whether anything is on its way is on its way.
    #[test]
    fn only_what_was_missing_before_is_lost() {
        let at = |n: u64, stage: Stage, what: &str, state: HopState| {
            let hop = hop(stage, what.to_owned(), Uuid::nil(), n, None);
            Hop { state, ..hop }
        };
        let pending_at = |n, stage, what| at(n, stage, what, HopState::Pending);
        let before = [
            at(1, Stage::Apply, "a", HopState::Ok),
            pending_at(1, Stage::Apply, "b"),
            pending_at(1, Stage::Publish, "event"),
            pending_at(2, Stage::Apply, "a"),
        ];
        let sought = pending(&before).collect();
        let mut after = [
            pending_at(1, Stage::Apply, "b"),
            pending_at(1, Stage::Publish, "event"),
            at(2, Stage::Apply, "a", HopState::Ok),
            pending_at(2, Stage::Apply, "b"),
            pending_at(3, Stage::Apply, "b"),
            pending_at(1, Stage::Command, "b"),
        ];
        give_up(&mut after, &sought);
        let lost = after.map(|hop| hop.state == HopState::Lost);
        assert_eq!(lost, [true, true, false, false, false, false]);
    }
}
