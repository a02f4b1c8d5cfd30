//! The HTTP side of appointments and encounters.

mod appointment;
mod parts;
mod transition;

use axum::extract::State;
use pim_core::clock::Timestamp;
use pim_core::id::Id;
use pim_core::problem::{self, Problem};
use pim_core::rbac::{Permit, Write};
use pim_data::cluster::Cluster;
use pim_data::unit::Unit;
use pim_events::AppendExt as _;
use serde::Deserialize;
use utoipa::ToSchema;

use super::event::EncounterScheduled;
use super::record::{Encounter, VisitKind};
use crate::ids::{FacilityId, PatientId, ProviderId};
use crate::patient::Patient;
use crate::policy::LabResource;
use crate::reference::{Facility, Provider, ReferenceBook};
use crate::rig::{Answer, Command, Declaration, Endpoints, Failure, May, Operation, PathId, list, show, write};
use crate::routes::Upstream;
use crate::workers::Stores;

/// The encounter service.
pub const SERVICE: Declaration = Declaration { upstream: Upstream::Encounter, port: 8083, endpoints };

/// The operations, with the timeline of the read models' room.
fn endpoints() -> Endpoints<Stores> {
    Endpoints::new()
        .merge(appointment::endpoints())
        .serve(
            Operation::create::<Encounter>("/v1/patients/{patient_id}/encounters", "Schedules an encounter"),
            schedule,
        )
        .serve(
            Operation::list::<Encounter>("/v1/patients/{patient_id}/encounters", "Lists the encounters of a patient"),
            list::<Encounter>,
        )
        .serve(Operation::get::<Encounter>("/v1/encounters/{encounter_id}", "Shows an encounter"), show::<Encounter>)
        .serve(
            Operation::transition::<Encounter>(
                "/v1/patients/{patient_id}/encounters/{encounter_id}/transitions",
                "Moves an encounter to another state",
            ),
            transition::transition,
        )
        .merge(parts::endpoints())
        .merge(crate::projections::encounter_endpoints())
}

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
        let place = (body.facility_id, body.provider_id);
        let mut encounter =
            Encounter::scheduled(child_id(&unit, patient_id), patient_id, place, body.kind, body.scheduled_at);
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

/// The id of something new in a patient's record, of the unit's instant and its key. A submission that is retried makes another
/// one, which is not written: its key finds the answer of the first.
fn child_id<K: pim_core::id::IdKind>(unit: &Unit, patient: PatientId) -> Id<K> {
    match unit.context().idempotency() {
        Some(scope) => Id::child_derived(patient.bucket(), unit.at(), scope.scope(), 0),
        None => Id::child_of(patient.bucket(), unit.at()),
    }
}

/// Refuses what would plan or begin care that is paused or over. What has begun goes on to its end.
///
/// Loads the patient, so that the unit notices when the record is suspended or retired at the same time.
async fn patient_under_care(unit: &mut Unit, permit: &Permit<Write>, id: PatientId) -> Result<(), Failure> {
    let patient = unit.load::<Patient>(&permit.for_resource(LabResource::Patient), id).await?;
    let patient = patient.ok_or_else(|| Problem::of(problem::NOT_FOUND))?;
    if patient.state.takes_care() {
        return Ok(());
    }
    let illegal = Problem::of(problem::ILLEGAL_TRANSITION).detail("care is paused or over").with("entity", "patient");
    Err(illegal.with("from", patient.state.name()).into())
}
