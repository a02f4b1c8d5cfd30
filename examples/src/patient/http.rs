//! The HTTP side of patients.

use axum::extract::State;
use pim_core::id::Id;
use pim_core::problem::{self, Problem};
use pim_core::rbac::Write;
use pim_data::cluster::Cluster;
use pim_events::AppendExt as _;
use serde::Deserialize;
use utoipa::ToSchema;

use super::event::{PatientCorrected, PatientMoved};
use super::record::{Patient, PatientState};
use super::value::{Address, BirthDate, Mail, PersonName, Sex, SynNumber, Telephone};
use crate::ids::{FacilityId, PatientId};
use crate::reference::{Facility, ReferenceBook};
use crate::rig::{
    Answer, Command, Conditional, Declaration, Endpoints, Failure, May, Operation, PathId, present, show, write,
};
use crate::routes::Upstream;
use crate::workers::Stores;

/// The patient service.
pub const SERVICE: Declaration = Declaration { upstream: Upstream::Patient, port: 8082, endpoints };

/// The operations, with the searches and summaries of the read models' room.
fn endpoints() -> Endpoints<Stores> {
    Endpoints::new()
        .serve(Operation::create::<Patient>("/v1/patients", "Registers a patient"), register)
        .serve(Operation::get::<Patient>("/v1/patients/{patient_id}", "Shows a patient"), show::<Patient>)
        .serve(Operation::patch::<Patient>("/v1/patients/{patient_id}", "Corrects a patient's particulars"), correct)
        .serve(
            Operation::transition::<Patient>(
                "/v1/patients/{patient_id}/transitions",
                "Moves a patient's record to another state",
            ),
            transition,
        )
        .merge(crate::projections::patient_endpoints())
}

/// Body of a registration.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Registration {
    #[schema(value_type = String, format = "uuid")]
    facility_id: FacilityId,
    given_name: PersonName,
    family_name: PersonName,
    birth_date: BirthDate,
    sex: Sex,
    syn_number: SynNumber,
    #[serde(default)]
    address: Option<Address>,
    #[serde(default)]
    telephone: Option<Telephone>,
    #[serde(default)]
    mail: Option<Mail>,
}

/// Body of a correction: what is absent stays, and what may be absent from a record is removed by null.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Correction {
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String, format = "uuid")]
    facility_id: Option<FacilityId>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = PersonName)]
    given_name: Option<PersonName>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = PersonName)]
    family_name: Option<PersonName>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = BirthDate)]
    birth_date: Option<BirthDate>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Address>)]
    address: Option<Option<Address>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Telephone>)]
    telephone: Option<Option<Telephone>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Mail>)]
    mail: Option<Option<Mail>>,
}

/// Body of a transition.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PatientTransition)]
struct Transition {
    to: PatientState,
}

async fn register(
    State(cluster): State<Cluster>,
    State(book): State<ReferenceBook>,
    May(permit): May<Write>,
    command: Command<Registration>,
) -> Result<Answer, Failure> {
    let scope = command.cx.idempotency().ok_or_else(|| Problem::of(problem::IDEMPOTENCY_KEY_MISSING))?;
    // Derived from the submission, so that a retry finds the same shard and the same record.
    let id: PatientId = Id::derive(scope.scope(), 0);
    let body = &command.body;
    let patient = Patient {
        id,
        version: 0,
        facility_id: body.facility_id,
        state: PatientState::Registered,
        given_name: body.given_name.clone(),
        family_name: body.family_name.clone(),
        birth_date: body.birth_date.clone(),
        sex: body.sex,
        syn_number: body.syn_number.clone(),
        address: body.address.clone(),
        telephone: body.telephone.clone(),
        mail: body.mail.clone(),
    };
    let (permit, patient, book, seen) = (&permit, &patient, &book, &command.seen);
    let registered = write(&cluster, &command.cx, id, move |mut unit| async move {
        let mut patient = patient.clone();
        if let Err(refused) = book.check::<Facility>("/facility_id", patient.facility_id, seen).await {
            // Unless an equal submission was answered when the facility was there.
            unit.load::<Patient>(permit, id).await?;
            return Err(refused);
        }
        let version = unit.save(permit, &patient)?;
        unit.append(&patient.registered(version))?;
        patient.version = version;
        Ok((unit, Answer::created(&patient)?))
    });
    match registered.await {
        // The submission was answered once, longer ago than answers are kept: say which record it made.
        Err(Failure::Unit(pim_data::unit::UnitError::AlreadyExists { entity })) => {
            let exists = Problem::of(problem::ALREADY_EXISTS).with("entity", entity);
            Err(exists.with("id", id.to_string()).into())
        }
        outcome => outcome,
    }
}

async fn correct(
    State(cluster): State<Cluster>,
    State(book): State<ReferenceBook>,
    May(permit): May<Write>,
    PathId(id): PathId<PatientId>,
    command: Conditional<Correction>,
) -> Result<Answer, Failure> {
    let (permit, command, book) = (&permit, &command, &book);
    write(&cluster, &command.cx, id, move |mut unit| async move {
        let mut patient = command.load::<Patient>(&mut unit, permit, id).await?;
        if patient.state == PatientState::Retired {
            return Err(Problem::of(problem::ILLEGAL_TRANSITION).with("from", patient.state.name()).into());
        }
        if let Some(facility) = command.body.facility_id {
            book.check::<Facility>("/facility_id", facility, &command.seen).await?;
        }
        command.body.clone().apply_to(&mut patient);
        let version = unit.save(permit, &patient)?;
        patient.version = version;
        unit.append(&PatientCorrected {
            patient_id: id,
            version,
            facility_id: patient.facility_id,
            given_name: patient.given_name.clone(),
            family_name: patient.family_name.clone(),
            birth_date: patient.birth_date.clone(),
        })?;
        Ok((unit, Answer::ok(&patient)?))
    })
    .await
}

impl Correction {
    fn apply_to(self, patient: &mut Patient) {
        fn replace<T>(slot: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *slot = value;
            }
        }
        replace(&mut patient.facility_id, self.facility_id);
        replace(&mut patient.given_name, self.given_name);
        replace(&mut patient.family_name, self.family_name);
        replace(&mut patient.birth_date, self.birth_date);
        replace(&mut patient.address, self.address);
        replace(&mut patient.telephone, self.telephone);
        replace(&mut patient.mail, self.mail);
    }
}

async fn transition(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    PathId(id): PathId<PatientId>,
    command: Conditional<Transition>,
) -> Result<Answer, Failure> {
    let to = command.body.to;
    let (permit, command) = (&permit, &command);
    write(&cluster, &command.cx, id, move |mut unit| async move {
        let mut patient = command.load::<Patient>(&mut unit, permit, id).await?;
        let from = patient.state;
        if !from.may_become(to) {
            return Err(Failure::illegal_transition::<Patient>(from.name(), to.name()));
        }
        patient.state = to;
        let version = unit.save(permit, &patient)?;
        patient.version = version;
        unit.append(&PatientMoved { patient_id: id, version, from, to })?;
        Ok((unit, Answer::ok(&patient)?))
    })
    .await
}
