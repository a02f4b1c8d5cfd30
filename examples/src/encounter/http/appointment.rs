//! Making and ending appointments.

use axum::extract::State;
use pim_core::clock::Timestamp;
use pim_core::rbac::Write;
use pim_data::cluster::Cluster;
use pim_events::AppendExt as _;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{child_id, patient_under_care};
use crate::encounter::appointment::{Appointment, AppointmentState};
use crate::encounter::event::{AppointmentMade, AppointmentMoved};
use crate::ids::{AppointmentId, FacilityId, PatientId, ProviderId};
use crate::reference::{Facility, Provider, ReferenceBook};
use crate::rig::{Answer, Command, Conditional, Endpoints, Failure, May, Operation, PathId, list, write};
use crate::workers::Stores;

pub(super) fn endpoints() -> Endpoints<Stores> {
    Endpoints::new()
        .serve(Operation::create::<Appointment>("/v1/patients/{patient_id}/appointments", "Books an appointment"), make)
        .serve(
            Operation::list::<Appointment>(
                "/v1/patients/{patient_id}/appointments",
                "Lists the appointments of a patient",
            ),
            list::<Appointment>,
        )
        .serve(
            Operation::transition::<Appointment>(
                "/v1/patients/{patient_id}/appointments/{appointment_id}/transitions",
                "Moves an appointment to another state",
            ),
            transition,
        )
}

/// Body of a new appointment.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Booking {
    #[schema(value_type = String, format = "uuid")]
    facility_id: FacilityId,
    #[schema(value_type = String, format = "uuid")]
    provider_id: ProviderId,
    #[schema(value_type = String, format = DateTime)]
    scheduled_at: Timestamp,
}

/// Body of a transition.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AppointmentTransition)]
struct Transition {
    to: AppointmentState,
}

async fn make(
    State(cluster): State<Cluster>,
    State(book): State<ReferenceBook>,
    May(permit): May<Write>,
    PathId(patient_id): PathId<PatientId>,
    command: Command<Booking>,
) -> Result<Answer, Failure> {
    let body = command.body;
    let (permit, command, book) = (&permit, &command, &book);
    write(&cluster, &command.cx, patient_id, move |mut unit| async move {
        patient_under_care(&mut unit, permit, patient_id).await?;
        book.check::<Facility>("/facility_id", body.facility_id, &command.seen).await?;
        book.check::<Provider>("/provider_id", body.provider_id, &command.seen).await?;
        let mut appointment = Appointment {
            id: child_id(&unit, patient_id),
            version: 0,
            patient_id,
            facility_id: body.facility_id,
            provider_id: body.provider_id,
            scheduled_at: body.scheduled_at,
            state: AppointmentState::Booked,
        };
        appointment.version = unit.save(permit, &appointment)?;
        unit.append(&AppointmentMade {
            appointment_id: appointment.id,
            version: appointment.version,
            patient_id,
            facility_id: body.facility_id,
            provider_id: body.provider_id,
            scheduled_at: body.scheduled_at,
        })?;
        Ok((unit, Answer::created(&appointment)?))
    })
    .await
}

async fn transition(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    PathId((patient_id, id)): PathId<(PatientId, AppointmentId)>,
    command: Conditional<Transition>,
) -> Result<Answer, Failure> {
    let to = command.body.to;
    let (permit, command) = (&permit, &command);
    write(&cluster, &command.cx, patient_id, move |mut unit| async move {
        let mut appointment = command.load::<Appointment>(&mut unit, permit, id).await?;
        let from = appointment.state;
        if !from.may_become(to) {
            return Err(Failure::illegal_transition::<Appointment>(from.name(), to.name()));
        }
        appointment.state = to;
        appointment.version = unit.save(permit, &appointment)?;
        let version = appointment.version;
        let facility_id = appointment.facility_id;
        unit.append(&AppointmentMoved { appointment_id: id, version, patient_id, facility_id, to })?;
        Ok((unit, Answer::ok(&appointment)?))
    })
    .await
}
