//! History and trail of one row, side by side.

use std::collections::{BTreeMap, BTreeSet};

use pim_core::clock::Timestamp;
use pim_data::audit::AuditEntry;
use pim_data::entity::Entity;
use pim_data::repository::Period;
use pim_data::retention::Retained;
use serde_json::{Value, json};

use super::shown;
use crate::operations::Trail;

/// What is known of a row: all of it, or what comes before an instant.
pub(super) struct Sides<E> {
    pub(super) periods: Vec<Period<E>>,
    pub(super) entries: Vec<AuditEntry>,
    /// Before which instant both sides are whole; `None` when they are to their ends.
    pub(super) complete_before: Option<Timestamp>,
}

impl<E: Entity> Sides<E> {
    /// Where one side was not gone through to its end, nothing behind that is shown or compared of either.
    pub(super) fn of((mut periods, is_all): (Vec<Period<E>>, bool), trail: Trail) -> Self {
        let Trail { mut entries, complete } = trail;
        let past_end = periods.last().filter(|_| !is_all).map(|period| period.valid_from);
        let trail_end = entries.last().filter(|_| !complete).map(|entry| entry.at);
        let complete_before = past_end.into_iter().chain(trail_end).min();
        if let Some(end) = complete_before {
            periods.retain(|period| period.valid_from < end);
            entries.retain(|entry| entry.at < end);
        }
        // Of a home key there are also records of events alone.
        entries.retain(|entry| entry.body["entity"] == E::TABLE.name);
        Self { periods, entries, complete_before }
    }

    /// Replays the trail against the history: each version once in both, with the same columns. What is past its time may be
    /// missing from either.
    pub(super) fn deviations(&self, retained: &Retained) -> Vec<Value> {
        let mut recorded: BTreeMap<u64, Vec<&AuditEntry>> = BTreeMap::new();
        for entry in &self.entries {
            recorded.entry(version_of(entry).unwrap_or_default()).or_default().push(entry);
        }
        let unlike = self.periods.iter().filter_map(|period| {
            let version = period.row.version();
            let what = differs(period, recorded.get(&version).map_or(&[], Vec::as_slice), retained)?;
            Some(json!({ "version": version, "what": what }))
        });
        unlike.chain(self.without_period(retained)).collect()
    }

    fn without_period(&self, retained: &Retained) -> impl Iterator<Item = Value> {
        let known: BTreeSet<u64> = self.periods.iter().map(|period| period.row.version()).collect();
        let is_known = move |entry: &AuditEntry| version_of(entry).is_some_and(|version| known.contains(&version));
        let unknown = self.entries.iter().enumerate().filter(move |(_, entry)| !is_known(entry));
        let since = retained.history_since;
        unknown.filter_map(move |(number, entry)| {
            // A period ends when the next change begins one.
            let is_gone = self.entries.get(number + 1).is_some_and(|next| is_past(next.at, since));
            let what = "in the trail but not in the history";
            (!is_gone).then(|| json!({ "version": version_of(entry), "what": what }))
        })
    }
}

/// What is wrong with a period, next to the records of its version.
fn differs<E: Entity>(period: &Period<E>, recorded: &[&AuditEntry], retained: &Retained) -> Option<&'static str> {
    let [entry] = recorded else {
        let is_gone = recorded.is_empty() && is_past(period.valid_from, retained.audit_since);
        let missing = if recorded.is_empty() { "in the history but not in the trail" } else { DIFFER };
        return (!is_gone).then_some(missing);
    };
    let mut row = shown(&period.row);
    if let Some(members) = row.as_object_mut() {
        members.remove("version");
    }
    (row != entry.body["after"] || period.valid_from != entry.at).then_some(DIFFER)
}

const DIFFER: &str = "history and trail differ";

fn is_past(at: Timestamp, since: Option<Timestamp>) -> bool {
    since.is_some_and(|since| at < since)
}

fn version_of(entry: &AuditEntry) -> Option<u64> {
    entry.body["version"].as_u64()
}
