//! Seeding that was interrupted is brought to its end on servers, also with more patients: whoever is there keeps nobody out.

use std::fs;

use pim_core::clock::Clock;
use pim_data::backend::Statement;
use pim_data::cluster::Access;
use pim_lab::seed::{SeedSettings, seed};
use pim_lab::signals::Hub;
use pim_lab::workers::{Place, Stores};
use pim_testkit::folder::Folder;

use super::databases::Databases;

const SHARDS: u16 = 2;

async fn patients(databases: &Databases) -> u64 {
    let mut patients = 0;
    for shard in 0..SHARDS {
        let db = databases.superuser(&format!("shard-{shard}")).await;
        let rows = db.query(Statement::same("SELECT count(*) FROM patient_row")).await.expect("reads");
        patients += rows[0].count(0).expect("a number");
    }
    patients
}

#[tokio::test(flavor = "multi_thread")]
async fn where_it_was_with_more_patients() {
    let folder = Folder::new("seeding").expect("a folder");
    let databases = Databases::new(folder.path(), SHARDS);
    let data_dir = folder.path().join("data");
    let place = Place { data_dir: &data_dir, shards: Some(SHARDS), postgres: &databases.settings };
    let hub = Hub::new(None).expect("a hub");
    let stores = Stores::open_at(place, Access::Shared, Clock::system(), &hub).await.expect("opens");
    let asked = |patients| SeedSettings { patients, seed: 7, history_percent: 10 };
    // Between the patients and the facilities, the last of which says that all is there.
    let personas = data_dir.join("personas.json");
    fs::create_dir_all(personas.join("in-the-way")).expect("a folder");
    let refused = seed(&stores, &asked(150), |_| {}).await.expect_err("personas cannot be written");
    assert!(refused.to_string().contains("personas.json"), "{refused:#}");
    assert_eq!(patients(&databases).await, 150);
    fs::remove_dir_all(&personas).expect("goes");
    assert_eq!(seed(&stores, &asked(330), |_| {}).await.expect("goes on").patients, 330);
    assert_eq!(patients(&databases).await, 330);
    assert_eq!(seed(&stores, &asked(330), |_| {}).await.expect("is done").patients, 0);
    let verified = stores.cluster.verify_audit().await.expect("reads");
    assert!(verified.verified, "{verified:?}");
}
