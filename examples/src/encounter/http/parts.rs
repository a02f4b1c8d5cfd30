//! Adding to an encounter while it goes on.

use axum::extract::State;
use pim_core::clock::Timestamp;
use pim_core::problem::{self, Problem};
use pim_core::rbac::Write;
use pim_data::cluster::Cluster;
use pim_events::AppendExt as _;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use crate::encounter::event::EncounterExtended;
use crate::encounter::parts::{Diagnosis, Note, Observation, Order, PARTS_MAX, Procedure, TEXT_BYTES_MAX};
use crate::encounter::record::{Encounter, EncounterState};
use crate::ids::{EncounterId, PatientId};
use crate::rig::{Answer, Conditional, Endpoints, Failure, May, Operation, PathId, write};
use crate::workers::Stores;

pub(super) fn endpoints() -> Endpoints<Stores> {
    const fn adding(template: &'static str, summary: &'static str) -> Operation {
        Operation::create::<Encounter>(template, summary)
    }
    Endpoints::new()
        .serve(
            adding("/v1/patients/{patient_id}/encounters/{encounter_id}/diagnoses", "Adds a diagnosis"),
            extend::<Diagnosis>,
        )
        .serve(
            adding("/v1/patients/{patient_id}/encounters/{encounter_id}/procedures", "Adds a procedure"),
            extend::<Procedure>,
        )
        .serve(adding("/v1/patients/{patient_id}/encounters/{encounter_id}/orders", "Adds an order"), extend::<Order>)
        .serve(
            adding("/v1/patients/{patient_id}/encounters/{encounter_id}/observations", "Adds an observation"),
            extend::<Observation>,
        )
        .serve(adding("/v1/patients/{patient_id}/encounters/{encounter_id}/notes", "Adds a note"), extend::<Note>)
}

/// Something that an encounter is made of.
trait Part: Clone + DeserializeOwned + ToSchema + Send + Sync + 'static {
    const NAME: &'static str;

    fn list(encounter: &mut Encounter) -> &mut Vec<Self>;
    fn stamped(self, at: Timestamp) -> Self;
    fn code(&self) -> Option<String>;
}

macro_rules! part {
    ($type:ident, $name:literal, $list:ident, |$it:ident| $code:expr) => {
        impl Part for $type {
            const NAME: &'static str = $name;

            fn list(encounter: &mut Encounter) -> &mut Vec<Self> {
                &mut encounter.$list
            }

            fn stamped(mut self, at: Timestamp) -> Self {
                self.at = at;
                self
            }

            fn code(&self) -> Option<String> {
                let $it = self;
                $code
            }
        }
    };
}

part!(Diagnosis, "diagnosis", diagnoses, |it| Some(it.code.as_str().to_owned()));
part!(Procedure, "procedure", procedures, |it| Some(it.code.as_str().to_owned()));
part!(Order, "order", orders, |it| Some(it.code.as_str().to_owned()));
part!(Observation, "observation", observations, |_it| None);
part!(Note, "note", notes, |_it| None);

async fn extend<P: Part>(
    State(cluster): State<Cluster>,
    May(permit): May<Write>,
    PathId((patient_id, id)): PathId<(PatientId, EncounterId)>,
    command: Conditional<P>,
) -> Result<Answer, Failure> {
    let (permit, command) = (&permit, &command);
    write(&cluster, &command.cx, patient_id, move |mut unit| async move {
        let mut encounter = command.load::<Encounter>(&mut unit, permit, id).await?;
        if encounter.state != EncounterState::InProgress {
            let illegal = Problem::of(problem::ILLEGAL_TRANSITION).with("entity", "encounter");
            return Err(illegal.with("from", encounter.state.name()).detail("the encounter is not in progress").into());
        }
        add(&mut encounter, command.body.clone().stamped(unit.at()))?;
        encounter.version = unit.save(permit, &encounter)?;
        unit.append(&EncounterExtended {
            encounter_id: id,
            version: encounter.version,
            patient_id,
            facility_id: encounter.facility_id,
            part: P::NAME.to_owned(),
            code: command.body.code(),
        })?;
        Ok((unit, Answer::created(&encounter)?))
    })
    .await
}

/// Adds a part, where there is room for it. What is full of text takes whatever has none.
fn add<P: Part>(encounter: &mut Encounter, part: P) -> Result<(), Failure> {
    let full = |detail| Problem::of(problem::INVALID_BODY).detail(detail);
    let text_before = encounter.text_bytes();
    let list = P::list(encounter);
    if list.len() >= PARTS_MAX {
        return Err(full("the encounter has as many entries as it may have").with("entries_max", PARTS_MAX).into());
    }
    list.push(part);
    if encounter.text_bytes() > TEXT_BYTES_MAX.max(text_before) {
        let full = full("the encounter has as much text as it may have, or would have more with this");
        return Err(full.with("text_bytes_max", TEXT_BYTES_MAX).into());
    }
    Ok(())
}
