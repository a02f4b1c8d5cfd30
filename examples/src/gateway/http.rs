//! The gateway as a service.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use http::HeaderMap;
use http::request::Parts;
use http_body_util::BodyExt as _;
use pim_core::clock::Clock;
use pim_core::edge::EdgeGuardLayer;
use pim_core::identity::{Actor, ActorVerifier};
use pim_core::problem::{self, IntoProblem as _, Problem, ProblemLayer, response_of};
use pim_core::rate::{Limit, LimitError, RateTable};
use pim_core::request_id::{RequestIdLayer, Trust};
use pim_core::token::{KeyRing, TokenVerifier, VerifierSettings};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::session::SessionExchange;
use super::slots::Slots;
use super::{admit, forward, openapi};
use crate::broker::GATEWAY_AUDIENCE;
use crate::chaos::ChaosPoint;
use crate::client::Client;
use crate::policy::LabRole;
use crate::rig::{Drain, HttpKeys, exposition};
use crate::routes::{Class, Match, Upstream, find};
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
    /// Most requests at once. Operations and sign-ins find a place beyond that: there are [`RESERVED`](super::RESERVED) for them.
    pub in_flight_max: usize,
    /// Calls a second that one persona may make, up to [`CALLS_PER_SECOND_MAX`]; a burst may be twice that.
    pub persona_calls_per_second: u32,
    /// Calls a second from one network, up to [`CALLS_PER_SECOND_MAX`].
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
    addresses: RateTable,
    address_limit: Limit,
    slots: Slots,
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
        Ok(Self(Arc::new(Inner {
            verifier: ActorVerifier::new::<LabRole>(TokenVerifier::new(accepted, ring, clock.clone())),
            sessions: SessionExchange::new(client.clone(), &settings.broker, &settings.secret, clock),
            client,
            upstreams: settings.upstreams,
            personas: RateTable::new(PERSONA_SLOTS),
            persona_limit: Limit::new(persona, SECOND, persona.saturating_mul(2))?,
            addresses: RateTable::new(ADDRESS_SLOTS),
            address_limit: Limit::new(address, SECOND, address.saturating_mul(2))?,
            slots: Slots::new(settings.in_flight_max),
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
            .route("/healthz/live", get(|| async { Json(json!({"status": "live"})) }))
            .route("/healthz/ready", get(ready))
            .route("/openapi.json", get(document))
            .fallback(pass)
            .with_state(self)
            .layer(EdgeGuardLayer)
            .layer(ProblemLayer)
            .layer(observe)
            .layer(RequestIdLayer::new(Trust::Edge))
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

    pub(super) fn addresses(&self) -> &RateTable {
        &self.0.addresses
    }

    pub(super) fn address_limit(&self) -> Limit {
        self.0.address_limit
    }
}

async fn metrics(State(gateway): State<Gateway>, headers: HeaderMap) -> Response {
    exposition(&gateway.0.hub, &headers)
}

async fn document(State(gateway): State<Gateway>) -> Json<serde_json::Value> {
    Json(openapi::merged(&gateway).await)
}

async fn pass(State(gateway): State<Gateway>, request: Request) -> Response {
    let (mut head, body) = request.into_parts();
    let is_operation = is_operation(&head);
    let Some(slot) = gateway.0.slots.take(is_operation) else {
        return response_of(Problem::of(problem::OVERLOADED).retry_after_secs(1));
    };
    if !is_operation && let Err(problem) = struck(&gateway, &head).await {
        return response_of(problem);
    }
    let outcome = match admit::admit(&gateway, &mut head).await {
        Ok(admitted) => forward::forward(&gateway, &admitted, &head, body).await,
        Err(problem) => Err(problem),
    };
    let mut response = match outcome {
        Ok(response) => holding(response, slot),
        Err(problem) => response_of(problem),
    };
    // For the access line: who it was for.
    if let Some(actor) = head.extensions.remove::<Actor>() {
        response.extensions_mut().insert(actor);
    }
    response
}

/// What stays reachable whatever is armed here and however much is asked: operations, and the sign-in that they begin with.
fn is_operation(head: &Parts) -> bool {
    let signs_in =
        || matches!(find(&head.method, head.uri.path()), Match::Found(it) if it.upstream == Upstream::Broker);
    head.uri.path().starts_with("/v1/admin/") || signs_in()
}

/// Lets a fault strike, for no longer than the route has time: a slot is held meanwhile.
async fn struck(gateway: &Gateway, head: &Parts) -> Result<(), Problem> {
    let time = match find(&head.method, head.uri.path()) {
        Match::Found(route) => route.class.timeout(),
        Match::OtherMethods(_) | Match::Unknown => Class::Read.timeout(),
    };
    match timeout(time, gateway.0.hub.chaos().inject(ChaosPoint::Gateway)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(injected)) => Err(injected.into_problem().retry_after_secs(1)),
        Err(_elapsed) => Err(Problem::of(problem::DEADLINE_EXCEEDED)),
    }
}

/// Keeps the slot until the answer's body has ended, not only its head.
fn holding(response: Response, slot: OwnedSemaphorePermit) -> Response {
    response.map(|body| {
        let body = body.map_frame(move |frame| {
            let _held = &slot;
            frame
        });
        Body::new(body)
    })
}
