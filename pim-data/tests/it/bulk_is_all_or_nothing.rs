//! Many new keys in one transaction: everything that a single unit writes, for all of them or for none.

use std::time::Duration;

use pim_core::context::RequestContext;
use pim_core::id::Id;
use pim_core::shard::ShardId;
use pim_data::backend::{Db, DbSettings, Engine, Transaction};
use pim_data::unit::{Unit, UnitError};
use serde_json::json;

use super::ENGINE;
use super::world::{Account, Customer, CustomerNote, ShopResource, World, cx, keyed, tell, within, write};

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

/// A unit of a key with a new note, and so many facts.
fn noted(world: &World, cx: &RequestContext, id: Id<Customer>, facts: usize) -> Unit {
    let mut unit = world.cluster.begin(cx, id);
    let note = CustomerNote {
        id: Id::child_of(id.bucket(), unit.at()),
        version: 0,
        customer: id,
        account: id,
        text: "x".to_owned(),
    };
    unit.save(&write(ShopResource::Note), &note).expect("saves");
    (0..facts).for_each(|_| tell(&mut unit, "noted"));
    unit
}

/// Guard: numbers of a key that consumers have seen are not given again, though nothing of its outbox is left to say so.
#[tokio::test]
async fn a_key_that_was_written_before_is_not_new() {
    let world = World::new(1).await;
    let known = world.register().await;
    world.raw(known.id, "DELETE FROM fact").await.expect("runs");
    let units = vec![unit(&world, Id::random()), noted(&world, &cx(), known.id, 2)];
    let refused = world.cluster.commit_bulk(ShardId(0), units).await;
    assert!(matches!(refused, Err(UnitError::AlreadyExists { entity: "note" })), "{refused:?}");
    assert_eq!(world.count(known.id, "SELECT COUNT(*) FROM account_row").await, 1);
    assert_eq!(world.count(known.id, "SELECT COUNT(*) FROM fact").await, 0);
    assert_eq!(world.count(known.id, "SELECT n FROM key_head").await, 1);
    let mut none = world.cluster.begin(&cx(), known.id);
    tell(&mut none, "told");
    let refused = world.cluster.commit_bulk(ShardId(0), vec![none]).await;
    assert!(matches!(refused, Err(UnitError::Conflict)), "no entity to name: {refused:?}");
}

#[tokio::test]
async fn a_request_that_was_answered_before_is_told_its_answer() {
    let world = World::new(1).await;
    let id = Id::random();
    let first = |body: &str| {
        let mut unit = world.cluster.begin(&keyed("once", body), id);
        unit.save(&write(ShopResource::Account), &Account::new(id)).expect("saves");
        tell(&mut unit, "registered");
        unit.answer(201, &json!({"made": 1}));
        unit
    };
    world.cluster.commit_bulk(ShardId(0), vec![first("{}")]).await.expect("commits");
    let again = world.cluster.commit_bulk(ShardId(0), vec![first("{}")]).await;
    let Err(UnitError::Replay(answer)) = again else { panic!("{again:?}") };
    assert_eq!((answer.status, answer.body), (201, json!({"made": 1})));
    let other = world.cluster.commit_bulk(ShardId(0), vec![first("{\"other\": 1}")]).await;
    assert!(matches!(other, Err(UnitError::IdempotencyMismatch)), "{other:?}");
    assert_eq!(world.count(id, "SELECT COUNT(*) FROM fact").await, 1);
}

#[tokio::test]
async fn a_request_without_time_writes_nothing() {
    let world = World::new(1).await;
    let id = Id::random();
    let late = noted(&world, &within(Duration::ZERO), id, 1);
    let refused = world.cluster.commit_bulk(ShardId(0), vec![unit(&world, id), late]).await;
    assert!(matches!(refused, Err(UnitError::Deadline)), "{refused:?}");
    assert_eq!(world.count(id, "SELECT COUNT(*) FROM account_row").await, 0);
}

/// Somebody else who writes, as in another process.
async fn another_writer(world: &World) -> Transaction {
    let db = match world.cluster.database(ShardId(0)).expect("a shard").path() {
        Some(file) => Db::open(file, DbSettings::default()).await.expect("opens"),
        None => world.powerful(ShardId(0)).await,
    };
    let mut tx = db.begin().await.expect("begins");
    if ENGINE == Engine::Postgres {
        tx.script("LOCK TABLE key_head IN ROW EXCLUSIVE MODE").await.expect("locks");
    }
    tx
}

/// Guard: whoever writes already is waited for as long as there is time, and what is begun behind its end is nothing.
#[tokio::test]
async fn another_writer_is_waited_for_no_longer_than_there_is_time() {
    let world = World::new(1).await;
    let id = Id::random();
    let mut late = world.cluster.begin(&within(Duration::from_millis(300)), id);
    late.save(&write(ShopResource::Account), &Account::new(id)).expect("saves");
    tell(&mut late, "registered");
    let held = another_writer(&world).await;
    let lets_go = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        held.rollback().await.expect("rolls back");
    };
    let (refused, ()) = tokio::join!(world.cluster.commit_bulk(ShardId(0), vec![late]), lets_go);
    assert!(matches!(refused, Err(UnitError::Deadline)), "{refused:?}");
    assert_eq!(world.count(id, "SELECT COUNT(*) FROM account_row").await, 0);
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
