//! Whoever holds no single key, as a bulk does, may write to one before a unit that has entered already: that one begins anew.

use pim_core::id::Id;
use pim_data::unit::UnitError;

use super::queueing::{Commit, number, until};
use super::world::{Customer, World, cx, tell, uuid};

/// Writes by hand what a bulk would, while a unit that only tells of something is on its way; how that one ends.
async fn behind(world: &World, key: Id<Customer>, write: &str) -> UnitError {
    const WAITS: &str =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    let onlooker = world.all_powerful(key).await;
    let mut bulk = onlooker.begin().await.expect("begins");
    bulk.script(write).await.expect("writes");
    let mut unit = world.cluster.begin(&cx(), key);
    tell(&mut unit, "told");
    let mut commit: Commit = Box::pin(unit.commit());
    until(&mut commit, async || number(&onlooker, WAITS).await > 0).await;
    bulk.commit().await.expect("commits");
    commit.await.expect_err("was overtaken")
}

/// Guard: of a new key both insert the number.
#[tokio::test]
async fn of_a_new_key_it_is_a_conflict() {
    let world = World::new(1).await;
    let key = Id::random();
    let head = format!("INSERT INTO key_head VALUES ({}, {}, 1)", uuid(key.uuid()), key.bucket().get());
    let refused = behind(&world, key, &head).await;
    assert!(matches!(refused, UnitError::Conflict) && refused.is_retryable(), "{refused:?}");
}

/// Guard: of a known one both raise it to the same.
#[tokio::test]
async fn of_a_known_key_it_is_one_too() {
    let world = World::new(1).await;
    let key = world.register().await.id;
    let refused = behind(&world, key, "UPDATE key_head SET n = n + 1").await;
    assert!(matches!(refused, UnitError::Conflict), "{refused:?}");
}
