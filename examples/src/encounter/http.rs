//! The HTTP side of appointments and encounters.

mod appointment;
mod parts;
mod transition;

use axum::Router;
use axum::extract::{Query, State};
use axum::routing::{get, post};
use pim_core::clock::Timestamp;
use pim_core::id::Id;
use pim_core::problem::{self, Problem};
use pim_core::rbac::{Permit, Read, Write};
use pim_data::cluster::Cluster;
use pim_data::unit::Unit;
use pim_events::AppendExt as _;
use serde::Deserialize;
use utoipa::ToSchema;

use self::appointment::Booking;
use super::appointment::Appointment;
use super::event::EncounterScheduled;
use super::parts::{Diagnosis, Note, Observation, Order, Procedure};
use super::record::{Encounter, EncounterState, VisitKind};
use crate::ids::{EncounterId, FacilityId, PatientId, ProviderId};
use crate::patient::{Patient, PatientState};
use crate::policy::LabResource;
use crate::reference::{Facility, Provider, ReferenceBook};
use crate::rig::{
    Answer, Caller, Command, Declaration, Failure, May, Operation, PageQuery, PathId, document, page_of, write,
};
use crate::routes::Upstream;
use crate::workers::Stores;

/// The routes, with the timeline of the read models' room.
pub fn routes(stores: Stores) -> Router {
    let read_models = crate::projections::encounter_routes(stores.reads.clone());
    Router::new()
        .route("/v1/patients/{patient_id}/encounters", post(schedule).get(list))
        .route("/v1/patients/{patient_id}/encounters/{encounter_id}/transitions", post(transition::transition))
        .route("/v1/encounters/{encounter_id}", get(show))
        .merge(parts::routes())
        .merge(appointment::routes())
        .with_state(stores)
        .merge(read_models)
}

/// The encounter service.
pub const SERVICE: Declaration = Declaration {
    name: Upstream::Encounter.name(),
    port: 8083,
    routes,
    openapi: || document(Upstream::Encounter, OPERATIONS),
};

const OPERATIONS: &[Operation] = &[
    Operation::create::<Booking, Appointment>("/v1/patients/{patient_id}/appointments", "Books an appointment"),
    Operation::list::<Appointment>("/v1/patients/{patient_id}/appointments", "Lists the appointments of a patient"),
    Operation::change::<appointment::Transition, Appointment>(
        "POST",
        "/v1/patients/{patient_id}/appointments/{appointment_id}/transitions",
        "Moves an appointment to another state",
    ),
    Operation::create::<Scheduling, Encounter>("/v1/patients/{patient_id}/encounters", "Schedules an encounter"),
    Operation::list::<Encounter>("/v1/patients/{patient_id}/encounters", "Lists the encounters of a patient"),
    Operation::get::<Encounter>("/v1/encounters/{encounter_id}", "Shows an encounter"),
    Operation::change::<transition::Transition, Encounter>(
        "POST",
        "/v1/patients/{patient_id}/encounters/{encounter_id}/transitions",
        "Moves an encounter to another state",
    ),
    Operation::create::<Diagnosis, Encounter>(
        "/v1/patients/{patient_id}/encounters/{encounter_id}/diagnoses",
        "Adds a diagnosis",
    ),
    Operation::create::<Procedure, Encounter>(
        "/v1/patients/{patient_id}/encounters/{encounter_id}/procedures",
        "Adds a procedure",
    ),
    Operation::create::<Order, Encounter>(
        "/v1/patients/{patient_id}/encounters/{encounter_id}/orders",
        "Adds an order",
    ),
    Operation::create::<Observation, Encounter>(
        "/v1/patients/{patient_id}/encounters/{encounter_id}/observations",
        "Adds an observation",
    ),
    Operation::create::<Note, Encounter>("/v1/patients/{patient_id}/encounters/{encounter_id}/notes", "Adds a note"),
];

