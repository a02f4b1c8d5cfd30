//! What a patient has behind them: an appointment that was kept, an encounter from its planning to its end, and its claim
//! as far as it got.
//!
//! What it says happened lies before the data set's epoch; when it was written is when the directory was filled.

use anyhow::Context as _;
use pim_core::clock::Timestamp;
use pim_core::id::Id;
use pim_data::unit::Unit;
use pim_events::AppendExt as _;

use super::people::{EPOCH_MICROS, HOUR_MICROS, PROVIDERS_PER_FACILITY, People, scheduled};
use super::permit;
use crate::billing::{Claim, ClaimDrafted, ClaimMoved, ClaimState, Money, Payment, PaymentMade, lines_of};
use crate::care::{Act, pathways};
use crate::encounter::{
    Appointment, AppointmentMade, AppointmentMoved, AppointmentState, Diagnosis, Encounter, EncounterCompleted,
    EncounterExtended, EncounterStarted, EncounterState, Note, Observation, Order, Procedure, VisitKind,
};
use crate::patient::{Patient, PatientMoved, PatientState};
use crate::persona::{Stream, below, draw};
use crate::policy::LabResource;

const MINUTE_MICROS: i64 = HOUR_MICROS / 60;
const DAY_MICROS: i64 = 24 * HOUR_MICROS;
/// A past begins so many days before the epoch, and at most so many more.
const DAYS_MIN: i64 = 60;
const DAYS_MORE: u64 = 305;
/// Between the steps of billing.
const BILLING_MICROS: i64 = 7 * DAY_MICROS;
/// First fields of the draws of a visit and of a claim.
const VISIT_FIELDS: u64 = 100;
const CLAIM_FIELDS: u64 = 200;

/// Units on one home key, each of which goes on from the one before.
#[derive(Debug)]
pub(super) struct Story {
    pub(super) units: Vec<Unit>,
}

impl From<Unit> for Story {
    fn from(first: Unit) -> Self {
        Self { units: vec![first] }
    }
}

impl Story {
    fn goes_on(&mut self, fill: impl FnOnce(&mut Unit) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut unit = self.units.last().context("a story has a beginning")?.following()?;
        fill(&mut unit)?;
        self.units.push(unit);
        Ok(())
    }
}

/// What a patient has behind them.
#[derive(Debug)]
pub(super) struct Past {
    patient: Patient,
    appointment: Appointment,
    encounter: Encounter,
    claim: Claim,
    visit: Vec<Act<'static>>,
    billing: Vec<Act<'static>>,
}

impl Past {
    pub(super) fn of(people: &People, n: u32, mut patient: Patient) -> Self {
        let bits = |field| draw(people.seed, Stream::Past, u64::from(n), field);
        // Its first unit registers it.
        patient.version = 1;
        let days = DAYS_MIN + i64::try_from(below(bits(1), DAYS_MORE)).unwrap_or(0);
        let hours = i64::try_from(below(bits(2), 9)).unwrap_or(0);
        let at = Timestamp::from_micros(EPOCH_MICROS - days * DAY_MICROS + hours * HOUR_MICROS);
        let facility = people.facility_of(n);
        let provider = facility * PROVIDERS_PER_FACILITY + below(bits(3), PROVIDERS_PER_FACILITY);
        let (facility_id, provider_id) = (people.facility_id(facility), people.provider_id(provider));
        let mut visit = pathways().visit(|field| bits(VISIT_FIELDS + field));
        let kind = match visit.first() {
            Some(Act::Schedule { kind }) => *kind,
            _ => VisitKind::OfficeVisit,
        };
        visit.retain(|act| !matches!(act, Act::Schedule { .. }));
        let scope = |kind: &str| people.scope(kind, u64::from(n));
        let (patient_id, bucket) = (patient.id, patient.id.bucket());
        let encounter_id = Id::child_derived(bucket, at, &scope("past encounter"), 0);
        Self {
            appointment: Appointment {
                id: Id::child_derived(bucket, at, &scope("past appointment"), 0),
                version: 0,
                patient_id,
                facility_id,
                provider_id,
                scheduled_at: at,
                state: AppointmentState::Booked,
            },
            encounter: Encounter::scheduled(encounter_id, patient_id, (facility_id, provider_id), kind, at),
            claim: Claim {
                id: Id::child_derived(bucket, at, &scope("past claim"), 0),
                version: 0,
                patient_id,
                facility_id,
                encounter_id,
                state: ClaimState::Draft,
                lines: Vec::new(),
                payments: Vec::new(),
                total: Money::usd_cents(0),
                paid: Money::usd_cents(0),
            },
            patient,
            visit,
            billing: pathways().claim(|field| bits(CLAIM_FIELDS + field)),
        }
    }

