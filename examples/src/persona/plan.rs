//! The traffic plan: who begins a session when, what they set out to do, and how long they think. A pure function of the seed.

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::operation::{Operation, Script};
use super::profile::Profile;
use super::random::{Stream, below, draw, exponential, unit};
use crate::care::{Act, pathways};

/// Sessions that a manifest's digest covers.
const DIGEST_SESSIONS: u64 = 10_000;

/// One step of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedStep {
    /// What.
    pub operation: Operation,
    /// The act of care that is done by it, with its particulars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act: Option<Act<'static>>,
    /// Its intended time after the session's beginning, in microseconds: thinking, and the expected service of the steps before.
    pub at_us: u64,
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedSession {
    /// Its number.
    pub number: u64,
    /// Its intended beginning after the run's, in microseconds.
    pub at_us: u64,
    /// Who acts.
    pub role: &'static str,
    /// Chooses the persona, the patient and everything else that is chosen on the way.
    pub choice: u64,
    /// What they set out to do.
    pub script: Script,
    /// Step by step.
    pub steps: Vec<PlannedStep>,
}

/// A plan: sessions arrive by a Poisson process, open loop, so a slow system does not slow its callers.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    seed: u64,
    rate: f64,
    profile: Profile,
}

impl Plan {
    /// A plan of `rate` sessions a second, shaped and mixed by the default profile.
    #[must_use]
    pub fn new(seed: u64, rate: f64) -> Self {
        Self { seed, rate: rate.max(1e-6), profile: Profile::default() }
    }

    /// The same by another profile.
    #[must_use]
    pub const fn with_profile(self, profile: Profile) -> Self {
        Self { profile, ..self }
    }

    /// Every session, in the order of their beginnings; without end.
    pub fn sessions(&self) -> impl Iterator<Item = PlannedSession> + Send + use<> {
        let plan = *self;
        let shape = plan.profile.shape;
        // Candidates come at the highest rate, and each stays with the chance that the shape leaves it (Lewis and Shedler).
        let gap_us = 1_000_000.0 / (plan.rate * shape.highest());
        let mut at = 0.0_f64;
        (0_u64..).filter_map(move |number| {
            at += exponential(draw(plan.seed, Stream::Arrival, number, 0), gap_us);
            if unit(draw(plan.seed, Stream::Arrival, number, 1)) * shape.highest() > shape.factor_at(at) {
                return None;
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from zero, far below 2^63")]
            let at_us = at as u64;
            Some(plan.session(number, at_us))
        })
    }

    fn session(&self, number: u64, at_us: u64) -> PlannedSession {
        let bits = |field| draw(self.seed, Stream::Session, number, field);
        let (mix, think) = (self.profile.mix.weights(), self.profile.think);
        let total: u64 = mix.iter().map(|(.., weight)| weight).sum();
        let mut left = below(bits(0), total);
        let mut chosen = mix[0];
        for entry in mix {
            if left < entry.2 {
                chosen = entry;
                break;
            }
            left -= entry.2;
        }
        let (role, script, _) = chosen;
        let mut step_at = 0;
        let planned = script.steps(pathways(), |field| draw(self.seed, Stream::Visit, number, field));
        let mut steps = Vec::with_capacity(planned.len());
        for (index, (operation, act)) in (10_u64..).zip(planned) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_precision_loss,
                clippy::cast_sign_loss,
                reason = "milliseconds of thinking"
            )]
            let think_ms = (exponential(bits(index), think.ms_mean as f64) as u64).min(think.ms_max);
            step_at += if index == 10 { 0 } else { think_ms * 1000 };
            steps.push(PlannedStep { operation, act, at_us: step_at });
            step_at += operation.expected_service_us();
        }
        PlannedSession { number, at_us, role, choice: bits(1), script, steps }
    }

    /// What the plan comes to.
    #[must_use]
    pub fn manifest(&self) -> Manifest {
        let mut digest = Sha256::new();
        let mut steps = 0;
        let mut last_at_us = 0;
        for session in self.sessions().take(usize::try_from(DIGEST_SESSIONS).unwrap_or(usize::MAX)) {
            steps += session.steps.len();
            last_at_us = session.at_us;
            digest.update(serde_json::to_vec(&session).unwrap_or_default());
        }
        let digest = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Manifest { schema: "pim.lab.plan/v1", seed: self.seed, sessions: DIGEST_SESSIONS, steps, last_at_us, digest }
    }
}

