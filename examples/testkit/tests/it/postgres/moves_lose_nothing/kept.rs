//! What the databases hold behind moves, by plain SQL: each record that was asked for lives once, each event is there once and in
//! order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pim_core::clock::Clock;
use pim_data::backend::{Db, Row, SqlPair, Statement};
use pim_events::{BusSettings, DOMAIN_TOPIC, EmbeddedBus, Subscriber as _};
use uuid::Uuid;

use crate::postgres::databases::Databases;
use crate::postgres::inspection::{CHAINS, history_of};
use crate::postgres::stock::{Question, Stock};
use crate::workload::Account;

const TABLES: [&str; 3] = ["patient", "encounter", "claim"];
/// Records that are read of the log together.
const PAGE: usize = 500;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) rows: usize,
    pub(super) events: u64,
    pub(super) lost: u64,
    pub(super) twice: u64,
    pub(super) disordered: u64,
}

struct Shard(String, Db);

impl Shard {
    async fn open(databases: &Databases, name: String) -> Self {
        let db = databases.superuser(&name).await;
        Self(name, db)
    }

    async fn rows(&self, text: &str) -> Vec<Row> {
        let asked = self.1.query(Statement::of(SqlPair::generated(text.to_owned()))).await;
        asked.unwrap_or_else(|error| panic!("{}: {error}\n{text}", self.0))
    }

    async fn none(&self, what: &str, text: &str) {
        assert_eq!(self.rows(text).await[0].count(0).expect("a number"), 0, "{}: {what}", self.0);
    }
}

/// The databases of a lab, for somebody whom nothing binds.
pub(super) struct Books {
    shards: Vec<Shard>,
    reads: Shard,
}

impl Books {
    pub(super) async fn open(databases: &Databases, shards: u16) -> Self {
        let mut books = Self { shards: Vec::new(), reads: Shard::open(databases, "read-store".to_owned()).await };
        for name in (0..shards).map(|shard| format!("shard-{shard}")) {
            books.shards.push(Shard::open(databases, name).await);
        }
        books
    }

    /// What the shards hold at present.
    pub(super) async fn stock(&self) -> Stock {
        let mut stock = Stock::default();
        for shard in &self.shards {
            for question in Question::ALL {
                let rows = shard.rows(&question.text()).await;
                let text = |row: &Row, at| row.text(at).expect("text").to_owned();
                stock.add(question, rows.iter().map(|row| (text(row, 0), text(row, 1))));
            }
        }
        stock
    }
}

/// Holds the databases of a lab that has stopped to what they held before and what was acknowledged since.
pub(super) async fn examine(books: &Books, data_dir: &Path, before: &Stock, account: &Account) -> Kept {
    let stock = books.stock().await;
    assert_eq!(stock.findings(before, account), Vec::<String>::new());
    records(&books.shards).await;
    let heads = stock.heads.iter().map(|(key, n)| (key.parse().expect("a key"), *n)).collect();
    let mut kept = Kept { rows: stock.rows.len(), ..Kept::default() };
    outboxes(&books.shards, &heads, &mut kept).await;
    log(data_dir, &heads, &mut kept).await;
    read_models(&books.reads, &heads, &mut kept).await;
    kept
}

/// Rows with history and trail, wherever their trail began.
async fn records(places: &[Shard]) {
    let (mut trail, mut past) = (Vec::new(), Vec::new());
    for place in places {
        place.none("the trail's chains hold", CHAINS).await;
        for table in TABLES {
            place.none("rows and history agree", &history_of(table)).await;
            past.extend(place.rows(&format!("SELECT id, version FROM {table}_history")).await);
        }
        let text = "SELECT entity_id, (body::jsonb->>'version')::bigint FROM audit \
                    WHERE entity IN ('patient', 'encounter', 'claim')";
        trail.extend(place.rows(text).await);
    }
    let versions = |rows: Vec<Row>| {
        let mut all: Vec<_> =
            rows.iter().map(|it| (it.uuid(0).expect("an id"), it.count(1).expect("a number"))).collect();
        all.sort_unstable();
        all
    };
    assert_eq!(versions(trail), versions(past), "one record of the trail for each period, and the other way round");
}

/// Every number of a key has one event in one outbox, and its owner changed only forwards.
async fn outboxes(places: &[Shard], heads: &BTreeMap<Uuid, u64>, kept: &mut Kept) {
    let mut events: BTreeMap<Uuid, Vec<(u64, u64)>> = BTreeMap::new();
    for place in places {
        for row in place.rows("SELECT home_key, n, owner_epoch FROM outbox_event").await {
            let event = (row.count(1).expect("a number"), row.count(2).expect("an epoch"));
            events.entry(row.uuid(0).expect("a key")).or_default().push(event);
        }
    }
    for (key, n) in heads {
        let mut of_key = events.remove(key).unwrap_or_default();
        of_key.sort_unstable();
        let numbers: BTreeSet<u64> = of_key.iter().map(|(n, _)| *n).collect();
        kept.events += n;
        kept.lost += (1..=*n).filter(|n| !numbers.contains(n)).count() as u64;
        kept.twice += (of_key.len() - numbers.len()) as u64;
        kept.disordered += of_key.windows(2).filter(|pair| pair[1].1 < pair[0].1).count() as u64;
    }
    kept.twice += events.values().map(|of_key| of_key.len() as u64).sum::<u64>();
}

/// The log has each key's events in their order.
async fn log(data_dir: &Path, heads: &BTreeMap<Uuid, u64>, kept: &mut Kept) {
    let bus =
        EmbeddedBus::open(&data_dir.join("bus.db"), BusSettings::default(), Clock::system()).await.expect("opens");
    let mut seen: BTreeMap<Uuid, u64> = BTreeMap::new();
    for partition in 0..bus.partitions(DOMAIN_TOPIC).await.expect("answers") {
        let mut offset = 0;
        loop {
            let records = bus.fetch(DOMAIN_TOPIC, partition, offset, PAGE).await.expect("answers");
            let Some(last) = records.last() else { break };
            offset = last.offset + 1;
            for record in records.iter().filter(|record| heads.contains_key(&record.key)) {
                let n: u64 = record.headers.get("pim-n").and_then(|n| n.parse().ok()).expect("a number");
                let before = seen.entry(record.key).or_insert(0);
                // A relay may send again what it has sent; nothing may come before what is in front of it.
                kept.disordered += u64::from(n > *before + 1);
                *before = n.max(*before);
            }
        }
    }
    kept.lost += heads.iter().map(|(key, n)| n.abs_diff(seen.get(key).copied().unwrap_or(0))).sum::<u64>();
}

/// Each event was applied once.
async fn read_models(reads: &Shard, heads: &BTreeMap<Uuid, u64>, kept: &mut Kept) {
    let mut applied = BTreeMap::new();
    for row in reads.rows("SELECT home, count(DISTINCT n) FROM journey_hops GROUP BY home").await {
        applied.insert(row.uuid(0).expect("a key"), row.count(1).expect("a number"));
    }
    kept.lost += heads.iter().map(|(key, n)| n.abs_diff(applied.get(key).copied().unwrap_or(0))).sum::<u64>();
    let counted = reads.rows("SELECT coalesce(sum(events), 0)::bigint FROM shard_distribution").await;
    let counted = counted[0].count(0).expect("a number");
    let control: u64 = applied.iter().filter(|(key, _)| !heads.contains_key(*key)).map(|(_, n)| n).sum();
    kept.twice += counted.saturating_sub(heads.values().sum::<u64>() + control);
    kept.lost += (heads.values().sum::<u64>() + control).saturating_sub(counted);
}
