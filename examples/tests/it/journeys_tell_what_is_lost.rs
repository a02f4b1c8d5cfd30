//! What a journey does not find is pending while anything is on its way, and lost when nothing is.

use std::time::Duration;

use pim_data::backend::{Db, DbSettings};
use pim_events::RetentionSettings;
use pim_lab::compose::{Settled, backlog, settle};
use pim_lab::jobs::UpkeepSettings;
use pim_lab::rig::Drain;
use serde_json::Value;
use tokio::time::Instant;

use crate::world::World;

const PATIENCE: Duration = Duration::from_secs(20);

/// The states of a journey's hops, and whether it is complete.
async fn journey(world: &World, request: &str) -> (Vec<String>, bool) {
    let told = world.get(&world.session("sre", &[], None), &format!("/v1/admin/journeys/{request}")).await;
    let hops = told.body["hops"].as_array().unwrap_or_else(|| panic!("{:?}", told.body));
    let states = hops.iter().map(|hop| hop["state"].as_str().unwrap().to_owned()).collect();
    (states, told.body["complete"] == Value::Bool(true))
}

fn has(states: &[String], state: &str) -> bool {
    states.iter().any(|it| it == state)
}

async fn until(world: &World, request: &str, is_told: impl Fn(&[String], bool) -> bool) {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let (states, is_complete) = journey(world, request).await;
        if is_told(&states, is_complete) {
            return;
        }
        assert!(Instant::now() < give_up, "{states:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Consumes until everything is read, chores that are entered meanwhile too, and ends.
async fn consume(world: &World, request: &str) {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let (stores, stop, kept) = (world.stores.clone(), Drain::new(), RetentionSettings::default());
        let upkeep = stores.upkeep(&UpkeepSettings::default()).await.unwrap();
        let consumed = tokio::spawn({
            let stop = stop.clone();
            async move { stores.consume(10, &kept, upkeep, stop).await }
        });
        until(world, request, |_, is_complete| is_complete).await;
        assert_eq!(settle(&world.stores).await, Settled::Yes);
        stop.begin();
        consumed.await.unwrap().unwrap();
        if backlog(&world.stores).await.unwrap() == 0 {
            return;
        }
        assert!(Instant::now() < give_up, "something is entered again and again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_what_is_only_late_is_not() {
    let world = World::new().await;
    let registered = world.registered("a").await;
    let request = registered.headers["x-pim-request-id"].to_str().unwrap();
    let is_pending = async || {
        let (states, _) = journey(&world, request).await;
        has(&states, "pending") && !has(&states, "lost")
    };
    assert!(is_pending().await, "nobody relays yet");

    let relaying = Drain::new();
    let (stores, stop) = (world.stores.clone(), relaying.clone());
    tokio::spawn(async move { stores.relay(10, &RetentionSettings::default(), stop).await });
    consume(&world, request).await;

    let read_store = Db::open(&world.cluster.data_dir().join("read.db"), DbSettings::default()).await.unwrap();
    let lose = "DELETE FROM journey_hops; DELETE FROM inbox_head WHERE consumer = 'patient_search'";
    write(&read_store, lose).await;
    let is_lost = |states: &[String], is_complete: bool| has(states, "lost") && !has(states, "pending") && !is_complete;
    until(&world, request, is_lost).await;

    // What an outbox holds may be sent again.
    let hold = "INSERT INTO outbox_held (seq, home_key, code, at) SELECT seq, home_key, 'test', at FROM outbox_event";
    write_outboxes(&world, hold).await;
    assert!(is_pending().await, "outboxes hold something");
    write_outboxes(&world, "DELETE FROM outbox_held").await;
    until(&world, request, is_lost).await;

    // And a partition that a consumer has not begun to read is before it.
    let unbegun = "DELETE FROM projection_checkpoint WHERE consumer = 'patient_search' AND part = 0";
    write(&read_store, unbegun).await;
    assert!(is_pending().await, "nobody has begun to read a partition");
    relaying.begin();
}

async fn write_outboxes(world: &World, script: &'static str) {
    for source in world.cluster.sources() {
        write(&world.cluster.database(source).unwrap(), script).await;
    }
}

async fn write(db: &Db, script: &'static str) {
    let mut tx = db.begin().await.unwrap();
    tx.script(script).await.unwrap();
    tx.commit().await.unwrap();
}
