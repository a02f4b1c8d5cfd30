//! Completing an encounter drafts its claim: a command that an event drives.

use async_trait::async_trait;
use pim_core::context::RequestContext;
use pim_core::id::Id;
use pim_core::rbac::{Permit, SystemScope, Write};
use pim_data::unit::Unit;
use pim_events::{AppendExt as _, ApplyError, CommandHandler, DomainEvent as _, Effect, Event};

use super::claim::{Claim, ClaimState, Line};
use super::event::ClaimDrafted;
use super::money::Money;
use crate::encounter::{EncounterCompleted, ProcedureCode};
use crate::ids::ClaimId;
use crate::policy::{LabAction, LabResource};

/// The visit itself, when nothing else was done.
const VISIT_CODE: &str = "G0463";
const VISIT_CENTS: i64 = 12_000;
const PROCEDURE_CENTS: i64 = 8_500;

/// Drafts the claim of a completed encounter.
#[derive(Clone, Copy, Debug, Default)]
pub struct DraftClaim;

#[async_trait]
impl CommandHandler for DraftClaim {
    fn name(&self) -> &'static str {
        "draft-claim"
    }

    fn handles(&self, event_type: &str) -> bool {
        event_type == EncounterCompleted::TYPE
    }

    async fn handle(&self, _cx: &RequestContext, unit: &mut Unit, event: &Event) -> Result<Effect, ApplyError> {
        let completed: EncounterCompleted = event.decode()?;
        if completed.claim_id.is_some() {
            return Ok(Effect::Nothing);
        }
        let scope = SystemScope::new("draft the claim of a completed encounter");
        let permit = Permit::<Write>::system(scope, LabAction::Write, LabResource::Claim);
        let lines = lines_of(&completed.procedures);
        let total = lines.iter().map(|line| line.amount.cents()).sum();
        // Derived from the event, so that another delivery makes the same claim.
        let id: ClaimId = Id::child_derived(completed.patient_id.bucket(), event.time, event.id.as_bytes(), 0);
        let claim = Claim {
            id,
            version: 0,
            patient_id: completed.patient_id,
            facility_id: completed.facility_id,
            encounter_id: completed.encounter_id,
            state: ClaimState::Draft,
            lines,
            payments: Vec::new(),
            total: Money::usd_cents(total),
            paid: Money::usd_cents(0),
        };
        let version = unit.save(&permit, &claim)?;
        unit.append(&ClaimDrafted {
            claim_id: id,
            version,
            patient_id: completed.patient_id,
            facility_id: completed.facility_id,
            encounter_id: completed.encounter_id,
            total: claim.total,
        })?;
        Ok(Effect::Commit)
    }
}

/// What a visit is charged for.
pub(crate) fn lines_of(procedures: &[ProcedureCode]) -> Vec<Line> {
    let visit = ProcedureCode::try_from(VISIT_CODE.to_owned()).ok().map(|code| (code, VISIT_CENTS));
    let done = procedures.iter().map(|code| (code.clone(), PROCEDURE_CENTS));
    visit.into_iter().chain(done).map(|(code, cents)| Line { code, amount: Money::usd_cents(cents) }).collect()
}
