//! What personas do: operations, and the scripts that a session strings them into.

use serde::{Deserialize, Serialize};

use self::Operation as Op;

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Looks for patients by name.
    PatientSearch,
    /// Reads a patient.
    PatientRead,
    /// Reads a portal summary.
    SummaryRead,
    /// Registers a patient.
    PatientRegister,
    /// Lists encounters.
    EncounterList,
    /// Schedules an encounter.
    EncounterSchedule,
    /// Starts it.
    EncounterStart,
    /// Adds a diagnosis.
    DiagnosisAdd,
    /// Completes it.
    EncounterComplete,
    /// Reads the timeline.
    TimelineRead,
    /// Lists claims.
    ClaimList,
    /// Books an appointment.
    AppointmentBook,
    /// Lists facilities.
    FacilityList,
    /// Reads revenue.
    RevenueRead,
    /// Looks at the shards.
    ShardsRead,
    /// Looks at the outbox.
    OutboxRead,
}

impl Operation {
    /// Stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Op::PatientSearch => "patient_search",
            Op::PatientRead => "patient_read",
            Op::SummaryRead => "summary_read",
            Op::PatientRegister => "patient_register",
            Op::EncounterList => "encounter_list",
            Op::EncounterSchedule => "encounter_schedule",
            Op::EncounterStart => "encounter_start",
            Op::DiagnosisAdd => "diagnosis_add",
            Op::EncounterComplete => "encounter_complete",
            Op::TimelineRead => "timeline_read",
            Op::ClaimList => "claim_list",
            Op::AppointmentBook => "appointment_book",
            Op::FacilityList => "facility_list",
            Op::RevenueRead => "revenue_read",
            Op::ShardsRead => "shards_read",
            Op::OutboxRead => "outbox_read",
        }
    }

    /// How long it is expected to take; a step's intended time counts on it.
    #[must_use]
    pub const fn expected_service_us(self) -> u64 {
        match self {
            Op::PatientRegister
            | Op::EncounterSchedule
            | Op::EncounterStart
            | Op::DiagnosisAdd
            | Op::EncounterComplete
            | Op::AppointmentBook => 20_000,
            _ => 10_000,
        }
    }
}

/// What a session sets out to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Script {
    /// A clinician sees a patient.
    Visit,
    /// A clinician looks a patient up.
    LookUp,
    /// A clinician registers a patient.
    Intake,
    /// A patient reads their portal.
    Portal,
    /// A patient books an appointment.
    Booking,
    /// An administrator looks at claims and revenue.
    Billing,
    /// An engineer looks at the platform.
    Watch,
}

impl Script {
    /// Every script.
    pub const ALL: [Self; 7] =
        [Self::Visit, Self::LookUp, Self::Intake, Self::Portal, Self::Booking, Self::Billing, Self::Watch];

    /// Stable name, as profiles write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Visit => "visit",
            Self::LookUp => "look_up",
            Self::Intake => "intake",
            Self::Portal => "portal",
            Self::Booking => "booking",
            Self::Billing => "billing",
            Self::Watch => "watch",
        }
    }

    /// Its operations, in order.
    #[must_use]
    pub const fn operations(self) -> &'static [Operation] {
        match self {
            Self::Visit => &[
                Op::PatientSearch,
                Op::EncounterSchedule,
                Op::EncounterStart,
                Op::DiagnosisAdd,
                Op::EncounterComplete,
                Op::TimelineRead,
                Op::ClaimList,
            ],
            Self::LookUp => &[Op::PatientSearch, Op::PatientRead, Op::EncounterList],
            Self::Intake => &[Op::PatientRegister, Op::PatientSearch],
            Self::Portal => &[Op::SummaryRead, Op::TimelineRead, Op::ClaimList],
            Self::Booking => &[Op::PatientRead, Op::AppointmentBook],
            Self::Billing => &[Op::FacilityList, Op::RevenueRead],
            Self::Watch => &[Op::ShardsRead, Op::OutboxRead],
        }
    }
}
