//! Operations, and what is known of them: dead letters, projections, journeys, runs.

mod dead_letter;
mod ledger;

pub use ledger::{IN_PROGRESS, Intent, LEASE, OperationRecord, OperationState, operate, routes as record_routes};

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use http::HeaderValue;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use pim_core::clock::Timestamp;
use pim_core::problem::{self, Problem, ProblemType};
use pim_core::rbac::{Read, Write};
use pim_events::{Rebuild, Subscriber, Verdict};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::journey::{Journeys, as_mermaid, as_text};
use crate::policy::LabResource;
use crate::projections;
use crate::rig::{Answer, Caller, Command, Failure, May, Nothing, TXN_TOKEN_HEADER};
use crate::runs::summarize;
use crate::workers::Stores;

/// No consumer has this name; `consumers` lists those that there are.
const UNKNOWN_CONSUMER: ProblemType = ProblemType::new("unknown-consumer", 404, "There is no such consumer");
/// The consumer runs already.
const NOT_STOPPED: ProblemType = ProblemType::new("consumer-not-stopped", 409, "The consumer does not stand still");

/// The routes, for the admin service.
pub fn routes(stores: Stores) -> Router {
    let journeys = Router::new().route("/v1/admin/journeys/{request_id}", get(show_journey));
    let journeys = journeys.with_state(Journeys::over(stores.clone()));
    Router::new()
        .route("/v1/admin/projections", get(list_projections))
        .route("/v1/admin/projections/{name}/rebuild", post(rebuild))
        .route("/v1/admin/projections/{name}/resume", post(resume))
        .route("/v1/admin/runs/summary", get(run_summary))
        .merge(dead_letter::routes())
        .with_state(stores.clone())
        .merge(journeys)
        .merge(crate::chaos::routes(stores.cluster, stores.hub))
}

/// Every consumer may hold keys and stand still: read models, and commands that events drive.
fn known_consumer(name: &str) -> Result<(), Problem> {
    let models = projections::all().into_iter().map(|projection| projection.name());
    let commands = crate::workers::commands().into_iter().map(|command| command.name());
    let known: Vec<&'static str> = models.chain(commands).collect();
    if known.contains(&name) { Ok(()) } else { Err(Problem::of(UNKNOWN_CONSUMER).with("consumers", known)) }
}

fn unavailable<E>(_: E) -> Failure {
    Problem::of(problem::UNAVAILABLE).detail("a store does not answer").retry_after_secs(1).into()
}

async fn list_projections(State(stores): State<Stores>, May(_permit): May<Read>) -> Result<Answer, Failure> {
    let consumers = stores.reads.status(&stores.bus).await.map_err(unavailable)?;
    let distribution = projections::distribution(&stores.reads).await?;
    Answer::ok(&json!({"items": consumers, "distribution": distribution}))
}

async fn rebuild(
    State(stores): State<Stores>,
    May(permit): May<Write>,
    Path(name): Path<String>,
    command: Command<Nothing>,
) -> Result<Answer, Failure> {
    let projection = projections::all().into_iter().find(|projection| projection.name() == name);
    let projection = projection.ok_or_else(|| Problem::of(problem::NOT_FOUND).detail("there is no such projection"))?;
    let effect = async {
        let bus: Arc<dyn Subscriber> = Arc::new(stores.bus.clone());
        let rebuild = Rebuild::new(&stores.reads, bus, &stores.registry, projection, Verdict::MustEqual);
        let report = rebuild.run(stores.cluster.data_dir(), |_state, _records| {}).await.map_err(unavailable)?;
        Answer::ok(&report)
    };
    let intent = Intent::new("projection.rebuild", name, json!({}));
    operate(&stores.cluster, &permit, &command.cx, intent, effect).await
}

/// Lets a consumer run again that stands still because it holds more than it may. It stops again when that has not changed.
async fn resume(
    State(stores): State<Stores>,
    May(permit): May<Write>,
    Path(name): Path<String>,
    command: Command<Nothing>,
) -> Result<Answer, Failure> {
    known_consumer(&name)?;
    let intent = Intent::new("projection.resume", name.clone(), json!({}));
    let effect = async {
        match stores.reads.resume(&name).await.map_err(unavailable)? {
            true => Answer::ok(&json!({"consumer": name, "resumed": true})),
            false => Err(Problem::of(NOT_STOPPED).into()),
        }
    };
    operate(&stores.cluster, &permit, &command.cx, intent, effect).await
}

async fn show_journey(
    State(journeys): State<Journeys>,
    May(permit): May<Read>,
    caller: Caller,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let rule = "the x-pim-request-id of an answer, or the trace id that an example of a metric names";
    let mut request = Uuid::try_parse(&id).map_err(|_| Problem::of(problem::INVALID_ID).detail(rule))?;
    let session = headers.get(TXN_TOKEN_HEADER).cloned().unwrap_or_else(|| HeaderValue::from_static(""));
    if let Ok(trace) = id.parse() {
        request = journeys.request_of(&caller.cx, &session, trace).await.unwrap_or(request);
    }
    let permit = permit.for_resource(LabResource::Audit);
    let told = journeys.of(&caller.cx, &permit, &session, request).await?;
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    Ok(match accepted {
        "text/plain" => ([(CONTENT_TYPE, "text/plain; charset=utf-8")], as_text(&told)).into_response(),
        "text/vnd.mermaid" => ([(CONTENT_TYPE, "text/vnd.mermaid")], as_mermaid(&told)).into_response(),
        _ => Answer::ok(&told)?.into_response(),
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Since {
    since: Option<Timestamp>,
}

async fn run_summary(
    State(stores): State<Stores>,
    May(_permit): May<Read>,
    query: Result<Query<Since>, QueryRejection>,
) -> Result<Answer, Failure> {
    let Query(asked) = query.map_err(|_| Problem::of(problem::INVALID_QUERY).detail("since must be an instant"))?;
    let since = asked.since.unwrap_or(Timestamp::from_micros(0));
    let summary = summarize(&stores, since).await.map_err(unavailable)?;
    let mut document = serde_json::to_value(&summary).unwrap_or(Value::Null);
    document["holds"] = Value::from(summary.holds());
    Answer::ok(&document)
}
