//! What is past its time goes, in steps that may be broken off anywhere, and the trail verifies before, meanwhile and after;
//! whoever tampers with what is left, or puts something in front of it, is found out.

use std::time::Duration;

use pim_core::clock::Clock;
use pim_core::identity::Actor;
use pim_core::rbac::Write;
use pim_data::audit::AuditFindingKind;
use pim_data::backend::{Engine, Statement};
use pim_data::retention::{RetentionError, RetentionPolicy, RetentionReport};
use sha2::{Digest as _, Sha256};

use super::ENGINE;
use super::world::{Account, ShopAction, ShopResource, ShopRole, World, bytes, cx, read, write};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// An account with four records of a hundred days ago and two of today.
async fn world() -> (World, Clock, Account) {
    let (world, clock) = World::with_clock(2).await;
    let account = world.register().await;
    for points in 1..=3 {
        clock.advance(Duration::from_secs(1));
        world.change(account.id, |account| account.points = points).await.expect("commits");
    }
    clock.advance(100 * DAY);
    for points in 4..=5 {
        clock.advance(Duration::from_secs(1));
        world.change(account.id, |account| account.points = points).await.expect("commits");
    }
    (world, clock, account)
}

async fn run(world: &World, policy: &RetentionPolicy) -> Result<RetentionReport, RetentionError> {
    world.cluster.run_retention(&cx(), &write(ShopResource::Account), policy).await
}

async fn purged() -> (World, Clock, Account) {
    let (world, clock, account) = world().await;
    assert_eq!(run(&world, &RetentionPolicy::default()).await.expect("runs").rows(), 4);
    (world, clock, account)
}

/// Whether the trail verifies, and how many records it has.
async fn trail(world: &World) -> (bool, u64) {
    let report = world.cluster.verify_audit().await.expect("reads");
    (report.verified, report.records)
}

/// What verifying finds about the account's lane, and nothing may be found elsewhere.
async fn found(world: &World, account: &Account) -> Vec<(u64, AuditFindingKind)> {
    let mut report = world.cluster.verify_audit().await.expect("reads");
    report.findings.retain(|finding| !finding.kind.is_disagreement());
    let route = world.cluster.router().route(&account.id);
    let place = (Some(route.shard.0), u64::from(route.bucket.lane().get()));
    assert!(report.findings.iter().all(|it| (it.shard, it.lane) == place), "{place:?}: {report:?}");
    report.findings.iter().map(|finding| (finding.seq, finding.kind)).collect()
}

/// Hand-typed SQL by somebody who also switches the guards off.
async fn tamper(world: &World, account: &Account, sql: &str) {
    let guards = match ENGINE {
        Engine::Sqlite => "DROP TRIGGER audit_no_update; DROP TRIGGER audit_no_delete",
        Engine::Postgres => "DROP TRIGGER audit_append_only ON audit",
    };
    world.raw(account.id, &format!("{guards}; {sql};")).await.expect("runs");
}

