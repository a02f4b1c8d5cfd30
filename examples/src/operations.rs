//! Operations, and what is known of them: dead letters, projections, journeys, runs.

mod dead_letter;
mod ledger;
mod trail;
mod turn;

pub use ledger::{
    IN_PROGRESS, Intent, LEASE, OperationRecord, OperationState, answered, id_of, operate, operate_to_its_end,
};
pub use trail::{Trail, TrailError};
pub use turn::{Turn, TurnError};

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use http::HeaderValue;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use pim_core::clock::Timestamp;
use pim_core::context::TXN_TOKEN_HEADER;
use pim_core::problem::{self, Problem, ProblemType};
use pim_core::rbac::{Read, Write};
use pim_events::{Rebuild, RebuildError, Subscriber, Verdict};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::IntoParams;
use uuid::Uuid;

use crate::journey::{Journeys, as_mermaid, as_text};
use crate::policy::LabResource;
use crate::projections;
use crate::rig::{Answer, Asked, Caller, Command, Endpoints, Failure, May, Nothing, Operation};
use crate::runs::summarize;
use crate::workers::Stores;

/// No consumer has this name; `consumers` lists those that there are.
const UNKNOWN_CONSUMER: ProblemType = ProblemType::new("unknown-consumer", 404, "There is no such consumer");
/// The consumer runs already.
const NOT_STOPPED: ProblemType = ProblemType::new("consumer-not-stopped", 409, "The consumer does not stand still");

/// Two at once would fill one place.
const BEING_REBUILT: ProblemType =
    ProblemType::new("model-being-rebuilt", 409, "The read model is being rebuilt already");
/// Doing it again as it is does not help.
const NOT_REBUILT: ProblemType =
    ProblemType::new("model-not-rebuilt", 409, "The read model was not rebuilt; it is as it was");

/// Each reads all of every store.
const BEING_SUMMED_UP: ProblemType =
    ProblemType::new("run-being-summed-up", 409, "The run is being summed up for somebody else");

/// The operations, for the admin service.
pub fn endpoints() -> Endpoints<Stores> {
    Endpoints::new()
        .serve(Operation::tell("/v1/admin/projections", "Tells how consumers and read models are"), list_projections)
        .serve(Operation::operate("/v1/admin/projections/{name}/rebuild", "Rebuilds a read model"), rebuild)
        .serve(Operation::operate("/v1/admin/projections/{name}/resume", "Lifts a consumer's stop"), resume)
        .serve(Operation::tell("/v1/admin/runs/summary", "Tells what the run came to"), run_summary)
        .serve(Operation::tell("/v1/admin/journeys/{request_id}", "Tells the journey of a request"), show_journey)
        .merge(dead_letter::endpoints())
        .merge(ledger::endpoints())
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

fn not_rebuilt(error: RebuildError) -> Failure {
    match error {
        RebuildError::Running { name } => Problem::of(BEING_REBUILT).with("projection", name).into(),
        RebuildError::Behind | RebuildError::Stopped | RebuildError::Rewound { .. } => {
            Problem::of(NOT_REBUILT).detail(error.to_string()).into()
        }
        _ => unavailable(error),
    }
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
    let cluster = stores.cluster.clone();
    let effect = async move {
        let bus: Arc<dyn Subscriber> = Arc::new(stores.bus.clone());
        let rebuild = Rebuild::new(&stores.reads, bus, &stores.registry, projection, Verdict::MustEqual);
        let report = rebuild.run(stores.cluster.data_dir(), |_state, _records| {}).await.map_err(not_rebuilt)?;
        Answer::ok(&report)
    };
    let intent = Intent::new("projection.rebuild", name, json!({}));
    // It takes as long as there is a log, which may be longer than a request may.
    operate_to_its_end(cluster, &permit, command.cx, intent, effect).await
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

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct Since {
    /// From when on, as an RFC 3339 time
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
}

async fn run_summary(
    State(stores): State<Stores>,
    May(_permit): May<Read>,
    Asked(asked): Asked<Since>,
) -> Result<Answer, Failure> {
    let turn = stores.summaries.begin();
    let _turn = turn.ok_or_else(|| Problem::of(BEING_SUMMED_UP).retry_after_secs(1))?;
    let since = asked.since.unwrap_or(Timestamp::from_micros(0));
    let summary = summarize(&stores, since).await.map_err(unavailable)?;
    let mut document = serde_json::to_value(&summary).unwrap_or(Value::Null);
    document["holds"] = Value::from(summary.holds());
    Answer::ok(&document)
}