    /// Everything that decides it, as JSON.
    pub(super) fn told(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&(&self.appointment, &self.encounter, &self.claim, &self.visit, &self.billing))
    }

    /// Writes it, a unit for each thing that happened.
    pub(super) fn tell(mut self, story: &mut Story) -> anyhow::Result<()> {
        story.goes_on(|unit| self.plan(unit))?;
        story.goes_on(|unit| self.arrive(unit))?;
        story.goes_on(|unit| self.see(unit))?;
        story.goes_on(|unit| self.complete(unit))?;
        for (number, act) in (1..).zip(self.billing.clone()) {
            story.goes_on(|unit| self.settle(unit, act, number))?;
        }
        Ok(())
    }

    /// The appointment is made.
    fn plan(&mut self, unit: &mut Unit) -> anyhow::Result<()> {
        let (from, to) = (self.patient.state, PatientState::Active);
        self.patient.state = to;
        self.patient.version = unit.save(&permit(LabResource::Patient), &self.patient)?;
        unit.append(&PatientMoved { patient_id: self.patient.id, version: self.patient.version, from, to })?;
        let it = &mut self.appointment;
        it.version = unit.save(&permit(LabResource::Appointment), it)?;
        unit.append(&AppointmentMade {
            appointment_id: it.id,
            version: it.version,
            patient_id: it.patient_id,
            facility_id: it.facility_id,
            provider_id: it.provider_id,
            scheduled_at: it.scheduled_at,
        })?;
        let it = &mut self.encounter;
        it.version = unit.save(&permit(LabResource::Encounter), it)?;
        unit.append(&scheduled(it, it.version))?;
        Ok(())
    }

    /// The patient comes.
    fn arrive(&mut self, unit: &mut Unit) -> anyhow::Result<()> {
        let it = &mut self.appointment;
        it.state = AppointmentState::Fulfilled;
        it.version = unit.save(&permit(LabResource::Appointment), it)?;
        let (appointment_id, version, to) = (it.id, it.version, it.state);
        let (patient_id, facility_id) = (it.patient_id, it.facility_id);
        unit.append(&AppointmentMoved { appointment_id, version, patient_id, facility_id, to })?;
        let it = &mut self.encounter;
        it.state = EncounterState::InProgress;
        it.started_at = Some(later(it.scheduled_at, 4 * MINUTE_MICROS));
        it.version = unit.save(&permit(LabResource::Encounter), it)?;
        let (encounter_id, version) = (it.id, it.version);
        unit.append(&EncounterStarted { encounter_id, version, patient_id, facility_id })?;
        Ok(())
    }

    /// What a pathway of care has in it.
    fn see(&mut self, unit: &mut Unit) -> anyhow::Result<()> {
        let it = &mut self.encounter;
        let mut parts = Vec::new();
        for (minute, act) in (6..).zip(&self.visit) {
            let at = later(it.scheduled_at, minute * MINUTE_MICROS);
            let (part, code) = match *act {
                Act::Diagnose { code } => {
                    it.diagnoses.push(Diagnosis { code: code.clone(), at });
                    ("diagnosis", Some(code.as_str()))
                }
                Act::Perform { code } => {
                    it.procedures.push(Procedure { code: code.clone(), at });
                    ("procedure", Some(code.as_str()))
                }
                Act::Order { kind, code } => {
                    it.orders.push(Order { kind, code: code.clone(), at });
                    ("order", Some(code.as_str()))
                }
                Act::Measure { kind, value } => {
                    it.observations.push(Observation { kind, value, at });
                    ("observation", None)
                }
                Act::Note { text } => {
                    it.notes.push(Note { text: text.clone(), at });
                    ("note", None)
                }
                Act::Schedule { .. } | Act::Submit | Act::Adjudicate | Act::Pay { .. } | Act::Close => continue,
            };
            parts.push((part, code));
        }
        it.version = unit.save(&permit(LabResource::Encounter), it)?;
        for (part, code) in parts {
            unit.append(&EncounterExtended {
                encounter_id: it.id,
                version: it.version,
                patient_id: it.patient_id,
                facility_id: it.facility_id,
                part: part.to_owned(),
                code: code.map(str::to_owned),
            })?;
        }
        Ok(())
    }

    /// The visit ends, and its claim is drafted with it.
    fn complete(&mut self, unit: &mut Unit) -> anyhow::Result<()> {
        let it = &mut self.encounter;
        let completed_at = later(it.scheduled_at, 35 * MINUTE_MICROS);
        (it.state, it.completed_at) = (EncounterState::Completed, Some(completed_at));
        it.version = unit.save(&permit(LabResource::Encounter), it)?;
        let procedures: Vec<_> = it.procedures.iter().map(|procedure| procedure.code.clone()).collect();
        let claim = &mut self.claim;
        claim.lines = lines_of(&procedures);
        claim.total = Money::usd_cents(claim.lines.iter().map(|line| line.amount.cents()).sum());
        unit.append(&EncounterCompleted {
            encounter_id: it.id,
            version: it.version,
            patient_id: it.patient_id,
            facility_id: it.facility_id,
            provider_id: it.provider_id,
            completed_at,
            diagnoses: it.diagnoses.iter().map(|diagnosis| diagnosis.code.clone()).collect(),
            procedures,
            claim_id: Some(claim.id),
        })?;
        claim.version = unit.save(&permit(LabResource::Claim), claim)?;
        unit.append(&ClaimDrafted {
            claim_id: claim.id,
            version: claim.version,
            patient_id: it.patient_id,
            facility_id: it.facility_id,
            encounter_id: it.id,
            total: claim.total,
        })?;
        Ok(())
    }

    /// Billing goes one step on.
    fn settle(&mut self, unit: &mut Unit, act: Act<'static>, number: i64) -> anyhow::Result<()> {
        let it = &mut self.claim;
        let (claim_id, patient_id, facility_id) = (it.id, it.patient_id, it.facility_id);
        let to = match act {
            Act::Submit => ClaimState::Submitted,
            Act::Adjudicate => ClaimState::Adjudicated,
            Act::Close => ClaimState::Closed,
            Act::Pay { method, percent } => {
                let owed = it.total.cents() - it.paid.cents();
                let amount = Money::usd_cents(owed * i64::try_from(percent).unwrap_or(0) / 100);
                it.paid = Money::usd_cents(it.paid.cents() + amount.cents());
                it.payments.push(Payment {
                    amount,
                    method,
                    at: later(self.encounter.scheduled_at, number * BILLING_MICROS),
                });
                it.version = unit.save(&permit(LabResource::Claim), it)?;
                let (version, paid) = (it.version, it.paid);
                unit.append(&PaymentMade { claim_id, version, patient_id, facility_id, amount, paid })?;
                return Ok(());
            }
            _ => anyhow::bail!("a claim's life has an act of a visit"),
        };
        let from = std::mem::replace(&mut it.state, to);
        it.version = unit.save(&permit(LabResource::Claim), it)?;
        let (version, total) = (it.version, it.total);
        unit.append(&ClaimMoved { claim_id, version, patient_id, facility_id, from, to, total })?;
        Ok(())
    }
}

fn later(at: Timestamp, micros: i64) -> Timestamp {
    Timestamp::from_micros(at.as_micros() + micros)
}
