//! A chore: what has to be done again and again, with the time when it is due next.

use pim_core::clock::Timestamp;
use pim_core::id::Id;
use pim_core::role::ClosedEnum as _;
use pim_data::entity::{Column, ColumnKind};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{ChoreId, ChoreKind};
use crate::policy::LabResource;

pim_core::closed_enum! {
    /// Which chore.
    pub enum ChoreName {
        /// Removes answers that are kept longer than they are promised.
        IdempotencySweep = "idempotency_sweep",
        /// Signs where every audit chain stands.
        AuditCheckpoint = "audit_checkpoint",
    }
}

/// A chore.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chore {
    /// Which; follows from the name.
    pub id: ChoreId,
    /// Rises by one with each change.
    pub version: u64,
    /// A [`ChoreName`].
    pub name: String,
    /// When it is to be done next.
    pub due_at: Timestamp,
    /// How often it has been done.
    pub runs: u64,
    /// What the last run came to: records removed, or the number of the checkpoint.
    pub came_to: u64,
    /// Which worker is at it.
    pub owner: Option<Uuid>,
    /// Until when; after that another may do it.
    pub lease_until: Option<Timestamp>,
}

impl Chore {
    /// The id of a chore.
    #[must_use]
    pub fn id_of(name: ChoreName) -> ChoreId {
        Id::derive(format!("chore/{}", name.name()).as_bytes(), 0)
    }
}

pim_data::entity! {
    impl Entity for Chore {
        kind: ChoreKind,
        resource: LabResource::Operation,
        table: "chore",
        home: id,
        columns: [
            Column::new("name", ColumnKind::Text).shown().unique(),
            Column::new("due_at", ColumnKind::Time).shown(),
            Column::new("runs", ColumnKind::Int).shown(),
            Column::new("came_to", ColumnKind::Int).shown(),
            Column::new("owner", ColumnKind::Uuid).shown().nullable(),
            Column::new("lease_until", ColumnKind::Time).shown().nullable(),
        ],
    }
}
