//! Everything that the lab stores and everything that it tells: the schema of its databases and the registry of its events.

use pim_data::schema::{Schema, SchemaError};
use pim_events::{EventsExt as _, Registry, RegistryError};

use crate::billing::{Claim, ClaimDrafted, ClaimMoved, LineAdded, PaymentMade};
use crate::chaos::ChaosFlag;
use crate::encounter::{
    Appointment, AppointmentMade, AppointmentMoved, Encounter, EncounterArchived, EncounterCompleted,
    EncounterExtended, EncounterScheduled, EncounterStarted,
};
use crate::jobs::{BillingCycle, Chore};
use crate::operations::OperationRecord;
use crate::patient::{Patient, PatientCorrected, PatientMoved, PatientRegistered};
use crate::reference::{Account, Facility, Flag, Provider, ReferenceChanged};

/// Every event type of the lab.
///
/// # Errors
/// [`RegistryError`] when two types contradict each other; a test keeps that from happening.
pub fn registry() -> Result<Registry, RegistryError> {
    Registry::builder()
        .event::<PatientRegistered>()
        .event::<PatientCorrected>()
        .event::<PatientMoved>()
        .event::<AppointmentMade>()
        .event::<AppointmentMoved>()
        .event::<EncounterScheduled>()
        .event::<EncounterStarted>()
        .event::<EncounterExtended>()
        .event::<EncounterCompleted>()
        .event::<EncounterArchived>()
        .event::<ClaimDrafted>()
        .event::<LineAdded>()
        .event::<ClaimMoved>()
        .event::<PaymentMade>()
        .event::<ReferenceChanged>()
        .build()
}

/// The databases of the lab.
///
/// # Errors
/// [`SchemaError`] when two tables contradict each other; a test keeps that from happening.
pub fn schema(registry: &Registry) -> Result<Schema, SchemaError> {
    Schema::builder()
        .entity::<Patient>(10_000)
        .entity::<Appointment>(10_010)
        .entity::<Encounter>(10_020)
        .entity::<Claim>(10_030)
        .control_entity::<Facility>(10_000)
        .control_entity::<Provider>(10_010)
        .control_entity::<Account>(10_020)
        .control_entity::<Flag>(10_030)
        .control_entity::<BillingCycle>(10_040)
        .control_entity::<ChaosFlag>(10_050)
        .control_entity::<OperationRecord>(10_060)
        .control_entity::<Chore>(10_070)
        .events(registry)
        .build()
}
