//! What the databases hold, read by `psql` and judged by plain SQL: nothing of the libraries takes part.

use std::collections::BTreeMap;

use pim_servers::fleet::Fleet;
use pim_servers::local::LocalServer;

/// Each asks for what must not be there.
pub(super) const CHAINS: &str = "SELECT count(*) FROM (
    SELECT seq, previous, hash, body, lag(hash) OVER w AS before, lag(seq) OVER w AS last FROM audit
    WINDOW w AS (PARTITION BY lane ORDER BY seq)) a
  WHERE hash <> sha256(previous || convert_to(body, 'UTF8'))
    OR (before IS NOT NULL AND (previous <> before OR seq <> last + 1))";
const EVENTS: &str = "SELECT count(*) FROM key_head k
  FULL JOIN (SELECT home_key, count(*) AS events, max(n) AS newest FROM outbox_event GROUP BY 1) o ON o.home_key = k.key
  WHERE (o.events = k.n AND o.newest = k.n) IS NOT TRUE";

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

    fn none(&self, what: &str, text: &str) {
        assert_eq!(self.asked(text), "0", "{}: {what}", self.database);
    }

    /// Two columns as a map.
    fn pairs(&self, text: &str) -> BTreeMap<String, String> {
        let rows = self.asked(text);
        let pairs = rows.lines().filter_map(|line| line.split_once('|'));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

/// How much was looked at.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) records: usize,
    pub(crate) events: u64,
}

/// Holds databases that have come to rest to what was acknowledged: version and state of each record, by its path.
pub(crate) fn inspect(fleet: &Fleet, acknowledged: &BTreeMap<String, (u64, String)>) -> Seen {
    let shards = (0..fleet.shards()).map(|shard| {
        let (primary, _) = fleet.servers_of(shard).expect("its servers");
        Place { server: primary, database: format!("shard-{shard}") }
    });
    let shards: Vec<_> = shards.collect();
    let unsharded =
        |database: &str| Place { server: fleet.unsharded_server().expect("a server"), database: database.to_owned() };
    let (control, reads) = (unsharded("control"), unsharded("read-store"));
    let (mut rows, mut heads) = (BTreeMap::new(), control.pairs("SELECT key, n FROM key_head"));
    for shard in &shards {
        for table in ["patient", "encounter", "claim"] {
            shard.none("rows and history agree", &history_of(table));
            shard.none("history and trail agree", &trail_of(table));
            let path = format!("SELECT '/v1/{table}s/' || id, version || ' ' || state FROM {table}_row");
            rows.extend(shard.pairs(&path));
        }
        heads.extend(shard.pairs("SELECT key, n FROM key_head"));
    }
    for place in shards.iter().chain([&control]) {
        place.none("the trail's chains hold", CHAINS);
        place.none("each fact has one event, without a gap", EVENTS);
    }
    for (path, (version, state)) in acknowledged {
        assert_eq!(rows.get(path), Some(&format!("{version} {state}")), "{path} was acknowledged");
    }
    let known = reads.pairs("SELECT home, count(DISTINCT n) FROM journey_hops GROUP BY home");
    assert_eq!(known, heads, "each event is in the read model once");
    let events: u64 = heads.values().map(|n| n.parse::<u64>().expect("a number")).sum();
    let counted = reads.asked("SELECT coalesce(sum(events), 0)::bigint FROM shard_distribution");
    assert_eq!(counted, events.to_string(), "each event was applied once");
    Seen { records: rows.len(), events }
}
