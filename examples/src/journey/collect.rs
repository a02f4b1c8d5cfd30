//! Joining the stores.

use std::collections::BTreeSet;

use pim_core::context::{RequestContext, RequestId};
use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::rbac::{Permit, Read};
use pim_data::audit::{AuditEntry, AuditFilter};
use pim_data::backend::DbError;
use pim_events::StoreError;
use uuid::Uuid;

use super::{Hop, HopState, Journey, Stage};
use crate::projections::{self, QueryError, hops_of};
use crate::rig::Failure;
use crate::workers::Stores;

/// A journey that cannot be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JourneyError {
    /// The audit trail.
    #[error("read the audit trail")]
    Audit(#[from] DbError),
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
                Problem::of(problem::NOT_FOUND).detail("the request changed nothing, or is past retention").into()
            }
            JourneyError::Query(error) => error.into_problem().into(),
            JourneyError::Audit(_) | JourneyError::Heads(_) => Problem::of(problem::UNAVAILABLE).into(),
        }
    }
}

/// Tells the journey of a request.
///
/// # Errors
/// [`JourneyError::Unknown`] when no store knows it; else the store that does not answer.
pub async fn journey(
    stores: &Stores,
    cx: &RequestContext,
    permit: &Permit<Read>,
    request: Uuid,
) -> Result<Journey, JourneyError> {
    let audit = stores.cluster.audit(cx, permit, &AuditFilter::Request(request)).await?;
    let applied = hops_of(&stores.reads, request).await?;
    if audit.is_empty() && applied.is_empty() {
        return Err(JourneyError::Unknown);
    }
    let mut hops = request_hops(stores, request);
    hops.extend(audit.iter().map(commit_hop));
    let mut told = BTreeSet::new();
    for event in &applied {
        told.insert((event.home, event.n));
        let publish = |at| hop(Stage::Publish, event.event.clone(), event.home, event.n, at);
        hops.push(publish(event.published_at));
        hops.extend(apply_hops(stores, event.home, event.n, Some(event.applied_at)).await?);
    }
    // What committed but is not known to the read models yet is on its way.
    for entry in &audit {
        let (Some(home), Some(n)) = (uuid_of(entry, "home"), entry.body["n"].as_u64()) else { continue };
        if told.insert((home, n)) {
            let mut pending = hop(Stage::Publish, "event".to_owned(), home, n, None);
            pending.state = HopState::Pending;
            hops.push(pending);
            hops.extend(apply_hops(stores, home, n, None).await?);
        }
    }
    let first = hops.iter().filter_map(|hop| hop.at).min();
    for hop in &mut hops {
        let since = hop.at.zip(first).map(|(at, first)| at.since(first).as_micros());
        hop.after_us = since.and_then(|us| u64::try_from(us).ok());
    }
    hops.sort_by_key(|hop| (hop.at.is_none(), hop.at, hop.stage as u8));
    let trace_id = applied.first().map(|event| event.trace_id.clone());
    let trace_id = trace_id.or_else(|| audit.first().and_then(|entry| entry.body["trace"].as_str().map(str::to_owned)));
    let complete = hops.iter().all(|hop| hop.state == HopState::Ok);
    Ok(Journey { request_id: request, trace_id, complete, hops })
}

/// The way in, from the spans of this process; they are kept for a while only, so a journey is whole without them.
fn request_hops(stores: &Stores, request: Uuid) -> Vec<Hop> {
    let spans = stores.hub.traces().of_request(RequestId::from_uuid(request));
    let told = |span: &pim_telemetry::trace::Span| {
        let stage = if span.service == "gateway" { Stage::Edge } else { Stage::Service };
        let status = span.status.map_or_else(|| "cancelled".to_owned(), |status| status.to_string());
        let what = format!("{} {} {status} in {} us", span.service, span.route, span.took.as_micros());
        Hop { n: None, ..hop(stage, what, Uuid::nil(), 0, Some(span.began_at)) }
    };
    spans.iter().map(told).collect()
}

fn commit_hop(entry: &AuditEntry) -> Hop {
    let text = |member: &str| entry.body[member].as_str().unwrap_or_default();
    let what = format!("{} {} v{}", text("action"), text("entity"), entry.body["version"]);
    let mut commit = hop(Stage::Commit, what, uuid_of(entry, "home").unwrap_or_default(), 0, Some(entry.at));
    commit.n = entry.body["n"].as_u64();
    commit.by = Some(format!("{} ({})", text("user"), text("role")));
    commit
}

/// One hop for each read model: done when its head has reached the event.
async fn apply_hops(
    stores: &Stores,
    home: Uuid,
    n: u64,
    at: Option<pim_core::clock::Timestamp>,
) -> Result<Vec<Hop>, JourneyError> {
    let held = stores.reads.held_keys(None, pim_events::LIST_MAX).await?;
    let mut hops = Vec::new();
    for projection in projections::all() {
        let name = projection.name();
        let head = stores.reads.head(name, home).await?;
        let is_held = held.iter().any(|key| key.consumer == name && key.key == home && key.n_first <= n);
        let state = if head.n >= n {
            HopState::Ok
        } else if is_held {
            HopState::DeadLettered
        } else {
            HopState::Pending
        };
        let mut apply = hop(Stage::Apply, name.to_owned(), home, n, at.filter(|_| state == HopState::Ok));
        apply.state = state;
        hops.push(apply);
    }
    Ok(hops)
}

fn hop(stage: Stage, what: String, home: Uuid, n: u64, at: Option<pim_core::clock::Timestamp>) -> Hop {
    Hop { stage, what, home, n: Some(n), state: HopState::Ok, at, after_us: None, by: None }
}

fn uuid_of(entry: &AuditEntry, member: &str) -> Option<Uuid> {
    entry.body[member].as_str().and_then(|text| Uuid::try_parse(text).ok())
}
