//! The pathways of the data file: what patients come for, how their visits go, and the life of a claim.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use super::machine::{Act, Machine, MachineError, States, Weights, chosen};
use crate::encounter::VisitKind;

const FILE: &str = include_str!("pathways.yaml");

static PATHWAYS: LazyLock<Pathways> = LazyLock::new(|| {
    #[expect(clippy::expect_used, reason = "a constant file, covered by a test; there is no care without it")]
    Pathways::parse(FILE).expect("the lab's pathways can be walked")
});

/// The lab's pathways.
#[must_use]
pub fn pathways() -> &'static Pathways {
    &PATHWAYS
}

/// Every pathway of a data file.
#[derive(Debug)]
pub struct Pathways {
    shares: Weights,
    visits: BTreeMap<String, Pathway>,
    claim: Machine,
    /// Of the claim, as the cards of the visits: how many in a hundred do what.
    claim_card: Weights,
}

/// A pathway of visits.
#[derive(Debug)]
struct Pathway {
    kind: VisitKind,
    machine: Machine,
    card: Weights,
}

/// A data file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PathwaysError {
    /// It is not of the form.
    #[error("the pathways are not of their form")]
    Form(#[from] serde_norway::Error),
    /// It has a machine that cannot be walked.
    #[error("pathway `{name}` cannot be walked")]
    Machine {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: MachineError,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    visits: BTreeMap<String, Visit>,
    claim: Life,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Visit {
    share: u64,
    kind: VisitKind,
    first: Weights,
    states: States,
    card: Weights,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Life {
    first: Weights,
    states: States,
    card: Weights,
}

impl Pathways {
    /// Reads a data file.
    ///
    /// # Errors
    /// [`PathwaysError`] with the place.
    pub fn parse(text: &str) -> Result<Self, PathwaysError> {
        // By way of a tree: a choice is a mapping here, and a tag in YAML proper.
        let tree: serde_json::Value = serde_norway::from_str(text)?;
        let file: File = serde_json::from_value(tree).map_err(<serde_norway::Error as serde::de::Error>::custom)?;
        let named = |name: &str, built: Result<Machine, MachineError>| {
            built.map_err(|source| PathwaysError::Machine { name: name.to_owned(), source })
        };
        let claim = named("claim", Machine::new(file.claim.first, file.claim.states))?;
        let (mut shares, mut visits) = (Weights::new(), BTreeMap::new());
        for (name, visit) in file.visits {
            let machine = named(&name, Machine::new(visit.first, visit.states))?;
            shares.insert(name.clone(), visit.share);
            visits.insert(name, Pathway { kind: visit.kind, machine, card: visit.card });
        }
        Ok(Self { shares, visits, claim, claim_card: file.claim.card })
    }

    /// A visit from its planning on, without its beginning and end; `bits` answers one number a field.
    pub fn visit(&self, bits: impl Fn(u64) -> u64) -> Vec<Act<'_>> {
        let Some(pathway) = self.visits.get(chosen(&self.shares, bits(0))) else { return Vec::new() };
        let acts = pathway.machine.walk(|field| bits(field + 1));
        [Act::Schedule { kind: pathway.kind }].into_iter().chain(acts).collect()
    }

    /// Every machine by its name, with its card: how many walks in a hundred do what.
    pub fn machines(&self) -> impl Iterator<Item = (&str, &Machine, &BTreeMap<String, u64>)> {
        let visits = self.visits.iter().map(|(name, pathway)| (name.as_str(), &pathway.machine, &pathway.card));
        visits.chain([("claim", &self.claim, &self.claim_card)])
    }

    /// What becomes of a drafted claim.
    pub fn claim(&self, bits: impl Fn(u64) -> u64) -> Vec<Act<'_>> {
        self.claim.walk(bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::persona::{Stream, draw};

    const WALKS: u64 = 20_000;
    /// In a hundred.
    const TOLERANCE: u64 = 2;

    fn name(act: &Act<'_>) -> &'static str {
        match act {
            Act::Schedule { .. } => "schedule",
            Act::Diagnose { .. } => "diagnose",
            Act::Perform { .. } => "perform",
            Act::Order { .. } => "order",
            Act::Measure { .. } => "measure",
            Act::Note { .. } => "note",
            Act::Submit => "submit",
            Act::Adjudicate => "adjudicate",
            Act::Pay { .. } => "pay",
            Act::Close => "close",
        }
    }

    fn check_card(of: &str, machine: &Machine, card: &Weights) {
        let mut walks_with = Weights::new();
        for entity in 0..WALKS {
            let acts = machine.walk(|field| draw(11, Stream::Visit, entity, field));
            let mut done: Vec<_> = acts.iter().map(name).collect();
            done.sort_unstable();
            done.dedup();
            done.into_iter().for_each(|act| *walks_with.entry(act.to_owned()).or_default() += 1);
        }
        assert!(walks_with.keys().all(|act| card.contains_key(act)), "{of}: {walks_with:?} against {card:?}");
        for (act, target) in card {
            let found = walks_with.get(act).unwrap_or(&0) * 100 / WALKS;
            assert!(found.abs_diff(*target) <= TOLERANCE, "{of}: {act} in {found} of a hundred, not {target}");
        }
    }

    #[test]
    fn care_keeps_to_its_card() {
        assert_eq!(pathways().machines().count(), 7);
        for (name, machine, card) in pathways().machines() {
            check_card(name, machine, card);
        }
    }

    #[test]
    fn patients_come_for_what_the_shares_say() {
        let kinds = |kind| {
            let visits = (0..WALKS).map(|entity| pathways().visit(|field| draw(5, Stream::Visit, entity, field)));
            let of_kind = visits.filter(|acts| acts[0] == Act::Schedule { kind }).count();
            of_kind as u64 * 100 / WALKS
        };
        for (kind, share) in [(VisitKind::Wellness, 30), (VisitKind::Emergency, 15), (VisitKind::Telehealth, 10)] {
            assert!(kinds(kind).abs_diff(share) <= TOLERANCE, "{kind:?}: {}", kinds(kind));
        }
    }

    #[test]
    fn what_cannot_be_walked_is_named() {
        let refused = |from: &str, to: &str| {
            assert!(FILE.contains(from), "{from}");
            let error = Pathways::parse(&FILE.replacen(from, to, 1)).unwrap_err();
            format!("{error}: {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default())
        };
        assert!(refused("then: {finding: 1}", "then: {findings: 1}").contains("`findings`, which is no state"));
        assert!(refused("[Z00.00, Z00.01]", "[]").contains("`finding` has nothing to choose from"));
        assert!(refused("then: {finding: 1}", "then: {finding: 0}").contains("come to nothing"));
        assert!(refused("low: 104", "low: 1040").contains("nothing to choose from"));
        assert!(refused("[Z00.00, Z00.01]", "[nonsense]").contains("ICD-10-CM"));
        assert!(refused("share: 30", "shares: 30").contains("`shares`"));
        let circle = FILE
            .replace("then: {note: 80, end: 20}", "then: {finding: 1}")
            .replace("{screening: 40, note: 60}", "{screening: 1}");
        let circling = Pathways::parse(&circle).unwrap();
        let longest = (0..100).map(|entity| circling.visit(|field| draw(1, Stream::Visit, entity, field)).len()).max();
        assert_eq!(longest, Some(super::super::machine::ACTS_MAX + 1), "a circle is left");
    }
}
