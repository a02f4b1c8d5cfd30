//! A fault as a row of the control database: one row a point, with its own end.

use pim_core::clock::Timestamp;
use pim_core::id::Id;
use pim_core::role::ClosedEnum as _;
use pim_data::entity::{Column, ColumnKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ChaosPoint;
use crate::ids::{ChaosFlagId, ChaosFlagKind};
use crate::policy::LabResource;

/// What strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FaultName {
    /// The call takes longer.
    Latency,
    /// The call fails.
    Error,
    /// The call hangs until the lease ends.
    Stall,
}

/// The fault that was last armed at a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChaosFlag {
    /// Of the point.
    #[schema(value_type = String, format = "uuid")]
    pub id: ChaosFlagId,
    /// Rises by one with each arming and disarming.
    pub version: u64,
    /// Where, by name.
    pub point: String,
    /// What strikes.
    pub fault: FaultName,
    /// Added to each struck call of a `latency` fault, in milliseconds.
    pub latency_ms: u64,
    /// Of a hundred calls, so many are struck.
    pub percent: u8,
    /// When it was armed.
    #[schema(value_type = String, format = DateTime)]
    pub began_at: Timestamp,
    /// When it ends by itself, or was ended.
    #[schema(value_type = String, format = DateTime)]
    pub ends_at: Timestamp,
}

impl ChaosFlag {
    /// The id of a point's row.
    #[must_use]
    pub fn id_of(point: ChaosPoint) -> ChaosFlagId {
        Id::derive(format!("chaos point {}", point.name()).as_bytes(), 0)
    }
}

pim_data::entity! {
    impl Entity for ChaosFlag {
        kind: ChaosFlagKind,
        resource: LabResource::Chaos,
        table: "chaos_flag",
        home: id,
        columns: [
            Column::new("point", ColumnKind::Text).shown().unique(),
            Column::new("fault", ColumnKind::Text).shown(),
            Column::new("latency_ms", ColumnKind::Int).shown(),
            Column::new("percent", ColumnKind::Int).shown(),
            Column::new("began_at", ColumnKind::Time).shown(),
            Column::new("ends_at", ColumnKind::Time).shown(),
        ],
    }
}
