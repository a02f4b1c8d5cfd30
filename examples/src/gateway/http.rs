//! The gateway as a service.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use pim_core::clock::Clock;
use pim_core::deadline::Deadline;
use pim_core::edge::{EdgeGuardLayer, confidential};
use pim_core::identity::{Actor, ActorVerifier};
use pim_core::problem::{self, IntoProblem as _, Problem, ProblemLayer, response_of};
use pim_core::rate::{Limit, LimitError, RateLimitLayer, RateTable};
use pim_core::request_id::{RequestIdLayer, Trust};
use pim_core::token::{KeyRing, TokenVerifier, VerifierSettings};
use serde_json::json;
use tokio::time::timeout;
use tower::util::MapResponseLayer;

use super::admit::admit;
use super::answer::streamed;
use super::forward::{Outgoing, forward, received};
use super::networks::{CHARGE, NetworkCharge};
use super::openapi::Document;
use super::session::SessionExchange;
use super::sign_in::sign_in;
use super::slots::Slots;
use crate::broker::GATEWAY_AUDIENCE;
use crate::chaos::ChaosPoint;
use crate::client::Client;
use crate::policy::{LabAction, LabResource, LabRole};
use crate::rig::{BODY_BYTES_MAX, Drain, HttpKeys, exposition};
use crate::routes::{Access, Class, Match, Route, Upstream, find};
use crate::signals::Hub;

/// Most calls a second that a limit can be set to: one a microsecond.
pub const CALLS_PER_SECOND_MAX: u32 = 1_000_000;

/// How the gateway is set up.
#[derive(Clone, Debug)]
pub struct GatewaySettings {
    /// Base URL of the broker, which is also its issuer name.
    pub broker: String,
    /// The secret by which the gateway authenticates to the broker.
    pub secret: String,
    /// Base URLs of the services.
    pub upstreams: BTreeMap<Upstream, String>,
    /// Most requests at once. Operators find a place beyond that: there are [`RESERVED`](super::RESERVED) for them. Sign-ins have
    /// [`SIGN_INS`](super::SIGN_INS) of their own.
    pub in_flight_max: usize,
    /// Calls a second that one persona may make, up to [`CALLS_PER_SECOND_MAX`]; a burst may be twice that.
    pub persona_calls_per_second: u32,
    /// Calls a second from one network, up to [`CALLS_PER_SECOND_MAX`], of everything but health. What the edge guard refuses is
    /// not counted: it goes no further.
    pub address_calls_per_second: u32,
    /// Where time comes from.
    pub clock: Clock,
    /// What it tells of itself.
    pub hub: Hub,
}

/// A gateway that cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// A rate is zero, or too high to be told from none.
    #[error("a rate of calls must be from 1 to {} a second", CALLS_PER_SECOND_MAX)]
    Rate(#[from] LimitError),
    /// The broker's URL is none.
    #[error("the broker's address is no URL such as http://127.0.0.1:8081")]
    Broker,
}

/// The gateway.
#[derive(Clone, Debug)]
pub struct Gateway(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    verifier: ActorVerifier,
    sessions: SessionExchange,
    client: Client,
    upstreams: BTreeMap<Upstream, String>,
    personas: RateTable,
    persona_limit: Limit,
    networks: RateLimitLayer<NetworkCharge>,
    slots: Slots,
    document: Document,
    hub: Hub,
}

const PERSONA_SLOTS: usize = 1 << 17;
const ADDRESS_SLOTS: usize = 1 << 14;
const SECOND: Duration = Duration::from_secs(1);

impl Gateway {
    /// Builds the gateway.
    ///
    /// # Errors
    /// [`GatewayError`] when a rate is zero or too high, or the broker's URL is none.
    pub fn new(settings: GatewaySettings) -> Result<Self, GatewayError> {
        let client = Client::new();
        let clock = settings.clock;
        let keys = format!("{}/jwks.json", settings.broker).parse().map_err(|_| GatewayError::Broker)?;
        let ring = KeyRing::new(HttpKeys::at(keys), clock.clone());
        let accepted = VerifierSettings::access_token(settings.broker.as_str(), GATEWAY_AUDIENCE);
        let (persona, address) = (settings.persona_calls_per_second, settings.address_calls_per_second);
        let by_network = Limit::new(address, SECOND, address.saturating_mul(2))?;
        Ok(Self(Arc::new(Inner {
            verifier: ActorVerifier::new::<LabRole>(TokenVerifier::new(accepted, ring, clock.clone())),
            sessions: SessionExchange::new(client.clone(), &settings.broker, &settings.secret, clock),
            client,
            upstreams: settings.upstreams,
            personas: RateTable::new(PERSONA_SLOTS),
            persona_limit: Limit::new(persona, SECOND, persona.saturating_mul(2))?,
            networks: RateLimitLayer::new(RateTable::new(ADDRESS_SLOTS), by_network, CHARGE),
            slots: Slots::new(settings.in_flight_max),
            document: Document::default(),
            hub: settings.hub,
        })))
    }

