//! A unit quotes the term of the primary that it means, and the database itself refuses one of a later term.

use std::time::Duration;

use pim_core::id::Id;
use pim_core::shard::ShardId;
use pim_data::backend::{DbError, SqlPair, Statement};
use pim_data::unit::UnitError;

use super::ensemble::request;
use super::world::{Account, Customer, ShopResource, World, cx, tell, write};

async fn world() -> World {
    World::with(1, |mut settings| {
        // What a probe would find out is found out by the unit here.
        settings.servers.as_mut().expect("servers").settings.probe_every = Duration::from_secs(3_600);
        settings
    })
    .await
}

/// Behind a proxy that keeps its clients, the server may be another one from call to call.
const FORMER: &str = "CREATE OR REPLACE FUNCTION pim_timeline() RETURNS bigint LANGUAGE sql VOLATILE RETURN 0::bigint";

#[tokio::test]
async fn by_the_call_that_enters() {
    let world = world().await;
    let account = world.register().await;
    let enter = "SELECT n, replay FROM pim_enter(jsonb_populate_record(NULL::pim_context, ?))";
    let enter =
        Statement::of(SqlPair::postgres(enter)).bind(pim_data::backend::Value::Json("{\"term\": 99}".to_owned()));
    let refused = world.all_powerful(account.id).await.query(enter).await;
    assert!(matches!(refused, Err(DbError::FormerPrimary { term: 1, .. })), "{refused:?}");
}

#[tokio::test]
async fn so_a_connection_that_leads_to_a_former_primary_by_now_writes_nothing() {
    let world = world().await;
    let account = world.register().await;
    world.raw(account.id, FORMER).await.expect("runs");
    let mut unit = world.cluster.begin(&request(Duration::from_secs(3)), account.id);
    let mut changed = account.clone();
    changed.points = 9;
    let loaded = unit.load::<Account>(&write(ShopResource::Account), account.id).await.expect("loads");
    assert!(loaded.is_some());
    unit.save(&write(ShopResource::Account), &changed).expect("saves");
    tell(&mut unit, "changed");
    let refused = unit.commit().await;
    let Err(UnitError::Database(DbError::NoPrimary { .. })) = refused else { panic!("{refused:?}") };
    assert_eq!(world.count(account.id, "SELECT points FROM account_row").await, 0);
}

#[tokio::test]
async fn nor_do_many_units_at_once() {
    let world = world().await;
    let account = world.register().await;
    world.raw(account.id, FORMER).await.expect("runs");
    let new = Id::<Customer>::random();
    let mut unit = world.cluster.begin(&cx(), new);
    unit.save(&write(ShopResource::Account), &Account::new(new)).expect("saves");
    tell(&mut unit, "registered");
    let refused = world.cluster.commit_bulk(ShardId(0), vec![unit]).await;
    assert!(matches!(refused, Err(UnitError::Database(DbError::FormerPrimary { term: 0, .. }))), "{refused:?}");
    assert_eq!(world.count(account.id, "SELECT COUNT(*) FROM account_row").await, 1);
}
