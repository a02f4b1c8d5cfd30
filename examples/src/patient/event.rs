//! What other rooms learn of patients. Payloads may carry names for the search read model; headers never do.

use pim_events::DomainEvent;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::record::{Patient, PatientState};
use super::value::{BirthDate, PersonName, SynNumber};
use crate::ids::{FacilityId, PatientId};

macro_rules! patient_event {
    ($name:ident, $type:literal) => {
        impl DomainEvent for $name {
            const TYPE: &'static str = $type;
            const AGGREGATE: &'static str = "patient";

            fn aggregate_id(&self) -> Uuid {
                self.patient_id.uuid()
            }

            fn aggregate_version(&self) -> u64 {
                self.version
            }
        }
    };
}

/// A patient was registered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PatientRegistered {
    /// Who.
    pub patient_id: PatientId,
    /// Version of the record.
    pub version: u64,
    /// Where.
    pub facility_id: FacilityId,
    /// Given name.
    pub given_name: PersonName,
    /// Family name.
    pub family_name: PersonName,
    /// Date of birth.
    pub birth_date: BirthDate,
    /// Synthetic number.
    pub syn_number: SynNumber,
}

/// A patient's particulars were corrected.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PatientCorrected {
    /// Who.
    pub patient_id: PatientId,
    /// Version of the record.
    pub version: u64,
    /// Where, from now on.
    pub facility_id: FacilityId,
    /// Given name.
    pub given_name: PersonName,
    /// Family name.
    pub family_name: PersonName,
    /// Date of birth.
    pub birth_date: BirthDate,
}

/// A patient's record moved to another state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PatientMoved {
    /// Who.
    pub patient_id: PatientId,
    /// Version of the record.
    pub version: u64,
    /// From which state.
    pub from: PatientState,
    /// To which.
    pub to: PatientState,
}

patient_event!(PatientRegistered, "patient.registered");
patient_event!(PatientCorrected, "patient.corrected");
patient_event!(PatientMoved, "patient.moved");

impl Patient {
    /// The fact of its registration, at the given version.
    #[must_use]
    pub fn registered(&self, version: u64) -> PatientRegistered {
        PatientRegistered {
            patient_id: self.id,
            version,
            facility_id: self.facility_id,
            given_name: self.given_name.clone(),
            family_name: self.family_name.clone(),
            birth_date: self.birth_date.clone(),
            syn_number: self.syn_number.clone(),
        }
    }
}
