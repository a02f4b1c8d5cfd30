//! The stack around a domain router: request id, problems, session and policy, health.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use http::StatusCode;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, VARY};
use pim_core::context::RequestContextLayer;
use pim_core::edge::confidential;
use pim_core::problem::{self, IntoProblem as _, Problem, ProblemLayer, response_of};
use pim_core::request_id::{RequestIdLayer, Trust};
use pim_core::role::ClosedEnum as _;
use pim_data::cluster::Cluster;
use pim_telemetry::exposition::Format;
use serde_json::{Value, json};
use tower::util::MapResponseLayer;

use super::Drain;
use super::gate::guarded;
use crate::chaos::{self, ChaosPoint};
use crate::signals::Hub;

/// What a service is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Its name.
    pub name: &'static str,
    /// Its shards, when it has some.
    pub cluster: Option<Cluster>,
    /// When it ends.
    pub drain: Drain,
    /// Its OpenAPI document.
    pub openapi: Value,
    /// What it tells of itself.
    pub hub: Hub,
}

/// A service: public routes behind session and policy, and what operations need beside them.
#[derive(Clone, Debug)]
pub struct Service {
    parts: Parts,
    gated: Router,
    open: Router,
}

impl Service {
    /// A service without routes so far.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self { parts, gated: Router::new(), open: Router::new() }
    }

    /// Routes that need a session; each must be in one of the route tables.
    #[must_use]
    pub fn routes(mut self, routes: Router, sessions: &RequestContextLayer) -> Self {
        let mut gated = guarded(routes, sessions);
        if let Some(point) = ChaosPoint::from_name(self.parts.name) {
            gated = gated.route_layer(middleware::from_fn_with_state((self.parts.hub.clone(), point), strike));
        }
        self.gated = self.gated.merge(gated);
        self
    }

    /// Tells operations of the lab the spans that this program keeps.
    #[must_use]
    pub fn spans(self, sessions: &RequestContextLayer) -> Self {
        let traces = self.parts.hub.traces().clone();
        self.routes(super::spans::routes(traces), sessions)
    }

    /// Routes that decide for themselves who may use them.
    #[must_use]
    pub fn open_routes(mut self, routes: Router) -> Self {
        self.open = self.open.merge(routes);
        self
    }

    /// The whole service.
    pub fn into_router(self) -> Router {
        let observe = self.parts.hub.at_a_service(self.parts.name);
        let operations = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz/live", get(|| async { Json(json!({"status": "live"})) }))
            .route("/healthz/ready", get(ready))
            .route("/healthz/shards", get(shards))
            .route("/openapi.json", get(openapi))
            .route("/chaos/flags", get(faults))
            .with_state(self.parts);
        let routes = self.gated.merge(self.open).merge(operations);
        let routes = routes.fallback(|| async { response_of::<Body>(Problem::of(problem::NOT_FOUND)) });
        let routes = routes.layer(ProblemLayer).layer(observe).layer(RequestIdLayer::new(Trust::Inside));
        routes.layer(MapResponseLayer::new(confidential::<Body>))
    }
}

async fn ready(State(parts): State<Parts>) -> Response {
    if parts.drain.has_begun() {
        return response_of(Problem::of(problem::UNAVAILABLE).detail("draining"));
    }
    Json(json!({"status": "ready", "service": parts.name})).into_response()
}

async fn shards(State(parts): State<Parts>) -> Response {
    let Some(cluster) = parts.cluster else {
        return Json(json!({"shards": []})).into_response();
    };
    let shards = cluster.health().await;
    let all_answer = shards.iter().all(|shard| shard.reachable);
    let status = if all_answer { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let map_version = cluster.router().version();
    (status, Json(json!({"map_version": map_version, "shards": shards}))).into_response()
}

async fn metrics(State(parts): State<Parts>, headers: HeaderMap) -> Response {
    exposition(&parts.hub, &headers)
}

/// What `/metrics` answers, in the form that the scraper accepts.
pub(crate) fn exposition(hub: &Hub, headers: &HeaderMap) -> Response {
    // A header that comes in several lines is one list.
    let accepted: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = Format::accepted(&accepted.join(","));
    let head = [(CONTENT_TYPE, format.media_type()), (VARY, "accept")];
    (head, hub.exposition(format)).into_response()
}

/// The faults that operators have armed, for programs without databases; reached inside alone, like `/metrics`.
async fn faults(State(parts): State<Parts>) -> Response {
    let Some(cluster) = parts.cluster else { return Json(json!({"items": []})).into_response() };
    match chaos::flags_in(&cluster).await {
        Ok(flags) => Json(json!({"items": flags})).into_response(),
        Err(_) => response_of(Problem::of(problem::UNAVAILABLE).retry_after_secs(1)),
    }
}

/// Lets the fault at this service's own point strike before anything is decided.
async fn strike(State((hub, point)): State<(Hub, ChaosPoint)>, request: Request, next: Next) -> Response {
    match hub.chaos().inject(point).await {
        Ok(()) => next.run(request).await,
        Err(injected) => response_of(injected.into_problem().retry_after_secs(1)),
    }
}

async fn openapi(State(parts): State<Parts>) -> Json<Value> {
    Json(parts.openapi)
}
