//! Where faults may strike in the lab, and the routes that arm and disarm them. Every fault is a lease that ends by itself.
//!
//! A lease holds in the process that took it: in the composed lab that is everything, in the nine-program layout the admin service.

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, put};
use pim_core::chaos::{ChaosRegistry, Fault, LeaseError, Share};
use pim_core::problem::{self, Problem};
use pim_core::rbac::{Read, Write};
use pim_core::role::ClosedEnum as _;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::rig::{Answer, Command, Failure, May};
use crate::signals::Hub;

pim_core::closed_enum! {
    /// Where faults may strike.
    pub enum ChaosPoint {
        /// Before the gateway looks at a request; operations stay reachable, so that a fault can be ended.
        Gateway = "gateway",
    }
}

/// The registry of the lab's points.
pub type Chaos = ChaosRegistry<ChaosPoint>;

/// The routes, for the admin service.
pub fn routes(hub: Hub) -> Router {
    Router::new()
        .route("/v1/admin/chaos/flags", get(list))
        .route("/v1/admin/chaos/flags/{point}", put(arm).delete(disarm))
        .with_state(hub)
}

/// Body of an injection.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Injection {
    fault: FaultName,
    /// Of the `latency` fault, in milliseconds.
    #[serde(default)]
    latency_ms: u64,
    /// Of a hundred calls, so many.
    percent: u8,
    /// Ends by itself after this.
    seconds: u64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FaultName {
    Latency,
    Error,
}

fn point_of(name: &str) -> Result<ChaosPoint, Failure> {
    let names: Vec<_> = ChaosPoint::ALL.iter().map(|point| point.name()).collect();
    let unknown = || Problem::of(problem::NOT_FOUND).detail("there is no such point").with("points", names.clone());
    ChaosPoint::from_name(name).ok_or_else(|| unknown().into())
}

fn refused(_: LeaseError) -> Failure {
    Problem::of(problem::INVALID_BODY)
        .detail("must be 1 to 100 percent, at most 30000 ms and at most 900 seconds")
        .into()
}

async fn list(State(hub): State<Hub>, May(_permit): May<Read>) -> Result<Answer, Failure> {
    Answer::ok(&json!({"items": active(&hub)}))
}

async fn arm(
    State(hub): State<Hub>,
    May(_permit): May<Write>,
    Path(point): Path<String>,
    command: Command<Injection>,
) -> Result<Answer, Failure> {
    let point = point_of(&point)?;
    let fault = match command.body.fault {
        FaultName::Latency => Fault::Latency(Duration::from_millis(command.body.latency_ms)),
        FaultName::Error => Fault::Error,
    };
    let share = Share::percent(command.body.percent).map_err(refused)?;
    hub.chaos().arm(point, fault, share, Duration::from_secs(command.body.seconds)).map_err(refused)?;
    pim_core::warn!("chaos.armed", point = point.name(), seconds = command.body.seconds);
    Answer::ok(&json!({"items": active(&hub)}))
}

async fn disarm(
    State(hub): State<Hub>,
    May(_permit): May<Write>,
    Path(point): Path<String>,
) -> Result<Answer, Failure> {
    let was_armed = hub.chaos().disarm(point_of(&point)?).is_some();
    pim_core::warn!("chaos.disarmed", was_armed = was_armed);
    Answer::ok(&json!({"items": active(&hub)}))
}

fn active(hub: &Hub) -> Vec<Value> {
    let lease = |(point, lease): (ChaosPoint, pim_core::chaos::Lease)| {
        json!({
            "point": point.name(), "fault": lease.fault.kind().name(), "percent": lease.share.get(),
            "began_at": lease.began_at, "ends_at": lease.ends_at, "struck": hub.chaos().struck(point),
        })
    };
    hub.chaos().active().into_iter().map(lease).collect()
}
