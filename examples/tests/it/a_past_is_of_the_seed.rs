//! What a new data directory is filled with follows from the seed alone, whatever the number of shards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use pim_core::clock::Clock;
use pim_data::backend::{SqlPair, Statement};
use pim_data::cluster::Access;
use pim_lab::seed::{SeedSettings, seed};
use pim_lab::signals::Hub;
use pim_lab::workers::Stores;
use uuid::Uuid;

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _leftover = std::fs::remove_dir_all(&self.0);
    }
}

/// The rows that matter of every shard, in the order of their ids; without the times at which they were written.
async fn filled(shards: u16, settings: SeedSettings) -> BTreeMap<Uuid, String> {
    let folder = Folder(std::env::temp_dir().join(format!("pim-lab-{}", Uuid::new_v4())));
    let hub = Hub::new(None).unwrap();
    let stores = Stores::open(&folder.0, Some(shards), Access::Shared, Clock::system(), &hub).await.unwrap();
    seed(&stores, &settings, |_| {}).await.unwrap();
    let mut rows = BTreeMap::new();
    for (table, columns) in [
        ("patient", "state"),
        ("appointment", "state || scheduled_at"),
        ("encounter", "state || scheduled_at || completed_at || diagnoses || orders || observations || notes"),
        ("claim", "state || lines || payments || total || paid"),
    ] {
        let select = format!("SELECT id, '{table} ' || version || coalesce({columns}, '') FROM {table}_row");
        for shard in stores.cluster.map().shards() {
            let db = stores.cluster.database(shard.id).unwrap();
            for row in db.query(Statement::of(SqlPair::generated(select.clone()))).await.unwrap() {
                rows.insert(row.uuid(0).unwrap(), row.text(1).unwrap().to_owned());
            }
        }
    }
    assert!(stores.cluster.verify_audit().await.unwrap().verified);
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_shard_and_on_eight() {
    let settings = SeedSettings { patients: 150, seed: 7, history_percent: 30 };
    let one = filled(1, settings).await;
    assert_eq!(one, filled(8, settings).await, "the same seed is the same past");
    assert_ne!(one, filled(1, SeedSettings { seed: 8, ..settings }).await);
    let starting = |what: &str| one.values().filter(|row| row.starts_with(what)).count();
    let pasts = starting("claim ");
    assert!((30..=70).contains(&pasts), "{pasts} of 150");
    assert_eq!(starting("appointment "), pasts);
    let claims = one.values().filter_map(|row| row.strip_prefix("claim "));
    let states: BTreeSet<_> = claims.map(|row| row.chars().skip(1).take(5).collect::<String>()).collect();
    assert_eq!(states.len(), 4, "in every state of their lives: {states:?}");
    let closed: Vec<_> = one.values().filter(|row| row.starts_with("claim ") && row.contains("closed")).collect();
    let is_paid = |row: &str| row.rfind('{').is_some_and(|at| row.ends_with(&row[at..].repeat(2)));
    assert!(closed.iter().all(|row| is_paid(row)), "what is owed is not put away: {closed:?}");
    let none = filled(2, SeedSettings { history_percent: 0, ..settings }).await;
    assert!(!none.values().any(|row| row.starts_with("claim ")), "none when none is asked for");
}
