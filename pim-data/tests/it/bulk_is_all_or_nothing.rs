//! Many new keys in one transaction: everything that a single unit writes, for all of them or for none.

use pim_core::id::Id;
use pim_core::shard::ShardId;
use pim_data::unit::{Unit, UnitError};

use super::world::{Account, Customer, ShopResource, World, cx, tell, write};

fn unit(world: &World, id: Id<Customer>) -> Unit {
    let mut unit = world.cluster.begin(&cx(), id);
    unit.save(&write(ShopResource::Account), &Account::new(id)).expect("saves");
    tell(&mut unit, "registered");
    unit
}

#[tokio::test]
async fn all_rows_come_with_history_audit_and_facts() {
    let world = World::new(1).await;
    let ids: Vec<_> = (0..200).map(|_| Id::<Customer>::random()).collect();
    let units = ids.iter().map(|id| unit(&world, *id)).collect();
    assert_eq!(world.cluster.commit_bulk(ShardId(0), units).await.expect("commits"), 200);
    for table in ["account_row", "account_history", "audit", "fact", "key_head"] {
        let count = match table {
            "account_row" => "SELECT COUNT(*) FROM account_row",
            "account_history" => "SELECT COUNT(*) FROM account_history",
            "audit" => "SELECT COUNT(*) FROM audit",
            "fact" => "SELECT COUNT(*) FROM fact",
            _ => "SELECT COUNT(*) FROM key_head",
        };
        assert_eq!(world.count(ids[0], count).await, 200, "{table}");
    }
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
    world.change(ids[7], |account| account.points = 1).await.expect("goes on from there");
}

#[tokio::test]
async fn one_key_that_is_there_already_undoes_all() {
    let world = World::new(1).await;
    let known = world.register().await;
    let units = vec![unit(&world, Id::random()), unit(&world, known.id)];
    let refused = world.cluster.commit_bulk(ShardId(0), units).await;
    assert!(matches!(refused, Err(UnitError::AlreadyExists { entity: "account" })), "{refused:?}");
    assert_eq!(world.count(known.id, "SELECT COUNT(*) FROM account_row").await, 1);
}

#[tokio::test]
async fn a_stale_map_is_refused() {
    let world = World::new(1).await;
    let id = Id::random();
    let stale = unit(&world, id);
    world.cluster.publish_map(&world.cluster.map().fenced().expect("a successor")).await.expect("publishes");
    let refused = world.cluster.commit_bulk(ShardId(0), vec![stale]).await;
    assert!(matches!(refused, Err(UnitError::Fence { .. })), "{refused:?}");
    assert_eq!(world.count(id, "SELECT COUNT(*) FROM account_row").await, 0);
}

#[tokio::test]
async fn a_key_head_never_falls() {
    let world = World::new(1).await;
    let account = world.register().await;
    world.change(account.id, |account| account.points = 1).await.expect("commits");
    assert!(world.raw(account.id, "UPDATE key_head SET n = 1").await.is_err());
    assert!(world.raw(account.id, "UPDATE key_head SET n = 2").await.is_err(), "nor stands still");
}
