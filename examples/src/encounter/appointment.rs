//! Appointments.

use pim_core::clock::Timestamp;
use pim_data::entity::{Column, ColumnKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{AppointmentId, AppointmentKind, FacilityId, PatientId, ProviderId};
use crate::policy::LabResource;

/// Where an appointment is in its life: booked → fulfilled, cancelled or missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AppointmentState {
    /// Made.
    Booked,
    /// Kept; the end.
    Fulfilled,
    /// Called off; the end.
    Cancelled,
    /// Not kept; the end.
    Missed,
}

impl AppointmentState {
    /// Whether it may go from here to there.
    #[must_use]
    pub const fn may_become(self, to: Self) -> bool {
        matches!((self, to), (Self::Booked, Self::Fulfilled | Self::Cancelled | Self::Missed))
    }

    /// Stable text form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Booked => "booked",
            Self::Fulfilled => "fulfilled",
            Self::Cancelled => "cancelled",
            Self::Missed => "missed",
        }
    }
}

/// An appointment of a patient.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Appointment {
    /// Carries the patient's bucket.
    #[schema(value_type = String, format = "uuid")]
    pub id: AppointmentId,
    /// Rises by one with each change.
    pub version: u64,
    /// Whose.
    #[schema(value_type = String, format = "uuid")]
    pub patient_id: PatientId,
    /// Where.
    #[schema(value_type = String, format = "uuid")]
    pub facility_id: FacilityId,
    /// With whom.
    #[schema(value_type = String, format = "uuid")]
    pub provider_id: ProviderId,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub scheduled_at: Timestamp,
    /// State.
    pub state: AppointmentState,
}

pim_data::entity! {
    impl Entity for Appointment {
        kind: AppointmentKind,
        resource: LabResource::Appointment,
        table: "appointment",
        home: patient_id,
        facility: facility_id,
        columns: [
            Column::new("provider_id", ColumnKind::Uuid).shown(),
            Column::new("scheduled_at", ColumnKind::Time).shown(),
            Column::new("state", ColumnKind::Text).shown(),
        ],
        references: [("home_key", "patient")],
    }
}