/// Body of a new encounter.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Scheduling {
    #[schema(value_type = String, format = "uuid")]
    facility_id: FacilityId,
    #[schema(value_type = String, format = "uuid")]
    provider_id: ProviderId,
    kind: VisitKind,
    #[schema(value_type = String, format = DateTime)]
    scheduled_at: Timestamp,
}

async fn schedule(
    State(cluster): State<Cluster>,
    State(book): State<ReferenceBook>,
    May(permit): May<Write>,
    PathId(patient_id): PathId<PatientId>,
    command: Command<Scheduling>,
) -> Result<Answer, Failure> {
    let body = command.body;
    let (permit, command, book) = (&permit, &command, &book);
    write(&cluster, &command.cx, patient_id, move |mut unit| async move {
        patient_under_care(&mut unit, permit, patient_id).await?;
        book.check::<Facility>("/facility_id", body.facility_id, &command.seen).await?;
        book.check::<Provider>("/provider_id", body.provider_id, &command.seen).await?;
        let mut encounter = Encounter {
            id: child_id(&unit, patient_id),
            version: 0,
            patient_id,
            facility_id: body.facility_id,
            provider_id: body.provider_id,
            kind: body.kind,
            state: EncounterState::Scheduled,
            scheduled_at: body.scheduled_at,
            started_at: None,
            completed_at: None,
            diagnoses: Vec::new(),
            procedures: Vec::new(),
            orders: Vec::new(),
            observations: Vec::new(),
            notes: Vec::new(),
        };
        encounter.version = unit.save(permit, &encounter)?;
        unit.append(&EncounterScheduled {
            encounter_id: encounter.id,
            version: encounter.version,
            patient_id,
            facility_id: body.facility_id,
            provider_id: body.provider_id,
            kind: body.kind,
            scheduled_at: body.scheduled_at,
        })?;
        Ok((unit, Answer::created(&encounter)?))
    })
    .await
}

async fn list(
    State(cluster): State<Cluster>,
    May(permit): May<Read>,
    caller: Caller,
    PathId(patient_id): PathId<PatientId>,
    query: Result<Query<PageQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Answer, Failure> {
    let Query(query) = query.map_err(|_| Problem::of(problem::INVALID_QUERY))?;
    let page = query.by_id()?;
    let rows = cluster.list::<Encounter>(&caller.cx, &permit, patient_id, page, &caller.consistency).await?;
    Answer::ok(&page_of(&rows, page.limit, |encounter| encounter.id.to_string()))
}

async fn show(
    State(cluster): State<Cluster>,
    May(permit): May<Read>,
    caller: Caller,
    PathId(id): PathId<EncounterId>,
) -> Result<Answer, Failure> {
    let encounter = cluster.read::<Encounter>(&caller.cx, &permit, id, &caller.consistency).await?;
    Answer::ok(&encounter.ok_or_else(|| Problem::of(problem::NOT_FOUND))?)
}

/// The id of something new in a patient's record: a retried submission makes the same one.
fn child_id<K: pim_core::id::IdKind>(unit: &Unit, patient: PatientId) -> Id<K> {
    match unit.context().idempotency() {
        Some(scope) => Id::child_derived(patient.bucket(), unit.at(), scope.scope(), 0),
        None => Id::child_of(patient.bucket(), unit.at()),
    }
}

/// Loads the patient, so that the unit notices when the record is retired at the same time.
async fn patient_under_care(unit: &mut Unit, permit: &Permit<Write>, id: PatientId) -> Result<Patient, Failure> {
    let patient = unit.load::<Patient>(&permit.for_resource(LabResource::Patient), id).await?;
    let patient = patient.ok_or_else(|| Problem::of(problem::NOT_FOUND))?;
    if patient.state == PatientState::Retired {
        let illegal = Problem::of(problem::ILLEGAL_TRANSITION).with("entity", "patient");
        return Err(illegal.with("from", patient.state.name()).into());
    }
    Ok(patient)
}
