//! The people and places of a data set: every particular is a function of the seed and a number.

use pim_core::clock::Timestamp;
use pim_core::id::Id;

use super::SeedSettings;
use crate::broker::Persona;
use crate::encounter::{Encounter, EncounterScheduled, VisitKind};
use crate::ids::{EncounterId, FacilityId, PatientId, ProviderId};
use crate::patient::{Patient, PatientState, Sex};
use crate::persona::{Permutation, Stream, below, draw};
use crate::reference::{Account, Facility, Provider};

/// How many facilities there are.
pub(super) const FACILITIES: u64 = 8;
pub(super) const PROVIDERS_PER_FACILITY: u64 = 2;
const NUMBERS: u64 = 90_000_000;
/// Personas of each role that may sign in by name.
const PERSONAS_PER_ROLE: u32 = 8;
/// Monday, 2 March 2026, 08:00 UTC, in microseconds: the data set does not depend on the day it is made.
pub(super) const EPOCH_MICROS: i64 = 1_772_438_400_000_000;
pub(super) const HOUR_MICROS: i64 = 3_600_000_000;

const GIVEN: &[&str] = &[
    "Ada", "Bela", "Cora", "Dario", "Edda", "Falk", "Gala", "Hanno", "Ines", "Jona", "Kira", "Levi", "Mona", "Nils",
    "Oda", "Pim", "Quinn", "Runa", "Sami", "Tilda", "Uma", "Viggo", "Wanda", "Xenia", "Yara", "Zeno",
];
const FAMILY_FIRST: &[&str] = &[
    "Amber", "Birch", "Cobble", "Dale", "Elder", "Fern", "Gravel", "Hazel", "Ivy", "Juniper", "Kelp", "Larch", "Moss",
    "Nettle",
];
const FAMILY_LAST: &[&str] =
    &["brook", "field", "ford", "grove", "hill", "holm", "ley", "mere", "stead", "ton", "wick", "wood"];
const PLACES: &[(&str, &str)] = &[
    ("Northgate", "MN"),
    ("Riverbend", "OH"),
    ("Lakeview", "MI"),
    ("Mesa", "NM"),
    ("Harbor", "ME"),
    ("Prairie", "KS"),
    ("Summit", "CO"),
    ("Bayside", "FL"),
];
const SPECIALTIES: &[&str] = &["family_medicine", "internal_medicine"];

/// A data set.
#[derive(Clone, Debug)]
pub(super) struct People {
    pub(super) seed: u64,
    patients: u32,
    history_percent: u8,
    numbers: Permutation,
}

impl People {
    pub(super) fn of(settings: &SeedSettings) -> Self {
        let SeedSettings { patients, seed, history_percent } = *settings;
        Self { seed, patients, history_percent, numbers: Permutation::new(seed, NUMBERS) }
    }

    /// Whether a patient has something behind them: those who may sign in by name, and a share of the others.
    pub(super) fn has_past(&self, n: u32) -> bool {
        let bits = draw(self.seed, Stream::Past, u64::from(n), 0);
        self.history_percent > 0 && (n < PERSONAS_PER_ROLE || below(bits, 100) < u64::from(self.history_percent))
    }

    pub(super) const fn count(&self) -> u32 {
        self.patients
    }

    pub(super) fn scope(&self, kind: &str, n: u64) -> Vec<u8> {
        format!("{kind}/{}/{n}", self.seed).into_bytes()
    }

