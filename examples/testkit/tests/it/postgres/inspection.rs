//! What the databases hold, read by `psql` and judged by plain SQL: nothing of the libraries takes part.

mod planted;

use std::collections::{BTreeMap, BTreeSet};

use pim_servers::fleet::Fleet;
use pim_servers::local::LocalServer;

use super::stock::{Question, Stock};
use crate::workload::Account;

/// Each asks for what must not be there.
pub(super) const CHAINS: &str = "SELECT count(*) FROM (
    SELECT seq, previous, hash, body, lag(hash) OVER w AS before, lag(seq) OVER w AS last FROM audit
    WINDOW w AS (PARTITION BY lane ORDER BY seq)) a
  WHERE hash <> sha256(previous || convert_to(body, 'UTF8'))
    OR (before IS NOT NULL AND (previous <> before OR seq <> last + 1))";
const EVENTS: &str = "SELECT count(*) FROM key_head k
  FULL JOIN (SELECT home_key, count(*) AS events, max(n) AS newest FROM outbox_event GROUP BY 1) o ON o.home_key = k.key
  WHERE (o.events = k.n AND o.newest = k.n) IS NOT TRUE";

/// Which event has which number of a key: where it was written, and where it was applied.
const WRITTEN: &str = "SELECT home_key || ' ' || n, event_id FROM outbox_event";
const APPLIED: &str = "SELECT home || ' ' || n, string_agg(event_id::text, ' ') FROM journey_hops GROUP BY home, n";

/// Numbers alone agree where one event was lost with its primary and its successor gave the number to another.
fn unlike(written: &BTreeMap<String, String>, applied: &BTreeMap<String, String>) -> Vec<String> {
    let keys: BTreeSet<&String> = written.keys().chain(applied.keys()).collect();
    let unlike = keys.into_iter().filter(|key| written.get(*key) != applied.get(*key));
    unlike.map(|key| format!("the event {key} is not the one of the read model")).collect()
}

pub(super) fn history_of(table: &str) -> String {
    format!(
        "SELECT count(*) FROM (
           SELECT id, count(*) AS periods, count(DISTINCT version) AS versions, max(version) AS newest,
             count(*) FILTER (WHERE valid_to IS NULL) AS open FROM {table}_history GROUP BY id) h
         FULL JOIN {table}_row r USING (id)
         WHERE (h.periods = r.version AND h.versions = r.version AND h.newest = r.version AND h.open = 1) IS NOT TRUE"
    )
}

fn trail_of(table: &str) -> String {
    format!(
        "SELECT count(*) FROM (
           SELECT entity_id, (body::jsonb->>'version')::bigint AS version, count(*) AS records FROM audit
           WHERE entity = '{table}' GROUP BY 1, 2) a
         FULL JOIN {table}_history h ON h.id = a.entity_id AND h.version = a.version
         WHERE (h.id IS NOT NULL AND a.records = 1) IS NOT TRUE"
    )
}

struct Place {
    server: LocalServer,
    database: String,
}

impl Place {
    fn asked(&self, text: &str) -> String {
        self.server.sql(&self.database, text).unwrap_or_else(|error| panic!("{}: {error}\n{text}", self.database))
    }

    /// A finding when there is something.
    fn none(&self, what: &str, text: &str) -> Option<String> {
        let found = self.asked(text);
        (found != "0").then(|| format!("{}: {what}: {found} do not", self.database))
    }

    /// Two columns as a map.
    fn pairs(&self, text: &str) -> BTreeMap<String, String> {
        let rows = self.asked(text);
        let pairs = rows.lines().filter_map(|line| line.split_once('|'));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

/// How much was looked at, and what is not as it should be.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) records: usize,
    pub(crate) events: u64,
    pub(crate) findings: Vec<String>,
}

fn shards(fleet: &Fleet) -> Vec<Place> {
    let place = |shard| {
        let (primary, _) = fleet.servers_of(shard).expect("its servers");
        Place { server: primary, database: format!("shard-{shard}") }
    };
    (0..fleet.shards()).map(place).collect()
}

/// What the shards hold at present.
pub(crate) fn stock(fleet: &Fleet) -> Stock {
    let mut stock = Stock::default();
    for shard in shards(fleet) {
        for question in Question::ALL {
            stock.add(question, shard.pairs(&question.text()));
        }
    }
    stock
}

/// Holds databases that have come to rest to what they held before and what was acknowledged since: all of it, and no more.
pub(crate) fn inspect(fleet: &Fleet, before: &Stock, account: &Account) -> Seen {
    let shards = shards(fleet);
    let unsharded =
        |database: &str| Place { server: fleet.unsharded_server().expect("a server"), database: database.to_owned() };
    let (control, reads) = (unsharded("control"), unsharded("read-store"));
    let now = stock(fleet);
    let mut findings = now.findings(before, account);
    for shard in &shards {
        for table in ["patient", "encounter", "claim"] {
            findings.extend(shard.none(&format!("rows and history of {table} agree"), &history_of(table)));
            findings.extend(shard.none(&format!("history and trail of {table} agree"), &trail_of(table)));
        }
    }
    for place in shards.iter().chain([&control]) {
        findings.extend(place.none("the trail's chains hold", CHAINS));
        findings.extend(place.none("each fact has one event, without a gap", EVENTS));
    }
    let written: BTreeMap<String, String> =
        shards.iter().chain([&control]).flat_map(|place| place.pairs(WRITTEN)).collect();
    findings.extend(unlike(&written, &reads.pairs(APPLIED)));
    let events = written.len() as u64;
    let counted = reads.asked("SELECT coalesce(sum(events), 0)::bigint FROM shard_distribution");
    if counted != events.to_string() {
        findings.push(format!("{counted} events were applied of {events}"));
    }
    Seen { records: now.rows.len(), events, findings }
}
