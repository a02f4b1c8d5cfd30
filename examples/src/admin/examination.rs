//! What is not as it should be in a shard's database.

use axum::extract::State;
use pim_core::rbac::Read;
use pim_core::role::ClosedEnum as _;
use pim_core::shard::Severity;
use pim_data::cluster::Cluster;
use pim_data::examination::{Examination, ShardFinding};
use serde::Serialize;
use utoipa::ToSchema;

use crate::rig::{Answer, Endpoints, Failure, May, Operation};
use crate::workers::Stores;

pub(super) fn endpoints() -> Endpoints<Stores> {
    Endpoints::new().serve(Operation::get::<ShardFindings>("/v1/admin/shards/findings", "Examines the shards"), examine)
}

/// Every shard as it was found, the control database last.
#[derive(Debug, Serialize, ToSchema)]
struct ShardFindings {
    /// The map in force.
    map_version: u64,
    /// How many things are wrong.
    findings: u64,
    items: Vec<ExaminedShard>,
}

/// One shard as it was found.
#[derive(Debug, Serialize, ToSchema)]
struct ExaminedShard {
    /// Which; none for the control database.
    shard: Option<u16>,
    /// Its newest migration; none when it could not be read.
    schema_version: Option<u32>,
    /// The newest migration of this program.
    schema_version_known: u32,
    buckets_owned: u64,
    /// Home keys that were looked at.
    sampled: u64,
    findings: Vec<FoundInShard>,
}

/// Something that is not as it should be.
#[derive(Debug, Serialize, ToSchema)]
struct FoundInShard {
    #[schema(example = "schema-older")]
    code: &'static str,
    /// error or warning.
    #[schema(example = "error")]
    severity: &'static str,
    /// Which server, where it is about one.
    endpoint: Option<String>,
    message: String,
    fix: String,
}

impl From<Examination> for ExaminedShard {
    fn from(told: Examination) -> Self {
        Self {
            shard: told.shard.map(|id| id.0),
            schema_version: told.schema_version,
            schema_version_known: told.schema_version_known,
            buckets_owned: told.buckets_owned,
            sampled: told.sampled,
            findings: told.findings.into_iter().map(FoundInShard::from).collect(),
        }
    }
}

impl From<ShardFinding> for FoundInShard {
    fn from(found: ShardFinding) -> Self {
        let severity = match found.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let ShardFinding { code, endpoint, message, fix, .. } = found;
        Self { code: code.name(), severity, endpoint, message, fix }
    }
}

/// Looks into each database now, as far as a sample of its rows.
async fn examine(State(cluster): State<Cluster>, May(_permit): May<Read>) -> Result<Answer, Failure> {
    let items: Vec<ExaminedShard> = cluster.examine().await.into_iter().map(ExaminedShard::from).collect();
    let findings = items.iter().map(|shard| shard.findings.len() as u64).sum();
    Answer::ok(&ShardFindings { map_version: cluster.map().version().0, findings, items })
}