    fn pick<'a, T: ?Sized>(&self, list: &[&'a T], n: u32, field: u64) -> &'a T {
        let bits = draw(self.seed, Stream::Patient, u64::from(n), field);
        list[usize::try_from(below(bits, list.len() as u64)).unwrap_or(0)]
    }

    pub(super) fn patient_id(&self, n: u32) -> PatientId {
        Id::derive(&self.scope("patient", u64::from(n)), 0)
    }

    pub(super) fn facility_id(&self, n: u64) -> FacilityId {
        Id::derive(&self.scope("facility", n), 0)
    }

    pub(super) fn provider_id(&self, n: u64) -> ProviderId {
        Id::derive(&self.scope("provider", n), 0)
    }

    pub(super) fn facility_of(&self, n: u32) -> u64 {
        below(draw(self.seed, Stream::Patient, u64::from(n), 1), FACILITIES)
    }

    /// A patient; an error would be a defect of the lists above.
    pub(super) fn patient(&self, n: u32) -> Option<Patient> {
        let bits = |field| draw(self.seed, Stream::Patient, u64::from(n), field);
        let (year, month, day) = (1930 + below(bits(4), 90), 1 + below(bits(5), 12), 1 + below(bits(6), 28));
        let family = format!("{}{}", self.pick(FAMILY_FIRST, n, 2), self.pick(FAMILY_LAST, n, 3));
        let telephone = format!("202-555-01{:02}", below(bits(8), 100));
        let address = format!("{} {} Street", 1 + below(bits(10), 999), self.pick(FAMILY_FIRST, n, 11));
        Some(Patient {
            id: self.patient_id(n),
            version: 0,
            facility_id: self.facility_id(self.facility_of(n)),
            state: PatientState::Registered,
            given_name: self.pick(GIVEN, n, 7).to_owned().try_into().ok()?,
            family_name: family.try_into().ok()?,
            birth_date: format!("{year}-{month:02}-{day:02}").try_into().ok()?,
            sex: if below(bits(9), 2) == 0 { Sex::Female } else { Sex::Male },
            syn_number: format!("SYN-{:08}", self.numbers.of(u64::from(n))).try_into().ok()?,
            address: Some(address.try_into().ok()?),
            telephone: Some(telephone.try_into().ok()?),
            mail: Some(format!("person.{n}@example.org").try_into().ok()?),
        })
    }

    /// What is planned for a patient: one visit to come for every second of them.
    pub(super) fn encounters(&self, n: u32, patient: PatientId) -> Vec<Encounter> {
        let bits = |field| draw(self.seed, Stream::Care, u64::from(n), field);
        if below(bits(0), 2) == 0 {
            return Vec::new();
        }
        let hours = i64::try_from(below(bits(1), 24 * 60)).unwrap_or(0);
        let at = Timestamp::from_micros(EPOCH_MICROS + hours * HOUR_MICROS);
        let facility = self.facility_of(n);
        let provider = facility * PROVIDERS_PER_FACILITY + below(bits(2), PROVIDERS_PER_FACILITY);
        let id: EncounterId = Id::child_derived(patient.bucket(), at, &self.scope("encounter", u64::from(n)), 0);
        let kind = if below(bits(3), 3) == 0 { VisitKind::Telehealth } else { VisitKind::OfficeVisit };
        vec![Encounter::scheduled(id, patient, (self.facility_id(facility), self.provider_id(provider)), kind, at)]
    }

    pub(super) fn facilities(&self) -> Vec<Facility> {
        let facility = |n: u64| {
            let (place, state) = PLACES[usize::try_from(n).unwrap_or(0) % PLACES.len()];
            Facility {
                id: self.facility_id(n),
                version: 0,
                name: format!("{place} Synthetic Clinic"),
                state_code: state.to_owned(),
                active: true,
            }
        };
        (0..FACILITIES).map(facility).collect()
    }

    pub(super) fn providers(&self) -> Vec<Provider> {
        let provider = |n: u64| Provider {
            id: self.provider_id(n),
            version: 0,
            facility_id_of: self.facility_id(n / PROVIDERS_PER_FACILITY),
            name: format!("Provider {n}"),
            specialty: SPECIALTIES[usize::try_from(n).unwrap_or(0) % SPECIALTIES.len()].to_owned(),
            active: true,
        };
        (0..FACILITIES * PROVIDERS_PER_FACILITY).map(provider).collect()
    }

    /// Who may sign in by name: clinicians of each facility, the first patients, and some of the other roles.
    pub(super) fn personas(&self) -> Vec<Persona> {
        let persona = |role: &str, n: u64| Persona {
            subject: format!("{role}-{n}"),
            role: role.to_owned(),
            facilities: Vec::new(),
            patient: None,
            provider: None,
        };
        let mut personas = Vec::new();
        for n in 0..FACILITIES {
            personas.push(Persona {
                facilities: vec![self.facility_id(n).uuid()],
                provider: Some(self.provider_id(n * PROVIDERS_PER_FACILITY).uuid()),
                ..persona("clinician", n)
            });
        }
        for n in 0..self.patients.min(PERSONAS_PER_ROLE) {
            personas.push(Persona { patient: Some(self.patient_id(n).uuid()), ..persona("patient", u64::from(n)) });
        }
        for role in ["admin", "sre"] {
            personas.extend((0..2).map(|n| persona(role, n)));
        }
        personas
    }

    pub(super) fn accounts(&self) -> Vec<Account> {
        let account = |(n, persona): (usize, Persona)| Account {
            id: Id::derive(&self.scope("account", n as u64), 0),
            version: 0,
            subject: persona.subject,
            role: persona.role,
            facilities: persona.facilities.iter().filter_map(|uuid| FacilityId::from_uuid(*uuid).ok()).collect(),
            patient: persona.patient.and_then(|uuid| PatientId::from_uuid(uuid).ok()),
            active: true,
        };
        self.personas().into_iter().enumerate().map(account).collect()
    }
}

/// The fact of a seeded encounter.
pub(super) fn scheduled(encounter: &Encounter, version: u64) -> EncounterScheduled {
    EncounterScheduled {
        encounter_id: encounter.id,
        version,
        patient_id: encounter.patient_id,
        facility_id: encounter.facility_id,
        provider_id: encounter.provider_id,
        kind: encounter.kind,
        scheduled_at: encounter.scheduled_at,
    }
}
