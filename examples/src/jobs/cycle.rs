//! A billing cycle: the draft claims of a period are submitted.

use pim_core::clock::Timestamp;
use pim_data::entity::{Column, ColumnKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::ids::{BillingCycleId, BillingCycleKind};
use crate::policy::LabResource;

/// Where a cycle is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CycleState {
    /// Asked for.
    Pending,
    /// A worker has it, or had it when it was stopped.
    Running,
    /// Every claim of the period has been looked at; the end.
    Done,
}

/// A billing cycle.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BillingCycle {
    /// Which.
    #[schema(value_type = String, format = "uuid")]
    pub id: BillingCycleId,
    /// Rises by one with each change.
    pub version: u64,
    /// State.
    pub state: CycleState,
    /// Claims drafted from here on.
    #[schema(value_type = String, format = DateTime)]
    pub period_from: Timestamp,
    /// Claims drafted before here.
    #[schema(value_type = String, format = DateTime)]
    pub period_to: Timestamp,
    /// Claims that this cycle has submitted, at least: those are missing whose commit was not answered in time, and those of a
    /// worker that was killed, or could not write them down within three seconds of being told to stop.
    pub submitted: u64,
    /// The bucket that is being looked at; those before it are done. Buckets, for they can change their shard meanwhile.
    pub bucket_at: u16,
    /// The claim behind which to go on there.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub after: Option<Uuid>,
    /// Which worker has it.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub owner: Option<Uuid>,
    /// Until when, unless it says so again.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub lease_until: Option<Timestamp>,
}

pim_data::entity! {
    impl Entity for BillingCycle {
        kind: BillingCycleKind,
        resource: LabResource::BillingCycle,
        table: "billing_cycle",
        home: id,
        columns: [
            Column::new("state", ColumnKind::Text).shown(),
            Column::new("period_from", ColumnKind::Time).shown(),
            Column::new("period_to", ColumnKind::Time).shown(),
            Column::new("submitted", ColumnKind::Int).shown(),
            Column::new("bucket_at", ColumnKind::Int).shown(),
            Column::new("after", ColumnKind::Uuid).shown().nullable(),
            Column::new("owner", ColumnKind::Uuid).shown().nullable(),
            Column::new("lease_until", ColumnKind::Time).shown().nullable(),
        ],
        indexes: [&["state", "id"]],
    }
}
