//! History and trail tell of the same changes: what is cut off, taken out or typed in by hand on one side is found by the other,
//! also behind the last checkpoint.

use std::sync::atomic::{AtomicBool, Ordering};

use pim_core::id::Id;
use pim_data::audit::{AuditFilter, AuditFindingKind, VerifyReport};
use pim_data::backend::Engine;
use pim_data::retention::RetentionPolicy;

use super::ENGINE;
use super::world::{Account, CustomerNote, Depot, DepotRow, ShopResource, World, cx, tell, trail_of, write};

/// Hand-typed SQL by somebody who also switches every guard off.
async fn tamper(world: &World, account: &Account, sql: &str) {
    let guards = match ENGINE {
        Engine::Sqlite => {
            "DROP TRIGGER audit_no_update; DROP TRIGGER audit_no_delete; DROP TRIGGER key_head_rises; \
             DROP TRIGGER account_history_update"
        }
        Engine::Postgres => {
            "ALTER TABLE audit DISABLE TRIGGER USER; ALTER TABLE key_head DISABLE TRIGGER USER; \
             ALTER TABLE account_row DISABLE TRIGGER USER"
        }
    };
    world.raw(account.id, &format!("{guards}; {sql};")).await.expect("runs");
}

async fn verified(world: &World) -> VerifyReport {
    let report = world.cluster.verify_audit().await.expect("reads");
    let disagrees = report.findings.iter().any(|finding| finding.kind.is_disagreement());
    assert_eq!((report.verified, report.agrees), (report.findings.is_empty(), !disagrees), "{report:?}");
    report
}

/// What verifying finds: kind, entity and version. Everything is found in the account's lane.
async fn found(world: &World, account: &Account) -> Vec<(AuditFindingKind, String, u64)> {
    let report = verified(world).await;
    let route = world.cluster.router().route(&account.id);
    let place = (Some(route.shard.0), u64::from(route.bucket.lane().get()));
    assert!(report.findings.iter().all(|it| (it.shard, it.lane) == place), "{place:?}: {report:?}");
    let told = report.findings.into_iter().map(|finding| {
        let row = finding.row.expect("a disagreement tells which row");
        assert_eq!(row.id, account.id.uuid());
        (finding.kind, row.entity, row.version)
    });
    told.collect()
}

fn of_account(kind: AuditFindingKind, version: u64) -> (AuditFindingKind, String, u64) {
    (kind, "account".to_owned(), version)
}

/// What takes the newest change back in the rows, as if it had never been made.
const UNDO: &str = "UPDATE account_row SET version = 3, points = 2, updated_at = \
    (SELECT h.updated_at FROM account_history h WHERE h.version = 3); \
    DELETE FROM account_history WHERE version = 4; UPDATE account_history SET valid_to = NULL WHERE version = 3";

#[tokio::test]
async fn what_nobody_touched_agrees() {
    let (world, account) = World::with_changes().await;
    let mut unit = world.cluster.begin(&cx(), account.id);
    let note = CustomerNote {
        id: Id::child_of(account.id.bucket(), unit.at()),
        version: 0,
        customer: account.id,
        account: account.id,
        text: "a note".to_owned(),
    };
    unit.save(&write(ShopResource::Note), &note).expect("saves");
    tell(&mut unit, "noted");
    unit.commit().await.expect("commits");
    let depot = DepotRow { id: Id::<Depot>::random(), version: 0, code: "north".to_owned() };
    let mut unit = world.cluster.begin_control(&cx(), depot.id);
    unit.save(&write(ShopResource::Depot), &depot).expect("saves");
    tell(&mut unit, "opened");
    unit.commit().await.expect("commits");
    let report = verified(&world).await;
    assert_eq!((report.verified, report.changes, report.keys), (true, 6, 2), "{report:?}");
}

/// Guard: `Sums::agree` compares trail with history. Nobody else knows of records behind the last checkpoint.
#[tokio::test]
async fn a_tail_cut_behind_the_last_checkpoint_is_found_by_the_history() {
    let (world, account) = World::with_changes().await;
    world.cluster.checkpoint_audit().await.expect("signs");
    world.change(account.id, |account| account.points = 9).await.expect("commits");
    tamper(&world, &account, "DELETE FROM audit WHERE seq = 5").await;
    let number = (AuditFindingKind::Number, "key".to_owned(), 5);
    let expected = [of_account(AuditFindingKind::Unrecorded, 5), number];
    assert_eq!(found(&world, &account).await, expected);
}

/// Guard: `Ledger::number` compares a key's number with its newest record.
#[tokio::test]
async fn a_tail_cut_together_with_its_history_is_found_by_the_number_of_the_key() {
    let (world, account) = World::with_changes().await;
    tamper(&world, &account, &format!("{UNDO}; DELETE FROM audit WHERE seq = 4")).await;
    assert_eq!(found(&world, &account).await, [(AuditFindingKind::Number, "key".to_owned(), 4)]);
}

#[tokio::test]
async fn a_number_that_was_taken_back_or_away_is_found_by_the_trail() {
    let (world, account) = World::with_changes().await;
    tamper(&world, &account, "UPDATE key_head SET n = 3").await;
    assert_eq!(found(&world, &account).await, [(AuditFindingKind::Number, "key".to_owned(), 3)]);
    let (world, account) = World::with_changes().await;
    tamper(&world, &account, "DELETE FROM key_head").await;
    assert_eq!(found(&world, &account).await, [(AuditFindingKind::Number, "key".to_owned(), 0)]);
}

