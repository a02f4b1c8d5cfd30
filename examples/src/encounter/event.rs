//! What other rooms learn of appointments and encounters.

use pim_core::clock::Timestamp;
use pim_events::DomainEvent;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::appointment::AppointmentState;
use super::code::{DiagnosisCode, ProcedureCode};
use super::record::VisitKind;
use crate::ids::{AppointmentId, ClaimId, EncounterId, FacilityId, PatientId, ProviderId};

macro_rules! fact {
    (
        $(#[$meta:meta])* $name:ident, $type:literal, $aggregate:literal, $id:ident: $id_type:ty
        $(, $(#[$fmeta:meta])* $field:ident: $field_type:ty)* $(,)?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Serialize, Deserialize)]
        pub struct $name {
            /// Which.
            pub $id: $id_type,
            /// Version of the record.
            pub version: u64,
            /// Whose.
            pub patient_id: PatientId,
            /// Where.
            pub facility_id: FacilityId,
            $($(#[$fmeta])* pub $field: $field_type,)*
        }

        impl DomainEvent for $name {
            const TYPE: &'static str = $type;
            const AGGREGATE: &'static str = $aggregate;

            fn aggregate_id(&self) -> Uuid {
                self.$id.uuid()
            }

            fn aggregate_version(&self) -> u64 {
                self.version
            }
        }
    };
}

fact!(
    /// An appointment was made.
    AppointmentMade, "appointment.made", "appointment", appointment_id: AppointmentId,
    /// With whom.
    provider_id: ProviderId,
    /// When.
    scheduled_at: Timestamp,
);

fact!(
    /// An appointment ended one way or another.
    AppointmentMoved, "appointment.moved", "appointment", appointment_id: AppointmentId,
    /// To which state.
    to: AppointmentState,
);

fact!(
    /// An encounter was scheduled.
    EncounterScheduled, "encounter.scheduled", "encounter", encounter_id: EncounterId,
    /// With whom.
    provider_id: ProviderId,
    /// What kind.
    kind: VisitKind,
    /// When.
    scheduled_at: Timestamp,
);

fact!(
    /// An encounter began.
    EncounterStarted, "encounter.started", "encounter", encounter_id: EncounterId,
);

fact!(
    /// Something was added to an encounter.
    EncounterExtended, "encounter.extended", "encounter", encounter_id: EncounterId,
    /// What: `diagnosis`, `procedure`, `order`, `observation` or `note`.
    part: String,
    /// Its code, when it has one.
    code: Option<String>,
);

fact!(
    /// An encounter was completed; billing drafts its claim.
    EncounterCompleted, "encounter.completed", "encounter", encounter_id: EncounterId,
    /// With whom.
    provider_id: ProviderId,
    /// When it ended.
    completed_at: Timestamp,
    /// What was found.
    diagnoses: Vec<DiagnosisCode>,
    /// What was done.
    procedures: Vec<ProcedureCode>,
    /// Its claim, when that was written with it: nothing is left to draft then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claim_id: Option<ClaimId>,
);

fact!(
    /// An encounter was put away.
    EncounterArchived, "encounter.archived", "encounter", encounter_id: EncounterId,
);
