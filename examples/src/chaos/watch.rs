//! How a program learns of faults: it looks at the rows, or asks a service that does.

use std::time::Duration;

use pim_core::context::{RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::rbac::{Permit, Read, SystemScope};
use pim_core::role::ClosedEnum as _;
use pim_data::backend::Statement;
use pim_data::cluster::{CONTROL, Cluster};
use pim_data::repository::ReadError;
use serde_json::Value;
use uuid::Uuid;

use super::ChaosPoint;
use super::flag::{ChaosFlag, FaultName};
use crate::client::Client;
use crate::policy::{LabAction, LabResource};
use crate::signals::Hub;
use crate::workers::service_actor;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Spreads the looks of many programs over time.
const JITTER_MS: u128 = 250;
const PATIENCE: Duration = Duration::from_millis(500);
const REASON: SystemScope = SystemScope::new("look for faults that are armed");
const FLAGS_MAX: usize = ChaosPoint::ALL.len();

/// The row of every point that ever had a fault, ended ones included.
///
/// # Errors
/// [`ReadError`] when the control database does not answer.
pub async fn flags_in(cluster: &Cluster) -> Result<Vec<ChaosFlag>, ReadError> {
    const SELECT: &str = "SELECT id, version, point, fault, latency_ms, percent, began_at, ends_at FROM chaos_flag \
                          ORDER BY id LIMIT 100";
    let permit = Permit::<Read>::system(REASON, LabAction::Read, LabResource::Chaos);
    let Ok(actor) = service_actor("chaos-watch") else { return Ok(Vec::new()) };
    let cx = RequestContext::new(RequestId::mint(), actor, Deadline::after(PATIENCE));
    let mut flags = Vec::new();
    for row in cluster.select::<ChaosFlag>(&cx, &permit, CONTROL, Statement::same(SELECT)).await? {
        let fault = Value::from(row.text(3)?);
        // A row of a newer program may know a point or a fault that this one does not: not for us.
        let (Ok(fault), Ok(id)) = (serde_json::from_value::<FaultName>(fault), row.uuid(0)?.to_string().parse()) else {
            continue;
        };
        flags.push(ChaosFlag {
            id,
            version: row.count(1)?,
            point: row.text(2)?.to_owned(),
            fault,
            latency_ms: row.count(4)?,
            percent: u8::try_from(row.count(5)?).unwrap_or(0),
            began_at: row.time(6)?,
            ends_at: row.time(7)?,
        });
    }
    Ok(flags)
}

/// Looks at the rows until told to stop, and takes what they say; then nothing strikes in this process any more. A database that does not answer ends no lease.
pub async fn watch(cluster: Cluster, hub: Hub, stop: impl Future<Output = ()>) {
    let look = async {
        loop {
            if let Ok(flags) = flags_in(&cluster).await {
                hub.chaos().take(&flags);
            }
            pause().await;
        }
    };
    until(stop, look).await;
    hub.chaos().end_all();
}

/// The same for a program without databases: of these services it asks the first that answers.
pub async fn watch_over_http(services: Vec<String>, client: Client, hub: Hub, stop: impl Future<Output = ()>) {
    let look = async {
        loop {
            for service in &services {
                let Ok(told) = client.get_json(&format!("{service}/chaos/flags"), PATIENCE).await else { continue };
                let told = told["items"].as_array().cloned().unwrap_or_default();
                let read = told.into_iter().take(FLAGS_MAX).filter_map(|flag| serde_json::from_value(flag).ok());
                hub.chaos().take(&read.collect::<Vec<ChaosFlag>>());
                break;
            }
            pause().await;
        }
    };
    until(stop, look).await;
    hub.chaos().end_all();
}

async fn until(stop: impl Future<Output = ()>, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop => {}
        () = work => {}
    }
}

async fn pause() {
    let jitter = u64::try_from(Uuid::new_v4().as_u128() % JITTER_MS).unwrap_or(0);
    tokio::time::sleep(LOOK_EVERY + Duration::from_millis(jitter)).await;
}
