//! What all shards hold together, held to what was acknowledged: nothing that nobody asked for, and nothing twice.

use std::collections::BTreeMap;

use crate::workload::Account;

const TABLES: [&str; 3] = ["patient", "encounter", "claim"];

/// Each is answered by pairs of text.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Question {
    /// Version and state of a row, by its path.
    Rows,
    /// The path of a claim's encounter, by that of the claim.
    Claims,
    /// The number of a home key.
    Heads,
    /// How often a caller's request is among the idempotency records, the records of rows and the events. What an event has
    /// driven is no caller's.
    Effects,
}

impl Question {
    pub(crate) const ALL: [Self; 4] = [Self::Rows, Self::Claims, Self::Heads, Self::Effects];

    pub(crate) fn text(self) -> String {
        match self {
            Self::Rows => {
                let of = |table| format!("SELECT '/v1/{table}s/' || id, version || ' ' || state FROM {table}_row");
                TABLES.map(of).join(" UNION ALL ")
            }
            Self::Claims => "SELECT '/v1/claims/' || id, '/v1/encounters/' || encounter_id FROM claim_row".to_owned(),
            Self::Heads => "SELECT key::text, n::text FROM key_head".to_owned(),
            Self::Effects => "SELECT request::text, sum(i) || ' ' || sum(a) || ' ' || sum(o) FROM (
                  SELECT request_id AS request, 1 AS i, 0 AS a, 0 AS o FROM idempotency
                  UNION ALL SELECT request_id, 0, 1, 0 FROM audit
                    WHERE entity IN ('patient', 'encounter', 'claim') AND body::jsonb->>'cause' IS NULL
                  UNION ALL SELECT correlation, 0, 0, 1 FROM outbox_event WHERE causation IS NULL) e GROUP BY 1"
                .to_owned(),
        }
    }
}

/// The answers of all shards.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stock {
    pub(crate) rows: BTreeMap<String, String>,
    claims: BTreeMap<String, String>,
    pub(crate) heads: BTreeMap<String, u64>,
    effects: BTreeMap<String, [u64; 3]>,
    twice: Vec<String>,
}

impl Stock {
    /// Adds what one shard answers.
    pub(crate) fn add(&mut self, question: Question, answer: impl IntoIterator<Item = (String, String)>) {
        for (key, told) in answer {
            let is_new = match question {
                Question::Rows => self.rows.insert(key.clone(), told).is_none(),
                Question::Claims => self.claims.insert(key.clone(), told).is_none(),
                Question::Heads => self.heads.insert(key.clone(), number(&told)).is_none(),
                Question::Effects => {
                    let sums = self.effects.entry(key.clone()).or_default();
                    sums.iter_mut().zip(told.split(' ')).for_each(|(sum, more)| *sum += number(more));
                    true
                }
            };
            if !is_new {
                self.twice.push(format!("{key} lives on two shards"));
            }
        }
    }

    pub(crate) fn facts(&self) -> u64 {
        self.heads.values().sum()
    }

    /// What is more or less than there was before and was acknowledged since, every write having had an answer.
    pub(crate) fn findings(&self, before: &Self, account: &Account) -> Vec<String> {
        let mut findings = self.twice.clone();
        let (facts, known) = (self.facts(), before.facts() + account.facts);
        if facts != known {
            findings.push(format!("{facts} facts, of which {known} are known"));
        }
        self.compare_rows(before, account, &mut findings);
        self.compare_claims(before, account, &mut findings);
        self.compare_effects(before, account, &mut findings);
        findings
    }

    fn compare_rows(&self, before: &Self, account: &Account, findings: &mut Vec<String>) {
        for (path, (version, state)) in &account.records {
            if self.rows.get(path) != Some(&format!("{version} {state}")) {
                let found = self.rows.get(path);
                findings.push(format!("{path} was acknowledged as {version} {state} and is {found:?}"));
            }
        }
        let new = self.rows.keys().filter(|path| !before.rows.contains_key(*path) && !self.claims.contains_key(*path));
        let unasked = new.filter(|path| !account.records.contains_key(*path));
        findings.extend(unasked.map(|path| format!("{path} was never acknowledged")));
    }

    /// Each encounter that was completed has one claim.
    fn compare_claims(&self, before: &Self, account: &Account, findings: &mut Vec<String>) {
        let mut due: BTreeMap<&str, i64> = BTreeMap::new();
        let completed = account.records.iter().filter(|(_, (_, state))| state == "completed");
        completed.for_each(|(path, _)| *due.entry(path).or_default() += 1);
        let drafted = self.claims.iter().filter(|(claim, _)| !before.claims.contains_key(*claim));
        drafted.for_each(|(_, encounter)| *due.entry(encounter).or_default() -= 1);
        let wrong = due.into_iter().filter(|(_, due)| *due != 0);
        findings.extend(wrong.map(|(encounter, due)| format!("{encounter} has {} claims", 1 - due)));
    }

    /// Each submission has one record of a row and one event, and there are as many as were acknowledged.
    fn compare_effects(&self, before: &Self, account: &Account, findings: &mut Vec<String>) {
        let new = self.effects.iter().filter(|(request, _)| !before.effects.contains_key(*request));
        let mut submissions = 0;
        for (request, found) in new {
            submissions += found[0];
            if *found != [1, 1, 1] {
                let [keys, records, events] = found;
                findings.push(format!("request {request} has {keys} keys, {records} records and {events} events"));
            }
        }
        if submissions != account.writes {
            findings.push(format!("{submissions} submissions, of which {} were acknowledged", account.writes));
        }
    }
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}
