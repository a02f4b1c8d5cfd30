//! The same submission twice has one effect and one answer; another body under the same key is refused.

use std::sync::Arc;

use pim_core::context::{IdempotencyScope, RequestContext};
use pim_core::id::Id;
use pim_core::shard::ShardId;
use pim_data::backend::{Engine, Statement};
use pim_data::idempotency::StoredAnswer;
use pim_data::unit::{Committed, UnitError};
use serde_json::json;

use super::ENGINE;
use super::world::{Account, Customer, ShopResource, World, keyed, schema, settings, tell, write};

/// Registers under a key: the id is derived from it, as for a patient.
async fn register(world: &World, cx: &RequestContext) -> Result<Committed, UnitError> {
    let scope = cx.idempotency().expect("a key");
    let account = Account::new(Id::<Customer>::derive(scope.scope(), 0));
    let mut unit = world.cluster.begin(cx, account.id);
    unit.save(&write(ShopResource::Account), &account)?;
    tell(&mut unit, "registered");
    unit.answer(201, &json!({"id": account.id}));
    unit.commit().await
}

fn replayed(outcome: Result<Committed, UnitError>) -> StoredAnswer {
    match outcome {
        Err(UnitError::Replay(answer)) => answer,
        other => panic!("no replay but {other:?}"),
    }
}

#[tokio::test]
async fn a_second_submission_gets_the_stored_answer() {
    let world = World::new(3).await;
    let cx = keyed("k-1", "{}");
    register(&world, &cx).await.expect("commits");
    let id = Id::<Customer>::derive(cx.idempotency().expect("a key").scope(), 0);
    let answer = replayed(register(&world, &keyed("k-1", "{}")).await);
    assert_eq!((answer.status, answer.body), (201, json!({"id": id})));
    assert_eq!(world.count(id, "SELECT COUNT(*) FROM account_row").await, 1);
    assert_eq!(world.count(id, "SELECT COUNT(*) FROM fact").await, 1);
}

/// Guard: who repeats a submission, for its answer was lost, reads their write like anybody who got it.
#[tokio::test]
async fn a_stored_answer_lets_see_what_the_first_one_let_see() {
    let world = World::new(1).await;
    let cx = keyed("k-1", "{}");
    let first = register(&world, &cx).await.expect("commits");
    let id = Id::<Customer>::derive(cx.idempotency().expect("a key").scope(), 0);
    let mut unit = world.cluster.begin(&super::world::cx(), id);
    let permit = write(ShopResource::Account);
    let account = unit.load::<Account>(&permit, id).await.expect("loads").expect("is there");
    unit.save(&permit, &account).expect("saves");
    tell(&mut unit, "seen");
    assert_eq!(unit.commit().await.expect("commits").n, 2);
    let again = replayed(register(&world, &cx).await);
    assert_eq!((again.token.n_of(id.uuid()), &again.token), (Some(1), &first.token));
}

#[tokio::test]
async fn another_body_under_the_same_key_is_refused() {
    let world = World::new(1).await;
    register(&world, &keyed("k-1", "{}")).await.expect("commits");
    let other = register(&world, &keyed("k-1", "{\"name\":\"other\"}")).await;
    assert!(matches!(other, Err(UnitError::IdempotencyMismatch)), "{other:?}");
}

#[tokio::test]
async fn many_equal_submissions_at_once_have_one_effect() {
    let world = Arc::new(World::new(2).await);
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let world = Arc::clone(&world);
        all.spawn(async move { register(&world, &keyed("k-1", "{}")).await });
    }
    let (mut committed, mut answers) = (0, Vec::new());
    while let Some(outcome) = all.join_next().await {
        match outcome.expect("runs") {
            Ok(_) => committed += 1,
            replay => answers.push(replayed(replay)),
        }
    }
    assert_eq!((committed, answers.len()), (1, 15));
    assert!(answers.windows(2).all(|two| two[0] == two[1]));
}

#[tokio::test]
async fn a_retried_transition_is_answered_before_its_rules_are_asked() {
    let world = World::new(1).await;
    let account = world.register().await;
    let close = || async {
        let cx = keyed("k-close", "{}");
        let mut unit = world.cluster.begin(&cx, account.id);
        let permit = write(ShopResource::Account);
        let mut account = unit.load::<Account>(&permit, account.id).await?.expect("is there");
        assert_eq!(account.state, "open", "the rule would refuse the retry");
        account.state = "closed".to_owned();
        unit.save(&permit, &account)?;
        tell(&mut unit, "closed");
        unit.answer(200, &json!({"state": "closed"}));
        unit.commit().await
    };
    let first = close().await.expect("commits");
    let again = replayed(close().await);
    assert_eq!((again.body, again.token), (json!({"state": "closed"}), first.token));
    assert_eq!(world.count(account.id, "SELECT n FROM key_head").await, 2);
}

