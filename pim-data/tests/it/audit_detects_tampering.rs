//! Whoever changes, removes, reorders, appends, cuts or rewrites audit records by hand is found out.

use std::path::PathBuf;

use pim_core::shard::Lane;
use pim_data::audit::{AuditFilter, AuditFinding, AuditFindingKind, VerifyReport};
use pim_data::backend::{Engine, Statement};

use super::ENGINE;
use super::world::{Account, World, bytes, trail_of};

/// Hand-typed SQL by somebody who also switches the guards off.
async fn tamper(world: &World, account: &Account, sql: &str) {
    let guards = match ENGINE {
        Engine::Sqlite => "DROP TRIGGER audit_no_update; DROP TRIGGER audit_no_delete",
        Engine::Postgres => "DROP TRIGGER audit_append_only ON audit",
    };
    let sql = format!("{guards}; {sql};");
    world.raw(account.id, &sql).await.expect("runs");
}

/// What verifying finds about the chain of the account's lane: number and kind. Nothing may be found anywhere else.
async fn found(world: &World, account: &Account) -> Vec<(u64, AuditFindingKind)> {
    let mut report: VerifyReport = world.cluster.verify_audit().await.expect("reads");
    assert_eq!(report.verified, report.findings.is_empty());
    report.findings.retain(|finding| !finding.kind.is_disagreement());
    let route = world.cluster.router().route(&account.id);
    let place = (Some(route.shard.0), u64::from(route.bucket.lane().get()));
    assert!(report.findings.iter().all(|it| (it.shard, it.lane) == place), "{place:?}: {report:?}");
    let of_lane = world.cluster.verify_audit_lane(route.bucket.lane()).await.expect("reads");
    assert_eq!((of_lane.findings, of_lane.verified), (report.findings.clone(), report.findings.is_empty()));
    let other = Lane::all().find(|lane| *lane != route.bucket.lane()).expect("there are many");
    assert!(world.cluster.verify_audit_lane(other).await.expect("reads").verified, "{other:?} is as it was");
    report.findings.iter().map(|finding| (finding.seq, finding.kind)).collect()
}

/// What verifying finds about the file of checkpoints: line and kind.
async fn found_in_file(world: &World) -> Vec<(u64, AuditFindingKind)> {
    let report = world.cluster.verify_audit().await.expect("reads");
    assert!(report.findings.iter().all(|it| (it.shard, it.lane) == (None, 0)), "{report:?}");
    report.findings.iter().map(|finding| (finding.seq, finding.kind)).collect()
}

#[tokio::test]
async fn an_untouched_trail_verifies() {
    let (world, _) = World::with_changes().await;
    world.cluster.checkpoint_audit().await.expect("signs");
    let report = world.cluster.verify_audit().await.expect("reads");
    assert!(report.verified, "{report:?}");
    assert_eq!((report.lanes, report.records, report.checkpoints), (1, 4, 1));
}

#[tokio::test]
async fn the_database_refuses_changes_and_removals() {
    let (world, account) = World::with_changes().await;
    assert!(world.raw(account.id, "UPDATE audit SET body = '{}' WHERE seq = 2").await.is_err());
    assert!(world.raw(account.id, "DELETE FROM audit WHERE seq = 2").await.is_err());
}

#[tokio::test]
async fn a_changed_record_is_found() {
    let (world, account) = World::with_changes().await;
    tamper(&world, &account, "UPDATE audit SET body = replace(body, '\"points\":2', '\"points\":9') WHERE seq = 3")
        .await;
    assert_eq!(found(&world, &account).await, [(3, AuditFindingKind::Changed)]);
}

#[tokio::test]
async fn a_changed_label_is_found() {
    let (world, account) = World::with_changes().await;
    tamper(&world, &account, "UPDATE audit SET user_id = 'somebody-else' WHERE seq = 2").await;
    assert_eq!(found(&world, &account).await, [(2, AuditFindingKind::Index)]);
}

#[tokio::test]
async fn a_removed_record_is_found() {
    let (world, account) = World::with_changes().await;
    tamper(&world, &account, "DELETE FROM audit WHERE seq = 2").await;
    assert_eq!(found(&world, &account).await, [(3, AuditFindingKind::Gap)], "the one before it is missing");
}

#[tokio::test]
async fn reordered_records_are_found() {
    let (world, account) = World::with_changes().await;
    let swap = "UPDATE audit SET seq = 99 WHERE seq = 2; UPDATE audit SET seq = 2 WHERE seq = 3; \
                UPDATE audit SET seq = 3 WHERE seq = 99";
    tamper(&world, &account, swap).await;
    let broken = [2, 3, 4].map(|seq| (seq, AuditFindingKind::Broken));
    assert_eq!(found(&world, &account).await, broken, "both, and the one behind them");
}

