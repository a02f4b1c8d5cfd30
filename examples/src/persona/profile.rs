//! The profile of the personas: how their traffic is shaped over time, what they set out to do, how long they think.

use serde::{Deserialize, Serialize};

use super::operation::Script;
use crate::rig::SettingsError;

/// Highest factor of the base rate that a shape may reach.
const FACTOR_MAX: f64 = 100.0;
/// Most milliseconds of thinking.
const THINK_MS_MAX: u64 = 600_000;
/// Most seconds of a period: a week.
const PERIOD_S_MAX: u64 = 7 * 24 * 3600;
/// Highest weight of a script.
const WEIGHT_MAX: u64 = 1_000_000;

/// What decides the traffic, apart from seed and base rate. Read with the lab's settings, below the key `personas`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    /// How the rate goes over time.
    pub shape: Shape,
    /// How often each script is chosen, against the others.
    pub mix: Mix,
    /// Pauses between the steps of a session.
    pub think: Think,
}

/// How the rate of sessions goes over time: factors of the base rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shape {
    /// Which course it takes.
    pub kind: Course,
    /// How long one round of it takes, in seconds.
    pub period_s: u64,
    /// How long the burst at the beginning of each round lasts, in seconds.
    pub burst_s: u64,
    /// The lowest factor.
    pub low: f64,
    /// The highest factor.
    pub peak: f64,
}

/// The course that a rate takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Course {
    /// The base rate, always.
    Constant,
    /// From `low` to `peak` and back in each period, as a day goes.
    Diurnal,
    /// `peak` for `burst_s` at the beginning of each period, `low` otherwise.
    Burst,
    /// From `low` to `peak` within one period, and `peak` from then on.
    Ramp,
}

/// Weights of the scripts; 0 leaves one out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mix {
    /// Patients read their portal.
    pub portal: u64,
    /// Patients book appointments.
    pub booking: u64,
    /// Clinicians look patients up.
    pub look_up: u64,
    /// Clinicians see patients.
    pub visit: u64,
    /// Clinicians register patients.
    pub intake: u64,
    /// Administrators look at claims and revenue.
    pub billing: u64,
    /// Administrators carry the claims of visits on.
    pub settle: u64,
    /// Engineers look at the platform.
    pub watch: u64,
}

/// Thinking between two steps: exponential, and never above a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Think {
    /// Mean, in milliseconds.
    pub ms_mean: u64,
    /// Longest, in milliseconds.
    pub ms_max: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { kind: Course::Constant, period_s: 3600, burst_s: 60, low: 0.2, peak: 2.0 }
    }
}

impl Default for Mix {
    fn default() -> Self {
        Self { portal: 32, booking: 8, look_up: 24, visit: 20, intake: 6, billing: 7, settle: 10, watch: 3 }
    }
}

impl Default for Think {
    fn default() -> Self {
        Self { ms_mean: 300, ms_max: 5_000 }
    }
}

impl Mix {
    /// Role, script and weight, in the order in which they are drawn.
    pub(super) const fn weights(&self) -> [(&'static str, Script, u64); 8] {
        [
            ("patient", Script::Portal, self.portal),
            ("patient", Script::Booking, self.booking),
            ("clinician", Script::LookUp, self.look_up),
            ("clinician", Script::Visit, self.visit),
            ("clinician", Script::Intake, self.intake),
            ("admin", Script::Billing, self.billing),
            ("admin", Script::Settle, self.settle),
            ("sre", Script::Watch, self.watch),
        ]
    }
}

impl Shape {
    /// The factor of the base rate at a time.
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a run are far below 2^52")]
    pub(super) fn factor_at(&self, at_us: f64) -> f64 {
        let period_us = self.period_s as f64 * 1e6;
        let part = (at_us % period_us) / period_us;
        match self.kind {
            Course::Constant => 1.0,
            Course::Diurnal => self.low + (self.peak - self.low) * (1.0 - (part * std::f64::consts::TAU).cos()) / 2.0,
            Course::Burst if at_us % period_us < self.burst_s as f64 * 1e6 => self.peak,
            Course::Burst => self.low,
            Course::Ramp if at_us < period_us => self.low + (self.peak - self.low) * part,
            Course::Ramp => self.peak,
        }
    }

    /// No factor is above this one.
    pub(super) const fn highest(&self) -> f64 {
        match self.kind {
            Course::Constant => 1.0,
            _ => self.peak,
        }
    }
}

impl Profile {
    /// What the types alone cannot say.
    ///
    /// # Errors
    /// [`SettingsError::Value`] with the key below `personas`, and the rule.
    pub fn check(&self) -> Result<(), SettingsError> {
        let (shape, think) = (&self.shape, &self.think);
        let heaviest = self.mix.weights().iter().map(|(.., weight)| *weight).max().unwrap_or(0);
        let rules = [
            ("shape.period_s", (1..=PERIOD_S_MAX).contains(&shape.period_s), "must be from 1 to 604800 seconds"),
            (
                "shape.burst_s",
                (1..=shape.period_s).contains(&shape.burst_s) || shape.kind != Course::Burst,
                "must be at least 1 second, and at most a period",
            ),
            ("shape.peak", shape.peak > 0.0 && shape.peak <= FACTOR_MAX, "must be above 0 and at most 100"),
            ("shape.low", (0.0..=shape.peak).contains(&shape.low), "must be 0 or above, and at most the peak"),
            ("mix", (1..=WEIGHT_MAX).contains(&heaviest), "one weight must be above 0, and none above 1000000"),
            ("think.ms_mean", think.ms_mean <= THINK_MS_MAX, "must be at most 600000 milliseconds"),
            ("think.ms_max", think.ms_max <= THINK_MS_MAX, "must be at most 600000 milliseconds"),
        ];
        match rules.iter().find(|(_, holds, _)| !holds) {
            None => Ok(()),
            Some((key, _, rule)) => Err(SettingsError::Value {
                key: format!("personas.{key}"),
                origin: "the settings".to_owned(),
                rule: (*rule).to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_named() {
        let shape = |change: fn(&mut Shape)| {
            let mut profile = Profile::default();
            change(&mut profile.shape);
            profile.check().map_err(|error| error.to_string())
        };
        assert!(Profile::default().check().is_ok());
        assert!(shape(|it| it.low = 3.0).unwrap_err().contains("`personas.shape.low`"));
        assert!(shape(|it| it.peak = f64::NAN).unwrap_err().contains("`personas.shape.peak`"));
        assert!(shape(|it| it.period_s = 0).unwrap_err().contains("`personas.shape.period_s`"));
        let mix = Mix { portal: 0, booking: 0, look_up: 0, visit: 0, intake: 0, billing: 0, settle: 0, watch: 0 };
        assert!(Profile { mix, ..Profile::default() }.check().unwrap_err().to_string().contains("`personas.mix`"));
    }
}