    /// Its HTTP side.
    pub fn into_router(self, drain: Drain) -> Router {
        let ready = move || {
            let draining = drain.has_begun();
            async move {
                if draining {
                    return response_of::<Body>(Problem::of(problem::UNAVAILABLE).detail("draining"));
                }
                Response::new(Body::from(json!({"status": "ready", "service": "gateway"}).to_string()))
            }
        };
        let observe = self.0.hub.at_the_edge("gateway");
        Router::new()
            .route("/metrics", get(metrics))
            .route("/openapi.json", get(document))
            .fallback(pass)
            // Of all that the guard passes; whoever asks whether the gateway lives is told so, whatever others ask.
            .layer(self.0.networks.clone())
            .route("/healthz/live", get(|| async { Json(json!({"status": "live"})) }))
            .route("/healthz/ready", get(ready))
            .with_state(self)
            .layer(EdgeGuardLayer)
            .layer(ProblemLayer)
            .layer(observe)
            .layer(RequestIdLayer::new(Trust::Edge))
            .layer(MapResponseLayer::new(confidential::<Body>))
    }

    pub(super) fn verifier(&self) -> &ActorVerifier {
        &self.0.verifier
    }

    pub(super) fn sessions(&self) -> &SessionExchange {
        &self.0.sessions
    }

    pub(super) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(super) fn upstream(&self, upstream: Upstream) -> Option<&str> {
        self.0.upstreams.get(&upstream).map(String::as_str)
    }

    pub(super) fn personas(&self) -> &RateTable {
        &self.0.personas
    }

    pub(super) fn persona_limit(&self) -> Limit {
        self.0.persona_limit
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.0.slots
    }
}

async fn metrics(State(gateway): State<Gateway>, headers: HeaderMap) -> Response {
    exposition(&gateway.0.hub, &headers)
}

async fn document(State(gateway): State<Gateway>) -> Response {
    match gateway.0.document.shown(&gateway).await {
        Ok(json) => ([(CONTENT_TYPE, "application/json")], json).into_response(),
        Err(problem) => response_of(problem),
    }
}

async fn pass(State(gateway): State<Gateway>, request: Request) -> Response {
    let (mut head, body) = request.into_parts();
    let passed = match find(&head.method, head.uri.path()) {
        Match::Found(route) => match route.access {
            Access::Public => sign_in(&gateway, route, &head, body).await,
            Access::Granted(action, resource) => call(&gateway, route, (action, resource), &mut head, body).await,
        },
        Match::OtherMethods(allowed) => Err(Problem::of(problem::METHOD_NOT_ALLOWED).allow(allowed)),
        Match::Unknown => Err(Problem::of(problem::NOT_FOUND)),
    };
    let mut response = passed.unwrap_or_else(response_of);
    // For the access line: who it was for.
    if let Some(actor) = head.extensions.remove::<Actor>() {
        response.extensions_mut().insert(actor);
    }
    response
}

/// A call by somebody, who has to show who that is.
async fn call(
    gateway: &Gateway,
    route: &'static Route,
    needed: (LabAction, LabResource),
    head: &mut Parts,
    body: Body,
) -> Result<Response, Problem> {
    let slots = gateway.slots();
    let common = slots.common();
    // Operations stay reachable whatever is armed here and however much is asked.
    if !head.uri.path().starts_with("/v1/admin/") {
        if common.is_none() {
            return Err(overloaded());
        }
        struck(gateway, route.class).await?;
    }
    let admitted = admit(gateway, needed, route.class, head).await?;
    // A reserved place is for whoever is known to operate, or anybody could take it for as long as it takes to find out.
    let reserved = || if admitted.is_operator() { slots.reserved() } else { None };
    let place = common.or_else(reserved).ok_or_else(overloaded)?;
    let session = gateway.sessions().context_of(&admitted.token, &head.extensions).await?;
    let deadline = Deadline::after(route.class.timeout());
    // A place is held meanwhile: whoever sends slowly must not hold it for ever, nor as long as a sweep may take.
    let body = received(body, deadline.capped(Class::Operate.timeout()), BODY_BYTES_MAX).await?;
    let txn_token = Some(session.token.clone());
    let outgoing = Outgoing { upstream: route.upstream, head, body, txn_token, deadline };
    Ok(streamed(forward(gateway, outgoing).await?, deadline, place))
}

pub(super) fn overloaded() -> Problem {
    Problem::of(problem::OVERLOADED).retry_after_secs(1)
}

/// Lets a fault strike, for no longer than the route has time: a place is held meanwhile.
async fn struck(gateway: &Gateway, class: Class) -> Result<(), Problem> {
    match timeout(class.timeout(), gateway.0.hub.chaos().inject(ChaosPoint::Gateway)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(injected)) => Err(injected.into_problem().retry_after_secs(1)),
        Err(_elapsed) => Err(Problem::of(problem::DEADLINE_EXCEEDED)),
    }
}
