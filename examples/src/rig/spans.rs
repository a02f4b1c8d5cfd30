//! The spans that a program keeps, told to operations of the lab and to nobody else. No public route leads here.

use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use pim_core::context::{RequestContext, RequestId};
use pim_core::problem::{self, Problem};
use pim_core::rbac::Read;
use pim_telemetry::trace::{SpanLine, TraceStore};
use serde::Deserialize;

use super::{Failure, May};

/// Where the spans of a request are asked for.
pub const SPANS_PATH: &str = "/internal/spans";
/// Most spans of one answer.
pub const SPANS_PER_ANSWER_MAX: usize = 1_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    request_id: RequestId,
}

pub(super) fn routes(traces: TraceStore) -> Router {
    Router::new().route(SPANS_PATH, get(spans)).with_state(traces)
}

async fn spans(
    State(traces): State<TraceStore>,
    May(_permit): May<Read>,
    _cx: axum::Extension<RequestContext>,
    asked: Result<Query<Asked>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Vec<SpanLine>>, Failure> {
    let bad = |_| Problem::of(problem::INVALID_QUERY).detail("request_id must be the id of a request");
    let Query(asked) = asked.map_err(bad)?;
    let found = traces.of_request(asked.request_id);
    Ok(Json(found.iter().take(SPANS_PER_ANSWER_MAX).map(SpanLine::from).collect()))
}
