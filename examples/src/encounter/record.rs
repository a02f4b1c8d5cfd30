//! The encounter and its states.

use pim_core::clock::Timestamp;
use pim_data::entity::{Column, ColumnKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::parts::{Diagnosis, Note, Observation, Order, Procedure, kept_notes};
use crate::ids::{EncounterId, EncounterKind, FacilityId, PatientId, ProviderId};
use crate::policy::LabResource;

/// Where an encounter is in its life: scheduled → in progress → completed → archived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EncounterState {
    /// Planned.
    Scheduled,
    /// Going on.
    InProgress,
    /// Over; its claim is drafted.
    Completed,
    /// Put away; the end.
    Archived,
}

impl EncounterState {
    /// Whether it may go from here to there.
    #[must_use]
    pub const fn may_become(self, to: Self) -> bool {
        matches!(
            (self, to),
            (Self::Scheduled, Self::InProgress)
                | (Self::InProgress, Self::Completed)
                | (Self::Completed, Self::Archived)
        )
    }

    /// Stable text form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Archived => "archived",
        }
    }
}

/// What kind of visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VisitKind {
    /// At the practice.
    OfficeVisit,
    /// By telephone or video.
    Telehealth,
    /// Unplanned.
    Emergency,
    /// For prevention.
    Wellness,
}

/// An encounter of a patient.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Encounter {
    /// Carries the patient's bucket.
    #[schema(value_type = String, format = "uuid")]
    pub id: EncounterId,
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
    /// What kind.
    pub kind: VisitKind,
    /// State.
    pub state: EncounterState,
    /// Planned for.
    #[schema(value_type = String, format = DateTime)]
    pub scheduled_at: Timestamp,
    /// Begun.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// Ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub completed_at: Option<Timestamp>,
    /// What was found.
    pub diagnoses: Vec<Diagnosis>,
    /// What was done.
    pub procedures: Vec<Procedure>,
    /// What was ordered.
    pub orders: Vec<Order>,
    /// What was measured.
    pub observations: Vec<Observation>,
    /// What was written down.
    #[serde(deserialize_with = "kept_notes")]
    pub notes: Vec<Note>,
}

impl Encounter {
    /// One that is planned: nothing of it has happened yet, and it has not been saved.
    #[must_use]
    pub fn scheduled(
        id: EncounterId,
        patient_id: PatientId,
        (facility_id, provider_id): (FacilityId, ProviderId),
        kind: VisitKind,
        scheduled_at: Timestamp,
    ) -> Self {
        Self {
            id,
            version: 0,
            patient_id,
            facility_id,
            provider_id,
            kind,
            state: EncounterState::Scheduled,
            scheduled_at,
            started_at: None,
            completed_at: None,
            diagnoses: Vec::new(),
            procedures: Vec::new(),
            orders: Vec::new(),
            observations: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// How much text it holds, in bytes.
    pub(super) fn text_bytes(&self) -> usize {
        self.notes.iter().map(|note| note.text.as_str().len()).sum()
    }
}

pim_data::entity! {
    impl Entity for Encounter {
        kind: EncounterKind,
        resource: LabResource::Encounter,
        table: "encounter",
        home: patient_id,
        facility: facility_id,
        columns: [
            Column::new("provider_id", ColumnKind::Uuid).shown(),
            Column::new("kind", ColumnKind::Text).shown(),
            Column::new("state", ColumnKind::Text).shown(),
            Column::new("scheduled_at", ColumnKind::Time).shown(),
            Column::new("started_at", ColumnKind::Time).shown().nullable(),
            Column::new("completed_at", ColumnKind::Time).shown().nullable(),
            Column::new("diagnoses", ColumnKind::Json).shown(),
            Column::new("procedures", ColumnKind::Json).shown(),
            Column::new("orders", ColumnKind::Json).shown(),
            Column::new("observations", ColumnKind::Json),
            Column::new("notes", ColumnKind::Json),
        ],
        references: [("home_key", "patient")],
    }
}
