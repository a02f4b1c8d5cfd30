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

/// A unit that changes what another unit of the same bulk inserts.
fn renamed(first: &Unit, id: Id<Customer>, name: &str) -> Unit {
    let mut unit = first.following().expect("follows");
    let account = Account { version: 1, name: name.to_owned(), state: "seen".to_owned(), ..Account::new(id) };
    assert_eq!(unit.save(&write(ShopResource::Account), &account).expect("saves"), 2);
    tell(&mut unit, "renamed");
    unit
}

#[tokio::test]
async fn a_unit_goes_on_from_what_the_one_before_it_wrote() {
    let world = World::new(1).await;
    let id = Id::<Customer>::random();
    let first = unit(&world, id);
    let second = renamed(&first, id, "Grace Example");
    assert_eq!(world.cluster.commit_bulk(ShardId(0), vec![first, second]).await.expect("commits"), 2);
    for (what, count) in [
        ("SELECT COUNT(*) FROM account_history", 2),
        ("SELECT version FROM account_row", 2),
        ("SELECT n FROM key_head", 2),
        ("SELECT COUNT(*) FROM audit WHERE body LIKE '%\"seen\"%' AND body LIKE '%\"open\"%'", 1),
    ] {
        assert_eq!(world.count(id, what).await, count, "{what}");
    }
    assert!(world.cluster.verify_audit().await.expect("reads").verified);
}

/// Guard: what a unit believes that another has written is compared with what is there.
#[tokio::test]
async fn a_unit_whose_predecessor_was_not_written_is_stale() {
    let world = World::new(1).await;
    let id = Id::<Customer>::random();
    let second = renamed(&unit(&world, id), id, "Grace Example");
    let refused = world.cluster.commit_bulk(ShardId(0), vec![second]).await;
    assert!(matches!(refused, Err(UnitError::Stale { .. })), "{refused:?}");
    assert_eq!(world.count(id, "SELECT COUNT(*) FROM account_row").await, 0);
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
