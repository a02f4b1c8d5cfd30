//! The record and its states.

use pim_data::entity::{Column, ColumnKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::value::{Address, BirthDate, Mail, PersonName, Sex, SynNumber, Telephone};
use crate::identifier::kept_if_any;
use crate::ids::{FacilityId, PatientId, PatientKind};
use crate::policy::LabResource;

/// Where a patient's record is in its life: registered → active → suspended → retired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PatientState {
    /// Known, not seen yet.
    Registered,
    /// Under care.
    Active,
    /// Care is paused: nothing is planned and nothing begun until it is active again.
    Suspended,
    /// No longer under care; the end.
    Retired,
}

impl PatientState {
    /// Whether the record may go from here to there.
    #[must_use]
    pub const fn may_become(self, to: Self) -> bool {
        matches!(
            (self, to),
            (Self::Registered, Self::Active | Self::Retired)
                | (Self::Active, Self::Suspended | Self::Retired)
                | (Self::Suspended, Self::Active | Self::Retired)
        )
    }

    /// Whether care may be planned and begun.
    #[must_use]
    pub const fn takes_care(self) -> bool {
        matches!(self, Self::Registered | Self::Active)
    }

    /// Stable text form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Retired => "retired",
        }
    }
}

/// A patient: the home key of everything that is known of them.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Patient {
    /// Carries the bucket.
    #[schema(value_type = String, format = "uuid")]
    pub id: PatientId,
    /// Rises by one with each change.
    pub version: u64,
    /// The facility that looks after them.
    #[schema(value_type = String, format = "uuid")]
    pub facility_id: FacilityId,
    /// State of the record.
    pub state: PatientState,
    /// Given name.
    pub given_name: PersonName,
    /// Family name.
    pub family_name: PersonName,
    /// Date of birth.
    pub birth_date: BirthDate,
    /// Administrative sex.
    pub sex: Sex,
    /// Synthetic number.
    pub syn_number: SynNumber,
    /// Address.
    #[serde(default, deserialize_with = "kept_if_any")]
    pub address: Option<Address>,
    /// Telephone.
    #[serde(default, deserialize_with = "kept_if_any")]
    pub telephone: Option<Telephone>,
    /// Mail.
    #[serde(default, deserialize_with = "kept_if_any")]
    pub mail: Option<Mail>,
}

pim_data::entity! {
    impl Entity for Patient {
        kind: PatientKind,
        resource: LabResource::Patient,
        table: "patient",
        home: id,
        facility: facility_id,
        columns: [
            Column::new("state", ColumnKind::Text).shown(),
            Column::new("given_name", ColumnKind::Text),
            Column::new("family_name", ColumnKind::Text),
            Column::new("birth_date", ColumnKind::Text),
            Column::new("sex", ColumnKind::Text),
            Column::new("syn_number", ColumnKind::Text),
            Column::new("address", ColumnKind::Text).nullable(),
            Column::new("telephone", ColumnKind::Text).nullable(),
            Column::new("mail", ColumnKind::Text).nullable(),
        ],
        indexes: [&["facility_id", "id"]],
    }
}
