//! Patients: the record, its states, and what registering and correcting one means.

mod event;
mod http;
mod record;
mod value;

pub use event::{PatientCorrected, PatientMoved, PatientRegistered};
pub use http::SERVICE;
pub use record::{Patient, PatientState};
pub use value::{Address, BirthDate, Mail, PersonName, Sex, SynNumber, Telephone};