#[tokio::test]
async fn an_appended_record_is_found() {
    let (world, account) = World::with_changes().await;
    let other = bytes(&"ab".repeat(32));
    let append = format!(
        "INSERT INTO audit SELECT lane, 5, {other}, hash, body, at, request_id, user_id, home_key, entity, entity_id \
         FROM audit WHERE seq = 4"
    );
    tamper(&world, &account, &append).await;
    assert_eq!(found(&world, &account).await, [(5, AuditFindingKind::Broken)]);
}

#[tokio::test]
async fn a_cut_tail_is_found_by_the_checkpoint_alone() {
    let (world, account) = World::with_changes().await;
    world.cluster.checkpoint_audit().await.expect("signs");
    tamper(&world, &account, "DELETE FROM audit WHERE seq = 4").await;
    assert_eq!(found(&world, &account).await, [(4, AuditFindingKind::Truncated)]);
}

/// The hash of a record with this body behind one of this hash, as whoever knows the rules makes it.
fn continued(previous: [u8; 32], body: &str) -> String {
    use sha2::{Digest as _, Sha256};
    let hash = Sha256::new().chain_update(previous).chain_update(body.as_bytes()).finalize();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The chain goes on with it as it should, and no checkpoint has seen the end before it: history tells of no such change.
#[tokio::test]
async fn a_record_that_is_appended_by_the_rules_is_found_by_history_alone() {
    let (world, account) = World::with_changes().await;
    world.cluster.checkpoint_audit().await.expect("signs");
    let shard = world.cluster.router().route(&account.id).shard;
    let db = world.cluster.database(shard).expect("a shard");
    let last = &db.query(Statement::same("SELECT hash, body FROM audit WHERE seq = 4")).await.expect("runs")[0];
    let hash = continued(last.digest(0).expect("a hash"), last.text(1).expect("text"));
    let append = format!(
        "INSERT INTO audit SELECT lane, 5, hash, {}, body, at, request_id, user_id, home_key, entity, entity_id \
         FROM audit WHERE seq = 4",
        bytes(&hash)
    );
    tamper(&world, &account, &append).await;
    assert_eq!(found(&world, &account).await, [], "the chain itself is whole");
    let report = world.cluster.verify_audit().await.expect("reads");
    let route = world.cluster.router().route(&account.id);
    let told = |it: &AuditFinding| (it.shard, it.lane) == (Some(shard.0), u64::from(route.bucket.lane().get()));
    assert!(!report.verified && report.findings.iter().any(told), "{report:?}");
}

/// Rewrites the newest record by the rules of the chain.
async fn rewrite_the_end(world: &World, account: &Account) {
    let shard = world.cluster.router().route(&account.id).shard;
    let db = world.cluster.database(shard).expect("a shard");
    let last = &db.query(Statement::same("SELECT previous, body FROM audit WHERE seq = 4")).await.expect("runs")[0];
    let forged = last.text(1).expect("text").replace("\"points\":3", "\"points\":8");
    let hash = continued(last.digest(0).expect("a hash"), &forged);
    tamper(world, account, &format!("UPDATE audit SET body = '{forged}', hash = {} WHERE seq = 4", bytes(&hash))).await;
}

#[tokio::test]
async fn a_consistently_rewritten_record_is_found_by_the_checkpoint_alone() {
    let (world, account) = World::with_changes().await;
    world.cluster.checkpoint_audit().await.expect("signs");
    rewrite_the_end(&world, &account).await;
    assert_eq!(found(&world, &account).await, [(4, AuditFindingKind::Rewritten)]);
}

/// Guard: `Signed` compares what every line signed. The program that was deceived goes on from the forged record, and the newest
/// checkpoint vouches for what it finds.
#[tokio::test]
async fn what_was_rewritten_before_the_next_checkpoint_is_found_for_ever() {
    let (world, account) = World::with_changes().await;
    world.cluster.checkpoint_audit().await.expect("signs");
    rewrite_the_end(&world, &account).await;
    for points in 10..12 {
        world.change(account.id, |account| account.points = points).await.expect("commits");
        world.cluster.checkpoint_audit().await.expect("signs");
        assert_eq!(found(&world, &account).await, [(4, AuditFindingKind::Rewritten)]);
    }
}

/// Their file, and what it says.
async fn three_checkpoints(world: &World, account: &Account) -> (PathBuf, String) {
    let file = world.folder.path().join("audit-checkpoints.jsonl");
    for points in 10..13 {
        world.change(account.id, |account| account.points = points).await.expect("commits");
        world.cluster.checkpoint_audit().await.expect("signs");
    }
    let whole = std::fs::read_to_string(&file).expect("is there");
    (file, whole)
}

#[tokio::test]
async fn a_forged_or_removed_checkpoint_is_found() {
    let (world, account) = World::with_changes().await;
    let (file, whole) = three_checkpoints(&world, &account).await;
    let lines: Vec<_> = whole.lines().collect();
    std::fs::write(&file, [lines[0], lines[2], ""].join("\n")).expect("writes");
    assert_eq!(found_in_file(&world).await, [(2, AuditFindingKind::CheckpointGap)]);
    std::fs::write(&file, whole.replacen("\\\"number\\\":2", "\\\"number\\\":7", 1)).expect("writes");
    assert!(found_in_file(&world).await.contains(&(2, AuditFindingKind::Forged)));
}

/// Guard: `lines::tail` finds where whole lines end. A power cut may leave half a line, which was never answered for.
#[tokio::test]
async fn a_checkpoint_that_was_torn_is_no_forgery_and_is_written_over() {
    let (world, account) = World::with_changes().await;
    let file = world.folder.path().join("audit-checkpoints.jsonl");
    assert_eq!(world.cluster.checkpoint_audit().await.expect("signs"), 1);
    let whole = std::fs::read(&file).expect("is there");
    std::fs::write(&file, [&whole[..], &whole[..whole.len() / 2]].concat()).expect("writes");
    assert_eq!(found_in_file(&world).await, []);
    world.change(account.id, |account| account.points = 10).await.expect("commits");
    assert_eq!(world.cluster.checkpoint_audit().await.expect("signs"), 2);
    let report = world.cluster.verify_audit().await.expect("verifies");
    assert_eq!((report.verified, report.checkpoints), (true, 2));
}

/// What was removed is found once, however many checkpoints follow it.
#[tokio::test]
async fn checkpoints_go_on_behind_a_gap() {
    let (world, account) = World::with_changes().await;
    let (file, whole) = three_checkpoints(&world, &account).await;
    let lines: Vec<_> = whole.lines().collect();
    std::fs::write(&file, [lines[0], lines[2], ""].join("\n")).expect("writes");
    assert_eq!(world.cluster.checkpoint_audit().await.expect("signs"), 4);
    assert_eq!(found_in_file(&world).await, [(2, AuditFindingKind::CheckpointGap)]);
    std::fs::write(&file, [lines[0], "{}", ""].join("\n")).expect("writes");
    assert_eq!(world.cluster.checkpoint_audit().await.expect("signs"), 3);
    assert_eq!(found_in_file(&world).await, [(2, AuditFindingKind::Forged)]);
}

/// Guard: `Signed::take` compares each line with the one before it. Once the program that was deceived has signed again, no
/// head is left that tells of what was cut off.
#[tokio::test]
async fn a_tail_that_was_cut_before_the_next_checkpoint_is_found_for_ever() {
    let (world, account) = World::with_changes().await;
    world.cluster.checkpoint_audit().await.expect("signs");
    tamper(&world, &account, "DELETE FROM audit WHERE seq = 4").await;
    for number in 2..=3 {
        assert_eq!(world.cluster.checkpoint_audit().await.expect("signs"), number);
        let report = world.cluster.verify_audit().await.expect("reads");
        let trail: Vec<_> = report.findings.iter().filter(|it| !it.kind.is_disagreement()).collect();
        let found: Vec<_> = trail.iter().map(|it| (it.shard, it.seq, it.kind)).collect();
        assert_eq!(found, [(None, 2, AuditFindingKind::SetBack)]);
    }
}

/// Guard: `Cluster::sign_audit` reads the heads when nobody else signs any more; who read them sooner could sign less than
/// the line before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_signs_at_once_sets_nothing_back() {
    let (world, account) = World::with_changes().await;
    let signing = async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let cluster = world.cluster.clone();
            tasks.spawn(async move {
                for _ in 0..15 {
                    cluster.checkpoint_audit().await.expect("signs");
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no signer panicked");
        }
    };
    let writing = async {
        for points in 0..100 {
            world.change(account.id, |account| account.points = points).await.expect("commits");
        }
    };
    tokio::join!(signing, writing);
    let report = world.cluster.verify_audit().await.expect("reads");
    assert_eq!((report.verified, report.checkpoints), (true, 60), "{:?}", report.findings);
}

#[cfg(unix)]
#[tokio::test]
async fn the_signing_key_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let (world, _) = World::with_changes().await;
    world.cluster.checkpoint_audit().await.expect("signs");
    let key = world.folder.path().join("keys").join("audit-checkpoint.pk8");
    assert_eq!(std::fs::metadata(key).expect("is there").permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn records_are_found_by_request_user_and_row_and_show_no_masked_value() {
    let (world, account) = World::with_changes().await;
    let find = async |filter| trail_of(&world.cluster, filter).await;
    let all = find(AuditFilter::Entity(account.id.uuid())).await;
    assert_eq!(all.len(), 4);
    assert_eq!(find(AuditFilter::User("u-1".to_owned())).await.len(), 4);
    let request: uuid::Uuid = all[0].body["request"].as_str().expect("text").parse().expect("a uuid");
    assert_eq!(find(AuditFilter::Request(request)).await.len(), 1);
    assert_eq!(all[3].body["before"]["points"], 2);
    assert_eq!(all[3].body["after"]["points"], 3);
    assert!(!format!("{all:?}").contains("Ada"), "names are masked");
}
