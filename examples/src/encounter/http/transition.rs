//! Moving an encounter through its states.

use axum::extract::State;
use pim_core::rbac::{Permit, SystemScope, Write};
use pim_data::cluster::Cluster;
use pim_data::unit::Unit;
use pim_events::AppendExt as _;
use serde::Deserialize;
use utoipa::ToSchema;

use super::patient_under_care;
use crate::encounter::event::{EncounterArchived, EncounterCompleted, EncounterStarted};
use crate::encounter::record::{Encounter, EncounterState};
use crate::ids::{EncounterId, PatientId};
use crate::policy::{LabAction, LabResource};
use crate::rig::{Answer, Conditional, Failure, May, PathId, write};

/// Why the patient is looked at.
const CARE: SystemScope = SystemScope::new("ask whether care goes on");

/// Body of a transition.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = EncounterTransition)]
pub(super) struct Transition {
    to: EncounterState,
}

pub(super) async fn transition(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    PathId((patient_id, id)): PathId<(PatientId, EncounterId)>,
    command: Conditional<Transition>,
) -> Result<Answer, Failure> {
    let to = command.body.to;
    let (permit, command) = (&permit, &command);
    write(&cluster, &command.cx, patient_id, move |mut unit| async move {
        let mut encounter = command.load::<Encounter>(&mut unit, permit, id).await?;
        let from = encounter.state;
        if !from.may_become(to) {
            return Err(Failure::illegal_transition::<Encounter>(from.name(), to.name()));
        }
        if to == EncounterState::InProgress {
            // The encounter is the caller's; its patient may belong elsewhere by now, and only whether care goes on is asked.
            let asks = Permit::system(CARE, LabAction::Write, LabResource::Patient);
            patient_under_care(&mut unit, &asks, patient_id).await?;
        }
        encounter.state = to;
        match to {
            EncounterState::InProgress => encounter.started_at = Some(unit.at()),
            EncounterState::Completed => encounter.completed_at = Some(unit.at()),
            EncounterState::Scheduled | EncounterState::Archived => {}
        }
        encounter.version = unit.save(permit, &encounter)?;
        append(&mut unit, &encounter)?;
        Ok((unit, Answer::ok(&encounter)?))
    })
    .await
}

fn append(unit: &mut Unit, encounter: &Encounter) -> Result<(), Failure> {
    let (encounter_id, version) = (encounter.id, encounter.version);
    let (patient_id, facility_id) = (encounter.patient_id, encounter.facility_id);
    match encounter.state {
        EncounterState::Scheduled => return Ok(()),
        EncounterState::InProgress => unit.append(&EncounterStarted { encounter_id, version, patient_id, facility_id }),
        EncounterState::Completed => unit.append(&EncounterCompleted {
            encounter_id,
            version,
            patient_id,
            facility_id,
            provider_id: encounter.provider_id,
            completed_at: unit.at(),
            diagnoses: encounter.diagnoses.iter().map(|diagnosis| diagnosis.code.clone()).collect(),
            procedures: encounter.procedures.iter().map(|procedure| procedure.code.clone()).collect(),
            claim_id: None,
        }),
        EncounterState::Archived => unit.append(&EncounterArchived { encounter_id, version, patient_id, facility_id }),
    }?;
    Ok(())
}