/// Both have read, neither had an answer then.
#[tokio::test]
async fn whoever_read_before_the_answer_was_there_gets_it() {
    let world = World::new(1).await;
    let account = world.register().await;
    let permit = write(ShopResource::Account);
    let read = async |body: &str| {
        let mut unit = world.cluster.begin(&keyed("k-2", body), account.id);
        let mut seen = unit.load::<Account>(&permit, account.id).await.expect("loads").expect("is there");
        seen.points += 1;
        unit.save(&permit, &seen).expect("saves");
        tell(&mut unit, "changed");
        unit.answer(200, &json!({"points": seen.points}));
        unit
    };
    let (first, second, other) = (read("{}").await, read("{}").await, read("{\"more\":1}").await);
    first.commit().await.expect("commits");
    assert_eq!(replayed(second.commit().await).body, json!({"points": 1}));
    let other = other.commit().await;
    assert!(matches!(other, Err(UnitError::IdempotencyMismatch)), "{other:?}");
    assert_eq!(world.count(account.id, "SELECT points FROM account_row").await, 1);
}

#[tokio::test]
async fn the_answer_outlives_a_restart() {
    let World { cluster, policy, folder } = World::new(2).await;
    let world = World { cluster, policy, folder };
    register(&world, &keyed("k-1", "{}")).await.expect("commits");
    let World { cluster, policy, folder } = world;
    drop(cluster);
    let cluster = pim_data::cluster::Cluster::open(settings(&folder, 2), schema()).await.expect("opens again");
    let world = World { cluster, policy, folder };
    assert_eq!(replayed(register(&world, &keyed("k-1", "{}")).await).status, 201);
}

#[tokio::test]
async fn answers_are_forgotten_after_a_day_and_not_before() {
    let (world, clock) = World::with_clock(1).await;
    register(&world, &keyed("k-1", "{}")).await.expect("commits");
    clock.advance(pim_data::idempotency::KEPT_FOR);
    assert_eq!(world.cluster.sweep_idempotency().await.expect("sweeps"), 0);
    clock.advance(std::time::Duration::from_secs(1));
    assert_eq!(world.cluster.sweep_idempotency().await.expect("sweeps"), 1);
    // The derived id still stands for the registration.
    let again = register(&world, &keyed("k-1", "{}")).await;
    assert!(matches!(again, Err(UnitError::AlreadyExists { entity: "account" })), "{again:?}");
}

/// Guard: a shard that does not answer, as the first one here, keeps nothing old on those behind it.
#[tokio::test]
async fn answers_are_forgotten_beside_a_shard_that_does_not_answer() {
    let (world, clock) = World::with_clock(2).await;
    for number in 0..16 {
        register(&world, &keyed(&format!("k-{number}"), "{}")).await.expect("commits");
    }
    let count = async |shard| {
        let asked = Statement::same("SELECT COUNT(*) FROM idempotency");
        world.powerful(ShardId(shard)).await.query(asked).await.expect("runs")[0].count(0).expect("a number")
    };
    let before = (count(0).await, count(1).await);
    assert!(before.0 > 0 && before.1 > 0, "{before:?}");
    clock.advance(pim_data::idempotency::KEPT_FOR + std::time::Duration::from_secs(1));
    // There somebody who writes goes first.
    let mut held = world.powerful(ShardId(0)).await.begin().await.expect("begins");
    if ENGINE == Engine::Postgres {
        held.script("LOCK TABLE idempotency IN SHARE MODE").await.expect("locks");
    }
    let told = world.cluster.sweep_idempotency().await.expect_err("a shard does not answer");
    let failed: Vec<_> = told.failed.iter().map(|(shard, _)| *shard).collect();
    assert_eq!((told.swept, failed), (before.1, vec![ShardId(0)]), "whoever sweeps knows whether there may be more");
    assert_eq!((count(0).await, count(1).await), (before.0, 0));
    drop(held);
}

#[tokio::test]
async fn a_failed_unit_stores_no_answer() {
    let world = World::new(1).await;
    let cx = keyed("k-1", "{}");
    let account = Account::new(Id::<Customer>::derive(cx.idempotency().expect("a key").scope(), 0));
    let mut unit = world.cluster.begin(&cx, account.id);
    unit.save(&write(ShopResource::Account), &account).expect("saves");
    unit.answer(201, &json!({}));
    assert!(matches!(unit.commit().await, Err(UnitError::NoEvent)));
    register(&world, &cx).await.expect("the retry is the first success");
}

#[tokio::test]
async fn the_same_key_of_another_principal_method_or_route_is_another_submission() {
    let world = World::new(1).await;
    register(&world, &keyed("k-1", "{}")).await.expect("commits");
    for (principal, method, route) in
        [("u-2", "POST", "/accounts"), ("u-1", "PUT", "/accounts"), ("u-1", "POST", "/accounts/other")]
    {
        let scope = IdempotencyScope::new(principal, method, route, "k-1", b"{}");
        register(&world, &super::world::cx().with_idempotency(scope)).await.expect("an effect of its own");
    }
    let id = Id::<Customer>::derive(keyed("k-1", "{}").idempotency().expect("a key").scope(), 0);
    assert_eq!(world.count(id, "SELECT COUNT(*) FROM account_row").await, 4);
}
