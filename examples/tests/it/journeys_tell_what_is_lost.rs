//! What a journey does not find is pending while anything is on its way, and lost when nothing is.

use std::time::Duration;

use pim_data::backend::{Db, DbSettings};
use pim_events::RetentionSettings;
use pim_lab::jobs::UpkeepSettings;
use pim_lab::rig::Drain;
use serde_json::Value;

use crate::world::World;

/// The states of a journey's hops, and whether it is complete.
async fn journey(world: &World, request: &str) -> (Vec<String>, bool) {
    let told = world.get(&world.session("sre", &[], None), &format!("/v1/admin/journeys/{request}")).await;
    let hops = told.body["hops"].as_array().unwrap_or_else(|| panic!("{:?}", told.body));
    let states = hops.iter().map(|hop| hop["state"].as_str().unwrap().to_owned()).collect();
    (states, told.body["complete"] == Value::Bool(true))
}

async fn until_complete(world: &World, request: &str) {
    let give_up = tokio::time::Instant::now() + Duration::from_secs(20);
    while !journey(world, request).await.1 {
        assert!(tokio::time::Instant::now() < give_up, "{:?}", journey(world, request).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_what_is_only_late_is_not() {
    let world = World::new().await;
    let registered = world.registered("a").await;
    let request = registered.headers["x-pim-request-id"].to_str().unwrap();
    let has = |states: &[String], state: &str| states.iter().any(|it| it == state);
    let (states, _) = journey(&world, request).await;
    assert!(has(&states, "pending") && !has(&states, "lost"), "nobody relays yet: {states:?}");

    let (relaying, consuming, kept) = (Drain::new(), Drain::new(), RetentionSettings::default());
    let (stores, stop) = (world.stores.clone(), relaying.clone());
    tokio::spawn(async move { stores.relay(10, &RetentionSettings::default(), stop).await });
    let upkeep = world.stores.upkeep(&UpkeepSettings::default()).await.unwrap();
    let (stores, stop) = (world.stores.clone(), consuming.clone());
    let consumed = tokio::spawn(async move { stores.consume(10, &kept, upkeep, stop).await });
    until_complete(&world, request).await;
    // The chores that were entered are read too before the consumers end.
    tokio::time::sleep(Duration::from_millis(500)).await;
    consuming.begin();
    consumed.await.unwrap().unwrap();

    let read_store = Db::open(&world.cluster.data_dir().join("read.db"), DbSettings::default()).await.unwrap();
    let mut tx = read_store.begin().await.unwrap();
    tx.script("DELETE FROM journey_hops; DELETE FROM inbox_head WHERE consumer = 'patient_search'").await.unwrap();
    tx.commit().await.unwrap();
    let (states, is_complete) = journey(&world, request).await;
    assert!(has(&states, "lost") && !has(&states, "pending") && !is_complete, "{states:?}");
    relaying.begin();
}