/// A record of its own making, whose hash is that of its content, at some place of the lane.
async fn forge(world: &World, account: &Account, seq: u64, previous: [u8; 32]) -> String {
    let db = world.all_powerful(account.id).await;
    let body = &db.query(Statement::same("SELECT body FROM audit WHERE seq = 5")).await.expect("reads")[0];
    let forged = body.text(0).expect("text").replace("\"points\":4", "\"points\":8");
    let hash = Sha256::new().chain_update(previous).chain_update(forged.as_bytes()).finalize();
    let text = |hash: &[u8]| bytes(&hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    format!(
        "INSERT INTO audit SELECT lane, {seq}, {}, {}, '{forged}', at, request_id, user_id, home_key, entity, entity_id \
         FROM audit WHERE seq = 5",
        text(&previous),
        text(&hash)
    )
}

#[tokio::test]
async fn a_plan_counts_and_changes_nothing() {
    let (world, _, _) = world().await;
    let short = RetentionPolicy { history: 30 * DAY, ..RetentionPolicy::default() };
    let plan = world.cluster.plan_retention(&short).await.expect("plans");
    let rows: Vec<_> = plan.items.iter().map(|item| (item.table.as_str(), item.rows)).collect();
    assert_eq!(rows, [("audit", 4), ("account_history", 3)], "the fourth period ended today");
    assert!(plan.dry_run && plan.tombstone.is_none());
    let report = world.cluster.verify_audit().await.expect("reads");
    assert_eq!((report.records, report.checkpoints), (6, 0));
    assert_eq!(world.cluster.retained().await.expect("reads"), Default::default());
}

#[tokio::test]
async fn a_run_removes_what_is_old_and_the_next_one_nothing() {
    let (world, _, account) = world().await;
    world.cluster.checkpoint_audit().await.expect("signs");
    let report = run(&world, &RetentionPolicy::default()).await.expect("runs");
    assert_eq!((report.rows(), report.left(), report.tombstone), (4, 0, Some(2)));
    assert_eq!(trail(&world).await, (true, 2));
    let again = run(&world, &RetentionPolicy::default()).await.expect("runs");
    assert_eq!((again.rows(), again.tombstone), (0, None));
    world.change(account.id, |account| account.points = 9).await.expect("commits");
    world.cluster.checkpoint_audit().await.expect("signs");
    assert_eq!(trail(&world).await, (true, 3));
    let retained = world.cluster.retained().await.expect("reads");
    assert_eq!((retained.audit_since, retained.history_since), (Some(report.audit_before), None));
}

#[tokio::test]
async fn a_second_purge_stands_on_the_first() {
    let (world, clock, account) = purged().await;
    clock.advance(100 * DAY);
    world.change(account.id, |account| account.points = 9).await.expect("commits");
    let report = run(&world, &RetentionPolicy::default()).await.expect("runs");
    assert_eq!((report.rows(), report.tombstone), (2, Some(2)));
    assert_eq!(trail(&world).await, (true, 1));
}

/// Guard: the next record is tied to the newest one; without it the chain would begin anew, and its old end could be swapped.
#[tokio::test]
async fn the_newest_record_of_a_chain_stays_however_old() {
    let (world, clock, account) = world().await;
    clock.advance(100 * DAY);
    assert_eq!(run(&world, &RetentionPolicy::default()).await.expect("runs").rows(), 5);
    assert_eq!(trail(&world).await, (true, 1));
    world.change(account.id, |account| account.points = 9).await.expect("commits");
    let db = world.all_powerful(account.id).await;
    let last = db.query(Statement::same("SELECT MAX(seq) FROM audit")).await.expect("reads")[0].count(0);
    assert_eq!(last.expect("a number"), 7);
    assert_eq!(trail(&world).await, (true, 2));
}

/// Guard: a run that was broken off between two batches, or in front of the first, leaves a trail that verifies.
#[tokio::test]
async fn a_run_that_was_broken_off_is_gone_on_with() {
    let (world, _, account) = world().await;
    let some = RetentionPolicy { rows_max: 1, batch_rows: 1, ..RetentionPolicy::default() };
    for gone in 1..=2 {
        let report = run(&world, &some).await.expect("runs");
        assert_eq!((report.rows(), report.left()), (1, 4 - gone));
        assert_eq!(report.tombstone, (gone == 1).then_some(1), "one tombstone for all of it");
        assert_eq!(trail(&world).await, (true, 6 - gone));
    }
    let stop = match ENGINE {
        Engine::Sqlite => "CREATE TRIGGER stop BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'stop'); END",
        Engine::Postgres => {
            "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''stop''; END'; \
             CREATE TRIGGER stop BEFORE DELETE ON audit FOR EACH ROW EXECUTE FUNCTION stop()"
        }
    };
    world.raw(account.id, stop).await.expect("runs");
    let failed = run(&world, &RetentionPolicy::default()).await;
    assert!(matches!(failed, Err(RetentionError::Database { .. })), "{failed:?}");
    assert_eq!(trail(&world).await, (true, 4));
    let go = if ENGINE == Engine::Sqlite { "DROP TRIGGER stop" } else { "DROP TRIGGER stop ON audit" };
    world.raw(account.id, go).await.expect("runs");
    let report = run(&world, &RetentionPolicy::default()).await.expect("runs");
    assert_eq!((report.rows(), report.tombstone), (2, None));
    assert_eq!(trail(&world).await, (true, 2));
}

/// Guard: what was not signed does not go.
#[tokio::test]
async fn nothing_goes_without_a_signed_tombstone() {
    let (world, _, _) = world().await;
    let keys = world.folder.path().join("keys");
    let _none_yet = std::fs::remove_dir_all(&keys);
    std::fs::write(&keys, "no folder").expect("writes");
    let failed = run(&world, &RetentionPolicy::default()).await;
    assert!(matches!(failed, Err(RetentionError::Audit(_))), "{failed:?}");
    assert_eq!(trail(&world).await, (true, 6));
}

/// Guard: a purge would take the traces of tampering away.
#[tokio::test]
async fn a_broken_trail_is_not_purged() {
    let (world, _, account) = world().await;
    tamper(&world, &account, "UPDATE audit SET body = replace(body, '\"points\":2', '\"points\":9') WHERE seq = 3")
        .await;
    match run(&world, &RetentionPolicy::default()).await {
        Err(RetentionError::Broken { finding }) => {
            assert_eq!((finding.seq, finding.kind), (3, AuditFindingKind::Changed));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(found(&world, &account).await, [(3, AuditFindingKind::Changed)]);
    assert_eq!(trail(&world).await.1, 6);
}

#[tokio::test]
async fn the_database_lets_nothing_go_that_is_behind_the_tombstone() {
    let (world, _, account) = purged().await;
    assert!(world.raw(account.id, "DELETE FROM audit WHERE seq = 5").await.is_err());
    assert!(world.raw(account.id, "UPDATE audit_tombstone SET seq = 1").await.is_err(), "it only rises");
    assert_eq!(trail(&world).await, (true, 2));
    #[cfg(feature = "postgres")]
    if ENGINE == Engine::Postgres {
        let shard = world.cluster.router().route(&account.id).shard;
        let application = world.cluster.database(shard).expect("a shard");
        for forbidden in ["DELETE FROM audit", "UPDATE audit_tombstone SET seq = 9", "DELETE FROM account_history"] {
            let statement = pim_data::backend::SqlPair::generated(forbidden.to_owned());
            assert!(application.query(Statement::of(statement)).await.is_err(), "{forbidden}");
        }
    }
}

#[tokio::test]
async fn a_change_behind_the_tombstone_is_found() {
    let (world, _, account) = purged().await;
    tamper(&world, &account, "UPDATE audit SET body = replace(body, '\"points\":4', '\"points\":9') WHERE seq = 5")
        .await;
    assert_eq!(found(&world, &account).await, [(5, AuditFindingKind::Changed)]);
}

#[tokio::test]
async fn a_removal_right_behind_the_tombstone_is_found() {
    let (world, _, account) = purged().await;
    tamper(&world, &account, "DELETE FROM audit WHERE seq = 5").await;
    assert_eq!(found(&world, &account).await, [(6, AuditFindingKind::Gap)]);
}

/// Guard: the first record that is left is tied to the one that the tombstone signed, not to any.
#[tokio::test]
async fn another_record_right_behind_the_tombstone_is_found() {
    let (world, _, account) = purged().await;
    let forged = forge(&world, &account, 99, [7; 32]).await;
    let swap = format!("{forged}; DELETE FROM audit WHERE seq IN (5, 6); UPDATE audit SET seq = 5 WHERE seq = 99");
    tamper(&world, &account, &swap).await;
    let expected = [(5, AuditFindingKind::Broken), (6, AuditFindingKind::Truncated)];
    assert_eq!(found(&world, &account).await, expected);
}

/// Guard: records in front of the tombstone may be leftovers of a broken-off run, and nothing else.
#[tokio::test]
async fn what_is_put_in_front_of_the_tombstone_is_found() {
    let (world, _, account) = purged().await;
    let forged = forge(&world, &account, 2, [7; 32]).await;
    world.raw(account.id, &forged).await.expect("runs");
    assert_eq!(found(&world, &account).await, [(5, AuditFindingKind::Gap)]);

    let (world, _, account) = purged().await;
    let forged = forge(&world, &account, 4, [7; 32]).await;
    world.raw(account.id, &forged).await.expect("runs");
    let expected = [(4, AuditFindingKind::Rewritten), (5, AuditFindingKind::Broken)];
    assert_eq!(found(&world, &account).await, expected);
}

#[tokio::test]
async fn history_goes_when_it_ended_long_ago_and_the_present_stays() {
    let (world, clock, account) = world().await;
    let short = RetentionPolicy { history: 30 * DAY, batch_rows: 2, ..RetentionPolicy::default() };
    let permit = read(ShopResource::Account);
    let report = run(&world, &short).await.expect("runs");
    assert_eq!(report.rows(), 4 + 3);
    let periods = world.history(account.id).await;
    let points: Vec<_> = periods.iter().map(|period| period.row.points).collect();
    assert_eq!(points, [3, 4, 5], "what was so 30 days ago, and since");
    let then = clock.now().minus(29 * DAY);
    let row = world.cluster.as_of::<Account>(&cx(), &permit, account.id, then).await.expect("reads");
    assert_eq!(row.map(|row| row.points), Some(3));
    assert_eq!(world.cluster.retained().await.expect("reads").history_since, Some(report.history_before));
    clock.advance(400 * DAY);
    run(&world, &short).await.expect("runs");
    let periods = world.history(account.id).await;
    assert_eq!(periods.len(), 1, "the present is no history");
}

#[tokio::test]
async fn a_run_is_refused_by_name() {
    let (world, _, account) = world().await;
    let short = RetentionPolicy { audit: 89 * DAY, ..RetentionPolicy::default() };
    assert!(matches!(run(&world, &short).await, Err(RetentionError::TooShort { least_days: 90, .. })));
    let short = RetentionPolicy { history: Duration::ZERO, ..RetentionPolicy::default() };
    assert!(matches!(world.cluster.plan_retention(&short).await, Err(RetentionError::TooShort { least_days: 1, .. })));
    let endless = RetentionPolicy { batch_rows: 0, ..RetentionPolicy::default() };
    assert!(matches!(run(&world, &endless).await, Err(RetentionError::Batch { .. })));

    let own = Actor::new("c-1".parse().expect("a subject"), ShopRole::Customer).with_own_record(account.id.uuid());
    let own = world.policy.authorize::<Write>(&own, ShopAction::Change, ShopResource::Account).expect("its own");
    let refused = world.cluster.run_retention(&cx(), &own, &RetentionPolicy::default()).await;
    assert!(matches!(refused, Err(RetentionError::Scope)), "{refused:?}");

    let place = std::fs::File::create(world.folder.path().join("maps").join("MOVE")).expect("opens");
    place.lock().expect("locks");
    assert!(matches!(run(&world, &RetentionPolicy::default()).await, Err(RetentionError::Busy)));
    place.unlock().expect("unlocks");
    assert_eq!(run(&world, &RetentionPolicy::default()).await.expect("runs").rows(), 4);
}
