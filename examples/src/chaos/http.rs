//! Arming and disarming, for the admin service: each is a write like any other, with its audit record and its idempotency key.

use std::time::Duration;

use axum::extract::{FromRef, Path, State};
use pim_core::chaos::{LATENCY_MAX, LEASE_MAX, LeaseError};
use pim_core::clock::Timestamp;
use pim_core::problem::{self, IntoProblem as _, Problem};
use pim_core::rbac::{Permit, Read, Write};
use pim_core::role::ClosedEnum as _;
use pim_data::cluster::Cluster;
use pim_data::unit::Unit;
use pim_events::AppendExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::flag::{ChaosFlag, FaultName};
use super::{ChaosPoint, check, flags_in};
use crate::reference::ReferenceChanged;
use crate::rig::{Answer, Caller, Conditional, Endpoints, Failure, May, Nothing, Operation, write_control};
use crate::signals::Hub;
use crate::workers::Stores;

/// The operations, for the admin service.
pub fn endpoints() -> Endpoints<Stores> {
    Endpoints::new()
        .serve(Operation::tell("/v1/admin/chaos/flags", "Lists the faults in force"), list)
        .serve(Operation::put::<ChaosFlag>("/v1/admin/chaos/flags/{point}", "Arms a fault"), arm)
        .serve(Operation::delete::<ChaosFlag>("/v1/admin/chaos/flags/{point}", "Ends a fault"), disarm)
}

#[derive(Clone, Debug)]
struct Operator {
    cluster: Cluster,
    hub: Hub,
}

impl FromRef<Stores> for Operator {
    fn from_ref(stores: &Stores) -> Self {
        Self { cluster: stores.cluster.clone(), hub: stores.hub.clone() }
    }
}

/// Body of an injection. How much is struck and for how long has no default: both must be said.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Injection {
    fault: FaultName,
    /// Of the `latency` fault, in milliseconds.
    #[schema(example = 50)]
    #[serde(default)]
    latency_ms: u64,
    /// Of a hundred calls, so many.
    #[schema(example = 10, minimum = 1, maximum = 100)]
    percent: u8,
    /// Ends by itself after this.
    #[schema(example = 30, minimum = 1)]
    seconds: u64,
}

fn point_of(name: &str) -> Result<ChaosPoint, Failure> {
    let names: Vec<_> = ChaosPoint::ALL.iter().map(|point| point.name()).collect();
    let unknown = || Problem::of(problem::NOT_FOUND).detail("there is no such point").with("points", names.clone());
    ChaosPoint::from_name(name).ok_or_else(|| unknown().into())
}

impl Injection {
    /// Until when, when every bound is kept.
    fn end(self, now: Timestamp) -> Result<Timestamp, LeaseError> {
        let (lasts, latency) = (Duration::from_secs(self.seconds), Duration::from_millis(self.latency_ms));
        if lasts.is_zero() || lasts > LEASE_MAX {
            return Err(LeaseError::Duration);
        }
        if self.fault == FaultName::Latency && (latency.is_zero() || latency > LATENCY_MAX) {
            return Err(LeaseError::Latency);
        }
        Ok(now.plus(lasts))
    }

    fn flag(self, point: ChaosPoint, version: u64, now: Timestamp) -> Result<ChaosFlag, Failure> {
        let refused = |error: LeaseError| Failure::from(error.into_problem());
        let flag = ChaosFlag {
            id: ChaosFlag::id_of(point),
            version,
            point: point.name().to_owned(),
            fault: self.fault,
            latency_ms: self.latency_ms,
            percent: self.percent,
            began_at: now,
            ends_at: self.end(now).map_err(refused)?,
        };
        check(&flag).map_err(refused)?;
        Ok(flag)
    }
}

async fn list(State(operator): State<Operator>, May(permit): May<Read>, caller: Caller) -> Result<Answer, Failure> {
    let page = pim_data::repository::Page { after: None, limit: 100 };
    let flags = operator.cluster.list_control::<ChaosFlag>(&caller.cx, &permit, page).await?;
    let now = operator.cluster.clock().now();
    let in_force = flags.iter().filter(|flag| flag.ends_at > now);
    let items: Vec<Value> = in_force.map(|flag| operator.shown(flag)).collect();
    Answer::ok(&json!({ "items": items }))
}

impl Operator {
    /// With how many calls it has struck in this process, which is every one only where all parts run in one.
    fn shown(&self, flag: &ChaosFlag) -> Value {
        let mut shown = serde_json::to_value(flag).unwrap_or_default();
        let struck = ChaosPoint::from_name(&flag.point).map_or(0, |point| self.hub.chaos().struck(point));
        shown["struck_here"] = Value::from(struck);
        shown
    }

    /// What this process's own points take at once; the others look within a second.
    async fn take(&self) {
        if let Ok(flags) = flags_in(&self.cluster).await {
            self.hub.chaos().take(&flags);
        }
    }
}

async fn load(unit: &mut Unit, permit: &Permit<Write>, point: ChaosPoint) -> Result<Option<ChaosFlag>, Failure> {
    Ok(unit.load::<ChaosFlag>(permit, ChaosFlag::id_of(point)).await?)
}

fn save(unit: &mut Unit, permit: &Permit<Write>, flag: &mut ChaosFlag) -> Result<(), Failure> {
    flag.version = unit.save(permit, flag)?;
    let table = "chaos_flag".to_owned();
    unit.append(&ReferenceChanged { table, id: flag.id.uuid(), version: flag.version })?;
    Ok(())
}

async fn arm(
    State(operator): State<Operator>,
    May(permit): May<Write>,
    Path(point): Path<String>,
    command: Conditional<Injection>,
) -> Result<Answer, Failure> {
    let point = point_of(&point)?;
    let (permit, command, body) = (&permit, &command, command.body);
    let armed = write_control(&operator.cluster, &command.cx, ChaosFlag::id_of(point), move |mut unit| async move {
        let known = load(&mut unit, permit, point).await?;
        let version = known.map_or(0, |flag| flag.version);
        command.check_version(version)?;
        let mut flag = body.flag(point, version, unit.at())?;
        save(&mut unit, permit, &mut flag)?;
        Ok((unit, Answer::ok(&flag)?))
    });
    let answer = armed.await?;
    operator.take().await;
    pim_core::warn!("chaos.armed", point = point.name(), seconds = body.seconds);
    Ok(answer)
}

async fn disarm(
    State(operator): State<Operator>,
    May(permit): May<Write>,
    Path(point): Path<String>,
    command: Conditional<Nothing>,
) -> Result<Answer, Failure> {
    let point = point_of(&point)?;
    let (permit, command) = (&permit, &command);
    let ended = write_control(&operator.cluster, &command.cx, ChaosFlag::id_of(point), move |mut unit| async move {
        let armed = load(&mut unit, permit, point).await?.filter(|flag| flag.ends_at > unit.at());
        let none = || Problem::of(problem::NOT_FOUND).detail("no fault is in force at this point");
        let mut flag = armed.ok_or_else(none)?;
        command.check_version(flag.version)?;
        flag.ends_at = unit.at();
        save(&mut unit, permit, &mut flag)?;
        Ok((unit, Answer::ok(&flag)?))
    });
    let answer = ended.await?;
    operator.take().await;
    pim_core::warn!("chaos.disarmed", point = point.name());
    Ok(answer)
}
