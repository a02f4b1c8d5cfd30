//! Appointments and encounters: what was planned with a patient, and what was done.

mod appointment;
mod code;
mod event;
mod http;
mod parts;
mod record;

pub use appointment::{Appointment, AppointmentState};
pub use code::{DiagnosisCode, ProcedureCode};
pub use event::{
    AppointmentMade, AppointmentMoved, EncounterArchived, EncounterCompleted, EncounterExtended, EncounterScheduled,
    EncounterStarted,
};
pub use http::SERVICE;
pub use parts::{
    Diagnosis, NOTE_LENGTH_MAX, Note, NoteText, Observation, ObservationKind, Order, OrderKind, PARTS_MAX, Procedure,
    TEXT_BYTES_MAX,
};
pub use record::{Encounter, EncounterState, VisitKind};
