//! The claim and its states.

use pim_core::clock::Timestamp;
use pim_data::entity::{Column, ColumnKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::money::Money;
use crate::encounter::ProcedureCode;
use crate::ids::{ClaimId, ClaimKind, EncounterId, FacilityId, PatientId};
use crate::policy::LabResource;

/// Most lines, and most payments, of one claim.
pub const ENTRIES_MAX: usize = 200;

/// Where a claim is in its life: draft → submitted → adjudicated → closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClaimState {
    /// Being put together.
    Draft,
    /// Sent to the payer.
    Submitted,
    /// Decided by the payer; payments come in.
    Adjudicated,
    /// Paid in full; the end.
    Closed,
}

impl ClaimState {
    /// Whether it may go from here to there.
    #[must_use]
    pub const fn may_become(self, to: Self) -> bool {
        matches!(
            (self, to),
            (Self::Draft, Self::Submitted) | (Self::Submitted, Self::Adjudicated) | (Self::Adjudicated, Self::Closed)
        )
    }

    /// Stable text form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Submitted => "submitted",
            Self::Adjudicated => "adjudicated",
            Self::Closed => "closed",
        }
    }
}

/// One thing that is charged for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// HCPCS level II.
    pub code: ProcedureCode,
    /// What it costs.
    pub amount: Money,
}

/// How somebody paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PaymentMethod {
    /// The payer.
    Payer,
    /// A card.
    Card,
    /// Cash.
    Cash,
}

/// Money that came in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Payment {
    /// How much.
    pub amount: Money,
    /// How.
    pub method: PaymentMethod,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// A claim for an encounter.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Claim {
    /// Carries the patient's bucket.
    #[schema(value_type = String, format = "uuid")]
    pub id: ClaimId,
    /// Rises by one with each change.
    pub version: u64,
    /// Whose.
    #[schema(value_type = String, format = "uuid")]
    pub patient_id: PatientId,
    /// Where.
    #[schema(value_type = String, format = "uuid")]
    pub facility_id: FacilityId,
    /// What for.
    #[schema(value_type = String, format = "uuid")]
    pub encounter_id: EncounterId,
    /// State.
    pub state: ClaimState,
    /// What is charged for.
    pub lines: Vec<Line>,
    /// What was paid.
    pub payments: Vec<Payment>,
    /// Sum of the lines.
    pub total: Money,
    /// Sum of the payments.
    pub paid: Money,
}

impl Claim {
    /// What is to be paid still.
    #[must_use]
    pub const fn owed(&self) -> Money {
        Money::usd_cents(self.total.cents() - self.paid.cents())
    }
}

pim_data::entity! {
    impl Entity for Claim {
        kind: ClaimKind,
        resource: LabResource::Claim,
        table: "claim",
        home: patient_id,
        facility: facility_id,
        columns: [
            Column::new("encounter_id", ColumnKind::Uuid).shown().unique(),
            Column::new("state", ColumnKind::Text).shown(),
            Column::new("lines", ColumnKind::Json).shown(),
            Column::new("payments", ColumnKind::Json).shown(),
            Column::new("total", ColumnKind::Json).shown(),
            Column::new("paid", ColumnKind::Json).shown(),
        ],
        references: [("home_key", "patient"), ("encounter_id", "encounter")],
        indexes: [&["state", "bucket", "id"]],
    }
}
