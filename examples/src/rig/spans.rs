//! The spans of a request or a trace that a program keeps, told to operations of the lab and to nobody else. No public route leads here.

use std::str::FromStr as _;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use pim_core::context::{RequestContext, RequestId, TraceId};
use pim_core::problem::{self, Problem};
use pim_core::rbac::Read;
use pim_telemetry::trace::{SpanLine, TraceStore};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Asked, Failure, May};

/// Where the spans of a request, or of a trace, are asked for.
pub const SPANS_PATH: &str = "/internal/spans";
/// Most spans of one answer.
pub const SPANS_PER_ANSWER_MAX: usize = 1_000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct Whose {
    /// Of a request; this or trace_id
    #[param(value_type = Option<String>, format = "uuid")]
    request_id: Option<RequestId>,
    /// Of a trace; this or request_id
    trace_id: Option<String>,
}

pub(super) fn routes(traces: TraceStore) -> Router {
    Router::new().route(SPANS_PATH, get(spans)).with_state(traces)
}

async fn spans(
    State(traces): State<TraceStore>,
    May(_permit): May<Read>,
    _cx: axum::Extension<RequestContext>,
    Asked(asked): Asked<Whose>,
) -> Result<Json<Vec<SpanLine>>, Failure> {
    let bad = || Problem::of(problem::INVALID_QUERY).detail("name a request_id or a trace_id");
    let trace = asked.trace_id.as_deref().map(TraceId::from_str).transpose().map_err(|_| bad())?;
    let found = match (asked.request_id, trace) {
        (Some(request), None) => traces.of_request(request),
        (None, Some(trace)) => traces.of(trace),
        _ => return Err(bad().into()),
    };
    Ok(Json(found.iter().take(SPANS_PER_ANSWER_MAX).map(SpanLine::from).collect()))
}