/// What a plan comes to, with a digest that tells two plans apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// Which form this is.
    pub schema: &'static str,
    /// Of which seed.
    pub seed: u64,
    /// Sessions that the digest covers.
    pub sessions: u64,
    /// Steps in them.
    pub steps: usize,
    /// Beginning of the last of them, in microseconds.
    pub last_at_us: u64,
    /// SHA-256 over them.
    pub digest: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::persona::{Course, Shape};

    fn shaped(kind: Course) -> Plan {
        let shape = Shape { kind, period_s: 100, burst_s: 10, low: 0.5, peak: 3.0 };
        Plan::new(7, 20.0).with_profile(Profile { shape, ..Profile::default() })
    }

    #[test]
    fn the_same_seed_is_the_same_plan_in_any_thread() {
        let mut digests = std::collections::BTreeSet::new();
        for kind in [Course::Constant, Course::Diurnal, Course::Burst, Course::Ramp] {
            let here = shaped(kind).manifest();
            for threads in [1, 2, 8] {
                let others: Vec<_> =
                    (0..threads).map(|_| std::thread::spawn(move || shaped(kind).manifest())).collect();
                assert!(others.into_iter().all(|other| other.join().unwrap() == here), "{kind:?} {threads} threads");
            }
            digests.insert(here.digest);
        }
        digests.insert(Plan::new(8, 20.0).manifest().digest);
        assert_eq!(digests.len(), 5, "another shape or seed is another plan");
    }

    #[test]
    fn a_visit_carries_one_encounter_from_its_planning_to_its_end() {
        let visits = Plan::new(2, 10.0).sessions().take(2_000).filter(|session| session.script == Script::Visit);
        let mut courses = std::collections::BTreeSet::new();
        for visit in visits {
            let course: Vec<_> = visit.steps.iter().map(|step| step.operation).collect();
            let at = |wanted| course.iter().position(|operation| *operation == wanted).unwrap();
            assert!(at(Operation::EncounterSchedule) < at(Operation::EncounterStart), "{course:?}");
            assert!(at(Operation::EncounterStart) < at(Operation::DiagnosisAdd), "{course:?}");
            assert!(at(Operation::DiagnosisAdd) < at(Operation::EncounterComplete), "{course:?}");
            courses.insert(course);
        }
        assert!(courses.len() > 10, "{} courses", courses.len());
    }

    #[test]
    fn sessions_follow_the_shape() {
        let count = |kind, from_s: u64, to_s: u64| {
            let sessions = shaped(kind).sessions().map(|session| session.at_us / 1_000_000);
            sessions.take_while(|at| *at < to_s).filter(|at| *at >= from_s).count()
        };
        // Ten seconds at 20 a second times the factor that the shape has in them.
        for (kind, from_s, expected) in [
            (Course::Constant, 50, 200),
            (Course::Diurnal, 0, 108),
            (Course::Diurnal, 45, 600),
            (Course::Burst, 100, 600),
            (Course::Burst, 150, 100),
            (Course::Ramp, 0, 125),
            (Course::Ramp, 300, 600),
        ] {
            let found = count(kind, from_s, from_s + 10);
            let (low, high) = (expected * 3 / 4, expected * 5 / 4);
            assert!((low..=high).contains(&found), "{kind:?} from {from_s} s: {found}, not about {expected}");
        }
    }

    #[test]
    fn the_rate_is_kept_in_the_mean() {
        let last = Plan::new(1, 50.0).sessions().nth(9_999).unwrap();
        let seconds = last.at_us / 1_000_000;
        assert!((190..210).contains(&seconds), "{seconds}");
    }

    #[test]
    fn steps_do_not_go_back_in_time() {
        for session in Plan::new(3, 10.0).sessions().take(200) {
            assert!(session.steps.is_sorted_by_key(|step| step.at_us), "{session:?}");
        }
    }
}
