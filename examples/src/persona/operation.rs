//! What personas do: operations, and the scripts that a session strings them into.

use serde::{Deserialize, Serialize};

use self::Operation as Op;
use crate::care::{Act, Pathways};

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
    /// Adds what was done.
    ProcedureAdd,
    /// Adds an order.
    OrderAdd,
    /// Adds what was measured.
    ObservationAdd,
    /// Adds a note.
    NoteAdd,
    /// Completes it.
    EncounterComplete,
    /// Reads the timeline.
    TimelineRead,
    /// Lists claims.
    ClaimList,
    /// Sends it to the payer.
    ClaimSubmit,
    /// Enters what the payer decided.
    ClaimAdjudicate,
    /// Takes a payment for it.
    ClaimPay,
    /// Puts it away.
    ClaimClose,
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
            Op::ProcedureAdd => "procedure_add",
            Op::OrderAdd => "order_add",
            Op::ObservationAdd => "observation_add",
            Op::NoteAdd => "note_add",
            Op::EncounterComplete => "encounter_complete",
            Op::TimelineRead => "timeline_read",
            Op::ClaimList => "claim_list",
            Op::ClaimSubmit => "claim_submit",
            Op::ClaimAdjudicate => "claim_adjudicate",
            Op::ClaimPay => "claim_pay",
            Op::ClaimClose => "claim_close",
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
            Op::PatientSearch
            | Op::PatientRead
            | Op::SummaryRead
            | Op::EncounterList
            | Op::TimelineRead
            | Op::ClaimList
            | Op::FacilityList
            | Op::RevenueRead
            | Op::ShardsRead
            | Op::OutboxRead => 10_000,
            _ => 20_000,
        }
    }

    /// The request by which an act of care is done.
    #[must_use]
    pub const fn of_act(act: &Act<'_>) -> Self {
        match act {
            Act::Schedule { .. } => Op::EncounterSchedule,
            Act::Diagnose { .. } => Op::DiagnosisAdd,
            Act::Perform { .. } => Op::ProcedureAdd,
            Act::Order { .. } => Op::OrderAdd,
            Act::Measure { .. } => Op::ObservationAdd,
            Act::Note { .. } => Op::NoteAdd,
            Act::Submit => Op::ClaimSubmit,
            Act::Adjudicate => Op::ClaimAdjudicate,
            Act::Pay { .. } => Op::ClaimPay,
            Act::Close => Op::ClaimClose,
        }
    }
}

/// What a session sets out to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Script {
    /// A clinician sees a patient: the encounter from its planning to its end, as a pathway of care has it.
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
    /// An administrator carries the claim of a visit on, as far as its life goes.
    Settle,
    /// An engineer looks at the platform.
    Watch,
}

impl Script {
    /// Every script.
    pub const ALL: [Self; 8] = [
        Self::Visit,
        Self::LookUp,
        Self::Intake,
        Self::Portal,
        Self::Booking,
        Self::Billing,
        Self::Settle,
        Self::Watch,
    ];

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
            Self::Settle => "settle",
            Self::Watch => "watch",
        }
    }

    /// Its steps, in order: what is asked, and the act of care that is done by it; `bits` answers one number a field.
    pub fn steps<'p>(self, care: &'p Pathways, bits: impl Fn(u64) -> u64) -> Vec<(Operation, Option<Act<'p>>)> {
        let plain =
            |operations: &[Operation]| operations.iter().map(|operation| (*operation, None)).collect::<Vec<_>>();
        let done = |act: Act<'p>| (Operation::of_act(&act), Some(act));
        match self {
            Self::Visit => {
                let mut steps = plain(&[Op::PatientSearch]);
                let mut acts = care.visit(bits).into_iter();
                steps.extend(acts.next().map(done));
                steps.extend(plain(&[Op::EncounterStart]));
                steps.extend(acts.map(done));
                steps.extend(plain(&[Op::EncounterComplete, Op::TimelineRead, Op::ClaimList]));
                steps
            }
            Self::LookUp => plain(&[Op::PatientSearch, Op::PatientRead, Op::EncounterList]),
            Self::Intake => plain(&[Op::PatientRegister, Op::PatientSearch]),
            Self::Portal => plain(&[Op::SummaryRead, Op::TimelineRead, Op::ClaimList]),
            Self::Booking => plain(&[Op::PatientRead, Op::AppointmentBook]),
            Self::Billing => plain(&[Op::FacilityList, Op::RevenueRead]),
            Self::Settle => plain(&[Op::ClaimList]).into_iter().chain(care.claim(bits).into_iter().map(done)).collect(),
            Self::Watch => plain(&[Op::ShardsRead, Op::OutboxRead]),
        }
    }
}
