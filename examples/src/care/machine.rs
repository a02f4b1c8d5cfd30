//! One machine: states that each do one thing, and the weights by which it goes on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::billing::PaymentMethod;
use crate::encounter::{DiagnosisCode, NoteText, ObservationKind, OrderKind, ProcedureCode, VisitKind};
use crate::persona::below;

/// The name that ends a walk.
const END: &str = "end";
/// Most acts of a walk; a machine that could go in circles ends there.
pub const ACTS_MAX: usize = 16;

/// What is done in a step of a walk, with every particular.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Act<'m> {
    /// The visit is planned.
    Schedule {
        /// As what.
        kind: VisitKind,
    },
    /// Something is found.
    Diagnose {
        /// ICD-10-CM.
        code: &'m DiagnosisCode,
    },
    /// Something is done.
    Perform {
        /// HCPCS level II.
        code: &'m ProcedureCode,
    },
    /// Something is ordered.
    Order {
        /// What kind.
        kind: OrderKind,
        /// HCPCS level II.
        code: &'m ProcedureCode,
    },
    /// Something is measured.
    Measure {
        /// What.
        kind: ObservationKind,
        /// In the unit of its kind.
        value: i64,
    },
    /// Something is written down.
    Note {
        /// The text.
        text: &'m NoteText,
    },
    /// The claim goes to the payer.
    Submit,
    /// The payer decides.
    Adjudicate,
    /// Money comes in.
    Pay {
        /// How.
        method: PaymentMethod,
        /// How much of what is still owed.
        percent: u64,
    },
    /// The claim is put away.
    Close,
}

/// What a state does, before the particulars are drawn.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Doing {
    Diagnose(Vec<DiagnosisCode>),
    Perform(Vec<ProcedureCode>),
    Order { kind: OrderKind, codes: Vec<ProcedureCode> },
    Measure { kind: ObservationKind, low: i64, high: i64 },
    Note(Vec<NoteText>),
    Submit,
    Adjudicate,
    Pay { method: PaymentMethod, low: u64, high: u64 },
    Close,
}

/// A state as the data file writes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    act: Doing,
    then: BTreeMap<String, u64>,
}

/// States and weights, in the order of their names, so that a file may write them in any.
pub(super) type Weights = BTreeMap<String, u64>;
pub(super) type States = BTreeMap<String, State>;

/// A machine.
#[derive(Clone, Debug)]
pub struct Machine {
    first: Weights,
    states: States,
}

/// A machine that cannot be walked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// Weights lead to a state that is not there.
    #[error("state `{from}` goes on to `{to}`, which is no state")]
    Unknown {
        /// From where.
        from: String,
        /// To where.
        to: String,
    },
    /// Weights that say nothing.
    #[error("the weights behind `{from}` come to nothing")]
    Weightless {
        /// Of which state.
        from: String,
    },
    /// A state has nothing to choose from.
    #[error("state `{state}` has nothing to choose from")]
    Empty {
        /// Which state.
        state: String,
    },
}

impl Machine {
    /// A machine of which every walk finds its way.
    pub(super) fn new(first: Weights, states: States) -> Result<Self, MachineError> {
        check_weights("the beginning", &first, &states)?;
        for (name, state) in &states {
            check_weights(name, &state.then, &states)?;
            let is_empty = match &state.act {
                Doing::Diagnose(codes) => codes.is_empty(),
                Doing::Perform(codes) | Doing::Order { codes, .. } => codes.is_empty(),
                Doing::Measure { low, high, .. } => low > high,
                Doing::Note(texts) => texts.is_empty(),
                Doing::Pay { low, high, .. } => low > high || *high > 100,
                Doing::Submit | Doing::Adjudicate | Doing::Close => false,
            };
            if is_empty {
                return Err(MachineError::Empty { state: name.clone() });
            }
        }
        Ok(Self { first, states })
    }

    /// Goes from the beginning to the end; `bits` answers one number a field, whoever asks and however often.
    pub fn walk(&self, bits: impl Fn(u64) -> u64) -> Vec<Act<'_>> {
        let mut acts = Vec::new();
        let mut next = chosen(&self.first, bits(0));
        for field in (1..).step_by(2).take(ACTS_MAX) {
            let Some(state) = self.states.get(next) else { break };
            acts.push(state.act.drawn(bits(field)));
            next = chosen(&state.then, bits(field + 1));
        }
        acts
    }
}

fn check_weights(from: &str, weights: &Weights, states: &States) -> Result<(), MachineError> {
    if let Some(to) = weights.keys().find(|to| *to != END && !states.contains_key(*to)) {
        return Err(MachineError::Unknown { from: from.to_owned(), to: to.clone() });
    }
    let sum = weights.values().try_fold(0_u64, |sum, weight| sum.checked_add(*weight));
    if sum.is_none_or(|sum| sum == 0) { Err(MachineError::Weightless { from: from.to_owned() }) } else { Ok(()) }
}

/// The name that a draw falls on, by weight.
pub(super) fn chosen(weights: &Weights, bits: u64) -> &str {
    let mut left = below(bits, weights.values().sum());
    for (name, weight) in weights {
        if left < *weight {
            return name;
        }
        left -= weight;
    }
    END
}

fn one_of<T>(list: &[T], bits: u64) -> &T {
    &list[usize::try_from(below(bits, list.len() as u64)).unwrap_or(0)]
}

impl Doing {
    fn drawn(&self, bits: u64) -> Act<'_> {
        let between = |low: i64, high: i64| {
            let room = u64::try_from(high - low + 1).unwrap_or(1);
            low + i64::try_from(below(bits, room)).unwrap_or(0)
        };
        match self {
            Self::Diagnose(codes) => Act::Diagnose { code: one_of(codes, bits) },
            Self::Perform(codes) => Act::Perform { code: one_of(codes, bits) },
            Self::Order { kind, codes } => Act::Order { kind: *kind, code: one_of(codes, bits) },
            Self::Measure { kind, low, high } => Act::Measure { kind: *kind, value: between(*low, *high) },
            Self::Note(texts) => Act::Note { text: one_of(texts, bits) },
            Self::Submit => Act::Submit,
            Self::Adjudicate => Act::Adjudicate,
            Self::Pay { method, low, high } => Act::Pay { method: *method, percent: low + below(bits, high - low + 1) },
            Self::Close => Act::Close,
        }
    }
}
