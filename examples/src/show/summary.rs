//! The summary: what a run came to, for programs and for people.

use std::fmt::Write as _;

use pim_core::clock::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::page::resident_mib;
use crate::compose::Settled;
use crate::persona::DriveReport;
use crate::runs::RunSummary;

/// What a run is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// Every invariant held, and the traffic kept its times.
    Ok,
    /// The traffic run says nothing.
    Invalid,
    /// An invariant did not hold.
    Broken,
}

impl Verdict {
    /// An invariant that is broken says more than a run that was late.
    fn of(stores: &RunSummary, settled: Settled, traffic: &DriveReport) -> Self {
        match (stores.holds() && settled == Settled::Yes, traffic.valid) {
            (false, _) => Self::Broken,
            (true, false) => Self::Invalid,
            (true, true) => Self::Ok,
        }
    }

    /// The exit code that tells it.
    pub(super) const fn exit_code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Broken => 4,
            Self::Invalid => 6,
        }
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    /// What it is worth.
    pub(super) verdict: Verdict,
    stores: RunSummary,
    traffic: DriveReport,
    settled: Settled,
    since: Timestamp,
}

impl Summary {
    /// From what the stores say after the drain and what the personas measured; the latter is empty without traffic.
    pub(super) fn of(stores: RunSummary, traffic: DriveReport, settled: Settled, since: Timestamp) -> Self {
        Self { verdict: Verdict::of(&stores, settled, &traffic), stores, traffic, settled, since }
    }

    /// As one JSON object. Every member is there in every run.
    pub(super) fn as_json(&self) -> Value {
        let mut document = serde_json::to_value(&self.stores).unwrap_or_default();
        let mut traffic = serde_json::to_value(&self.traffic).unwrap_or_default();
        document["latency"] = traffic["operations"].take();
        for member in ["requests", "errors"] {
            document[member] = traffic[member].clone();
        }
        if let Value::Object(members) = &mut traffic {
            members.remove("operations");
        }
        document["traffic"] = traffic;
        document["event"] = json!("summary");
        document["backlog"] = json!(self.stores.outbox_backlog + self.stores.consumer_lag);
        document["since"] = json!(self.since);
        document["settled"] = json!(self.settled == Settled::Yes);
        document["rss_mib"] = json!(resident_mib());
        document["verdict"] = json!(self.verdict);
        document
    }

    /// As a page for people.
    pub(super) fn as_text(&self) -> String {
        let (stores, traffic) = (&self.stores, &self.traffic);
        let ms = |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |value| format!("{value:.1} ms"));
        let mut text = String::from("\n");
        if !traffic.operations.is_empty() {
            text.push_str("operation              requests   errors   p50 ms   p99 ms   max ms\n");
        }
        for (name, told) in &traffic.operations {
            let (p50, p99, max) = (told.response_p50_ms, told.response_p99_ms, told.response_max_ms);
            let (requests, errors) = (told.requests, told.errors);
            // Writing to a text cannot fail.
            let _ok = writeln!(text, "{name:<20} {requests:>10} {errors:>8} {p50:>8.1} {p99:>8.1} {max:>8.1}");
        }
        let verified = if stores.audit_verified { "verified" } else { "DOES NOT VERIFY" };
        let backlog = stores.outbox_backlog + stores.consumer_lag;
        let (fresh, late) = (ms(stores.freshness_p50_ms), ms(stores.freshness_p99_ms));
        let unanswered =
            [(traffic.not_sent, "not sent"), (traffic.broken, "broken off"), (traffic.timed_out, "timed out")];
        let unanswered = unanswered.into_iter().filter(|(count, _)| *count > 0);
        let unanswered: String = unanswered.map(|(count, what)| format!(", {what} {count}")).collect();
        let requests = format!("{}, errors {}{unanswered}", traffic.requests, traffic.errors);
        let lines = [
            ("requests", requests),
            ("events", format!("{}, lost {}, duplicated {}", stores.facts, stores.lost, stores.duplicated)),
            ("backlog", format!("{backlog}, not applied yet {}, parked keys {}", stores.pending, stores.parked_keys)),
            ("freshness", format!("p50 {fresh}, p99 {late}")),
            ("audit", format!("{verified}, {} records", stores.audit_records)),
            ("verdict", format!("{:?}", self.verdict).to_lowercase()),
        ];
        for (name, told) in lines {
            let _ok = writeln!(text, "{name:<10} {told}");
        }
        for reason in &traffic.reasons {
            let _ok = writeln!(text, "           {reason}");
        }
        if self.settled == Settled::No {
            text.push_str("           something was still on its way when patience ended\n");
        }
        text
    }
}
