//! What a session lacks because it was asked for in vain: which steps bring it, and which need it.

use std::collections::BTreeSet;

use self::Operation as Op;
use super::operation::Operation;

/// What later steps go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Thing {
    Patient,
    Encounter,
    Claim,
    /// Where and by whom a patient is seen.
    Place,
}

/// What would be known if nothing had failed.
#[derive(Debug, Default)]
pub(super) struct Lacks(BTreeSet<Thing>);

impl Lacks {
    /// Whether it was told when it was asked for last.
    pub(super) fn note(&mut self, thing: Thing, is_told: bool) {
        if is_told {
            self.0.remove(&thing);
        } else {
            self.0.insert(thing);
        }
    }

    /// The same of what a step brings, if it brings anything.
    pub(super) fn note_of(&mut self, operation: Operation, is_told: bool) {
        if let Some(thing) = brought_by(operation) {
            self.note(thing, is_told);
        }
    }

    /// Whether a step needs something of it.
    pub(super) fn keep(&self, operation: Operation) -> bool {
        needed_by(operation).iter().any(|thing| self.0.contains(thing))
    }
}

/// What an answer tells for later steps.
const fn brought_by(operation: Operation) -> Option<Thing> {
    match operation {
        Op::PatientSearch | Op::PatientRegister => Some(Thing::Patient),
        Op::EncounterSchedule => Some(Thing::Encounter),
        Op::ClaimList | Op::ClaimSubmit | Op::ClaimAdjudicate | Op::ClaimPay | Op::ClaimClose => Some(Thing::Claim),
        _ => None,
    }
}

const fn needed_by(operation: Operation) -> &'static [Thing] {
    match operation {
        Op::PatientSearch
        | Op::PatientRegister
        | Op::FacilityList
        | Op::RevenueRead
        | Op::ShardsRead
        | Op::OutboxRead => &[],
        Op::PatientRead
        | Op::SummaryRead
        | Op::EncounterList
        | Op::EncounterSchedule
        | Op::TimelineRead
        | Op::ClaimList => &[Thing::Patient],
        Op::EncounterStart
        | Op::DiagnosisAdd
        | Op::ProcedureAdd
        | Op::OrderAdd
        | Op::ObservationAdd
        | Op::NoteAdd
        | Op::EncounterComplete => &[Thing::Patient, Thing::Encounter],
        Op::ClaimSubmit | Op::ClaimAdjudicate | Op::ClaimPay | Op::ClaimClose => &[Thing::Patient, Thing::Claim],
        Op::AppointmentBook => &[Thing::Patient, Thing::Place],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guard: what fails is missed where it is needed, and until it is told.
    #[test]
    fn a_step_lacks_what_it_needs_and_nothing_else() {
        let mut lacks = Lacks::default();
        lacks.note_of(Op::SummaryRead, false);
        assert!(!lacks.keep(Op::TimelineRead), "nobody needs a summary");
        lacks.note_of(Op::ClaimPay, false);
        assert!(lacks.keep(Op::ClaimClose) && !lacks.keep(Op::EncounterStart), "{lacks:?}");
        lacks.note_of(Op::ClaimPay, true);
        assert!(!lacks.keep(Op::ClaimClose), "the second payment was taken: {lacks:?}");
        lacks.note_of(Op::PatientSearch, false);
        assert!(lacks.keep(Op::EncounterSchedule) && lacks.keep(Op::ClaimList) && !lacks.keep(Op::RevenueRead));
        lacks.note(Thing::Place, false);
        lacks.note_of(Op::PatientRegister, true);
        assert!(lacks.keep(Op::AppointmentBook) && !lacks.keep(Op::ClaimList), "{lacks:?}");
    }
}
