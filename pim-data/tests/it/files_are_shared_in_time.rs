//! A file that another process writes to is waited for, and nothing is committed for a request whose time is over.

use std::time::Duration;

use pim_core::id::Id;
use pim_core::shard::ShardId;
use pim_data::backend::{Db, DbSettings};
use pim_data::unit::UnitError;

use super::world::{Account, ShopResource, World, tell, within, write};

/// Guard: the engine waits for the other writer by itself, and knows of no deadline.
#[tokio::test]
async fn a_unit_that_waits_past_its_deadline_writes_nothing() {
    let world = World::new(1).await;
    let file = world.cluster.database(ShardId(0)).expect("a shard").path().expect("a file").to_owned();
    let elsewhere = Db::open(&file, DbSettings::default()).await.expect("opens");
    let held = elsewhere.begin().await.expect("begins");
    let id = Id::random();
    let mut late = world.cluster.begin(&within(Duration::from_millis(200)), id);
    late.save(&write(ShopResource::Account), &Account::new(id)).expect("saves");
    tell(&mut late, "registered");
    let lets_go = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        held.rollback().await.expect("rolls back");
    };
    let (refused, ()) = tokio::join!(late.commit(), lets_go);
    assert!(matches!(refused, Err(UnitError::Deadline)), "{refused:?}");
    assert_eq!(world.count(id, "SELECT COUNT(*) FROM account_row").await, 0);
    world.register().await;
}