/// Where the limit is: who takes everything back that one database has of a change leaves no witness in it. A checkpoint of
/// before tells it; without one only whoever has read its events does.
#[tokio::test]
async fn whoever_takes_every_witness_of_a_database_away_is_found_by_a_checkpoint_alone() {
    let everything = format!("{UNDO}; DELETE FROM audit WHERE seq = 4; UPDATE key_head SET n = 3");
    let (world, account) = World::with_changes().await;
    tamper(&world, &account, &everything).await;
    assert!(verified(&world).await.verified);
    let (world, account) = World::with_changes().await;
    world.cluster.checkpoint_audit().await.expect("signs");
    tamper(&world, &account, &everything).await;
    let report = verified(&world).await;
    let kinds: Vec<_> = report.findings.iter().map(|finding| (finding.seq, finding.kind)).collect();
    assert_eq!((kinds, report.agrees), (vec![(4, AuditFindingKind::Truncated)], true));
}

#[tokio::test]
async fn history_that_was_taken_out_or_changed_is_found_by_the_trail() {
    let (world, account) = World::with_changes().await;
    tamper(&world, &account, "DELETE FROM account_history WHERE version = 2").await;
    assert_eq!(found(&world, &account).await, [of_account(AuditFindingKind::NotInHistory, 2)]);
    let (world, account) = World::with_changes().await;
    // A column that no record shows.
    tamper(&world, &account, "UPDATE account_history SET name = 'Eve Example' WHERE version = 2").await;
    assert_eq!(found(&world, &account).await, [of_account(AuditFindingKind::Differs, 2)]);
}

/// Guard: the database writes history by itself, so a hand-typed change stands there and nowhere else.
#[tokio::test]
async fn a_hand_typed_change_has_no_record() {
    let (world, account) = World::with_changes().await;
    world.raw(account.id, "UPDATE account_row SET points = 99").await.expect("runs");
    assert_eq!(found(&world, &account).await, [of_account(AuditFindingKind::Differs, 4)]);
    let (world, account) = World::with_changes().await;
    world.raw(account.id, "UPDATE account_row SET points = 99, version = 5").await.expect("runs");
    assert_eq!(found(&world, &account).await, [of_account(AuditFindingKind::Unrecorded, 5)]);
}

/// Guard: `Sums::agree` compares rows with the periods that have not ended.
#[tokio::test]
async fn a_row_that_was_changed_behind_the_back_of_its_history_is_found() {
    let (world, account) = World::with_changes().await;
    tamper(&world, &account, "UPDATE account_row SET points = 99").await;
    assert_eq!(found(&world, &account).await, [of_account(AuditFindingKind::Present, 4)]);
}

/// Guard: a unit that writes no row leaves a record too, or the key's number would be ahead of the trail.
#[tokio::test]
async fn events_without_a_row_leave_a_record() {
    let (world, account) = World::with_changes().await;
    let mut unit = world.cluster.begin(&cx(), account.id);
    tell(&mut unit, "looked at");
    assert_eq!(unit.commit().await.expect("commits").n, 5);
    let report = verified(&world).await;
    assert_eq!((report.verified, report.records, report.changes), (true, 5, 4), "{report:?}");
    let trail = trail_of(&world.cluster, AuditFilter::Entity(account.id.uuid())).await;
    assert_eq!((&trail[4].body["entity"], &trail[4].body["n"]), (&"key".into(), &5.into()));
    tamper(&world, &account, "DELETE FROM audit WHERE seq = 5").await;
    assert_eq!(found(&world, &account).await, [(AuditFindingKind::Number, "key".to_owned(), 5)]);
}

#[tokio::test]
async fn what_retention_has_removed_is_not_missed() {
    use std::time::Duration;
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    for history in [30 * DAY, 365 * DAY] {
        let (world, clock) = World::with_clock(2).await;
        let (account, old) = (world.register().await, world.register().await);
        clock.advance(DAY);
        world.change(account.id, |account| account.points = 1).await.expect("commits");
        clock.advance(100 * DAY);
        world.change(account.id, |account| account.points = 2).await.expect("commits");
        let policy = RetentionPolicy { history, ..RetentionPolicy::default() };
        let run = world.cluster.run_retention(&cx(), &write(ShopResource::Account), &policy).await.expect("runs");
        assert!(run.rows() > 0);
        assert!(verified(&world).await.verified, "{old:?}");
        world.raw(account.id, "UPDATE account_row SET points = 99, version = 4 WHERE version = 3").await.expect("runs");
        assert_eq!(found(&world, &account).await, [of_account(AuditFindingKind::Unrecorded, 4)]);
    }
}

/// Guard: each database is read in one snapshot. Whatever is written meanwhile is on both sides or on none.
#[tokio::test(flavor = "multi_thread")]
async fn writers_are_not_taken_for_tampering() {
    let world = World::new(2).await;
    let accounts: Vec<Account> = futures_util::future::join_all((0..8).map(|_| world.register())).await;
    let is_over = AtomicBool::new(false);
    let write = async |id| {
        let mut written = 0_u64;
        while !is_over.load(Ordering::Relaxed) {
            world.change(id, |account| account.points += 1).await.expect("commits");
            written += 1;
        }
        written
    };
    let check = async {
        for _ in 0..5 {
            let report = verified(&world).await;
            assert!(report.verified, "{report:?}");
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let writers = futures_util::future::join_all(accounts.iter().map(|account| write(account.id)));
    let ((), written) = futures_util::future::join(check, writers).await;
    assert!(written.iter().sum::<u64>() > 0);
}
