//! A restored trail is shorter than later checkpoints say. The restore signs that, and the trail then verifies without what
//! was given up, and without nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pim_core::clock::Timestamp;
use pim_data::audit::{AuditFindingKind, CheckpointError, LaterCheckpoints, VerifyReport};
use pim_data::backup::{BackupError, RestorePoint, RestoreReport, restore};
use pim_data::cluster::{Cluster, ClusterSettings};

use super::world::{Account, Folder, World, policy, schema};

const LINES: &str = "audit-checkpoints.jsonl";

/// An account in four versions, a checkpoint, a backup, which signs another, one of the same, and two more that each name a
/// record more.
async fn backed_up() -> (World, Account, PathBuf) {
    let (world, account) = World::with_changes().await;
    world.cluster.checkpoint_audit().await.expect("signs");
    let place = world.folder.path().join("backups").join("one");
    world.cluster.back_up(&place, &[]).await.expect("backs up");
    world.cluster.checkpoint_audit().await.expect("signs");
    for points in [10, 11] {
        world.change(account.id, |account| account.points = points).await.expect("commits");
        world.cluster.checkpoint_audit().await.expect("signs");
    }
    (world, account, place)
}

async fn restored(from: &Path, point: &RestorePoint) -> Result<(World, RestoreReport), BackupError> {
    let folder = Folder::new();
    let (cluster, report) = restore(from, point, ClusterSettings::at(folder.path()), schema()).await?.finish()?;
    Ok((World { cluster, policy: policy(), folder }, report))
}

fn lines(world: &World) -> Vec<String> {
    let text = fs::read_to_string(world.folder.path().join(LINES)).expect("is there");
    text.lines().map(str::to_owned).collect()
}

async fn verify(cluster: &Cluster) -> VerifyReport {
    cluster.verify_audit().await.expect("reads")
}

fn kinds(report: &VerifyReport) -> Vec<(u64, AuditFindingKind)> {
    report.findings.iter().map(|finding| (finding.seq, finding.kind)).collect()
}

fn told(checkpoints: &LaterCheckpoints) -> (u64, u64, u64, u64) {
    (checkpoints.kept, checkpoints.given_up, checkpoints.records_given_up, checkpoints.signed)
}

#[tokio::test]
async fn checkpoints_of_what_was_given_up_stay_and_the_trail_verifies_without_it() {
    let (world, account, place) = backed_up().await;
    // Where the backed-up directory was is known; nobody has to name it.
    let (again, report) = restored(&place, &RestorePoint::default()).await.expect("restores");
    assert_eq!(told(&report.checkpoints), (1, 2, 2, 6), "{report:?}");
    let (elsewhere, here) = (lines(&world), lines(&again));
    assert_eq!(here[..5], elsewhere, "a copy that was kept elsewhere is the beginning of the file");
    let found = verify(&again.cluster).await;
    assert!(found.verified, "{found:?}");
    let restores: Vec<_> = found.restores.iter().map(|it| (it.checkpoint, it.to, it.kept, it.given_up)).collect();
    assert_eq!(restores, [(6, None, 3, 2)]);

    // It goes on from there, and may be backed up and restored again.
    again.change(account.id, |account| account.points = 20).await.expect("commits");
    assert_eq!(again.cluster.checkpoint_audit().await.expect("signs"), 7);
    let found = verify(&again.cluster).await;
    assert_eq!((found.verified, found.checkpoints, found.restores.len()), (true, 7, 1), "{found:?}");
    let second = again.folder.path().join("backups").join("two");
    again.cluster.back_up(&second, &[]).await.expect("backs up");
    let (third, report) = restored(&second, &RestorePoint::default()).await.expect("restores");
    assert_eq!(told(&report.checkpoints), (0, 0, 0, 9));
    assert_eq!(verify(&third.cluster).await.restores.len(), 2);
}

/// Guard: `sign_restore` signs where the chains stand. What was cut off behind a restore is no part of it.
#[tokio::test]
async fn nothing_more_than_what_was_given_up_may_be_missing() {
    let (_world, account, place) = backed_up().await;
    let (again, _) = restored(&place, &RestorePoint::default()).await.expect("restores");
    let file = again.folder.path().join(LINES);
    let whole = fs::read_to_string(&file).expect("is there");
    // Without its signed line the checkpoints of what was given up are in force again.
    let end = whole.trim_end().rfind('\n').expect("more than one line") + 1;
    fs::write(&file, &whole[..end]).expect("writes");
    assert_eq!(kinds(&verify(&again.cluster).await), [(6, AuditFindingKind::Truncated)]);
    again.cluster.checkpoint_audit().await.expect("signs");
    assert_eq!(kinds(&verify(&again.cluster).await), [(6, AuditFindingKind::SetBack)]);
    // Nor may somebody say so who has not the key, or say it of another instant.
    fs::write(&file, whole.replace("\\\"kept\\\":3", "\\\"kept\\\":1")).expect("writes");
    assert!(kinds(&verify(&again.cluster).await).contains(&(6, AuditFindingKind::Forged)));
    fs::write(&file, &whole).expect("writes");
    assert!(verify(&again.cluster).await.verified);
    let cut = "DROP TRIGGER audit_no_delete; DELETE FROM audit WHERE seq = 4;";
    again.raw(account.id, cut).await.expect("runs");
    assert!(kinds(&verify(&again.cluster).await).contains(&(4, AuditFindingKind::Truncated)));
}

/// Guard: `adopt_checkpoints` believes what was signed by the instant that was asked for. Records of before it must be there.
#[tokio::test]
async fn a_record_of_before_the_instant_that_is_missing_is_found_and_nothing_is_signed() {
    let (world, _, place) = backed_up().await;
    let to = Some(world.cluster.clock().now().plus(Duration::from_secs(1)));
    let (again, report) = restored(&place, &RestorePoint { to, origin: None }).await.expect("restores");
    assert_eq!((report.audit.verified, told(&report.checkpoints)), (false, (0, 0, 0, 0)));
    assert_eq!(kinds(&report.audit), [(6, AuditFindingKind::Truncated)]);
    assert_eq!(verify(&again.cluster).await.restores, []);
}

#[tokio::test]
async fn what_an_instant_was_is_in_the_signed_line() {
    let (_world, _, place) = backed_up().await;
    let to = Some(Timestamp::from_micros(1_000_000));
    let (again, _) = restored(&place, &RestorePoint { to, origin: None }).await.expect("restores");
    assert_eq!(verify(&again.cluster).await.restores[0].to, to);
}

/// Checkpoints of another system are refused where somebody names them, and passed over where they are only found.
#[tokio::test]
async fn checkpoints_of_another_system_are_not_taken_over() {
    let (world, _, place) = backed_up().await;
    let (other, _) = World::with_changes().await;
    other.cluster.checkpoint_audit().await.expect("signs");
    let named = RestorePoint { origin: Some(other.folder.path().to_owned()), ..RestorePoint::default() };
    let refusal = restored(&place, &named).await.err().expect("is refused");
    assert!(matches!(refusal, BackupError::Audit(CheckpointError::Foreign { .. })), "{refusal}");
    let elsewhere = Folder::new();
    fs::copy(world.folder.path().join(LINES), elsewhere.path().join(LINES)).expect("copies");
    fs::copy(other.folder.path().join(LINES), world.folder.path().join(LINES)).expect("copies");
    let (again, report) = restored(&place, &RestorePoint::default()).await.expect("restores");
    assert_eq!((&report.checkpoints.found_in, told(&report.checkpoints)), (&None, (0, 0, 0, 3)));
    assert!(verify(&again.cluster).await.verified);
    let named = RestorePoint { origin: Some(elsewhere.path().to_owned()), ..RestorePoint::default() };
    assert_eq!(told(&restored(&place, &named).await.expect("restores").1.checkpoints), (1, 2, 2, 6));
}

/// Guard: a copy that was kept before the backup is taken for what it is, also where somebody names it.
#[tokio::test]
async fn an_older_copy_of_the_checkpoints_has_nothing_later() {
    let (world, _) = World::with_changes().await;
    world.cluster.checkpoint_audit().await.expect("signs");
    let kept = Folder::new();
    fs::copy(world.folder.path().join(LINES), kept.path().join(LINES)).expect("copies");
    world.cluster.checkpoint_audit().await.expect("signs");
    let place = world.folder.path().join("backups").join("one");
    world.cluster.back_up(&place, &[]).await.expect("backs up");
    let named = RestorePoint { origin: Some(kept.path().to_owned()), ..RestorePoint::default() };
    let (again, report) = restored(&place, &named).await.expect("restores");
    assert_eq!((&report.checkpoints.found_in, told(&report.checkpoints)), (&None, (0, 0, 0, 4)));
    assert!(verify(&again.cluster).await.verified);
    // One without a line is nobody's.
    fs::write(kept.path().join(LINES), "{").expect("writes");
    let refusal = restored(&place, &named).await.err().expect("is refused");
    assert!(matches!(refusal, BackupError::Audit(CheckpointError::Foreign { .. })), "{refusal}");
}

/// A copy of the file may have been taken in the middle of a line, and half a line may be what is left of the lost system.
#[tokio::test]
async fn half_a_line_says_nothing() {
    let (world, _, place) = backed_up().await;
    let file = world.folder.path().join(LINES);
    let whole = fs::read(&file).expect("is there");
    fs::write(&file, &whole[..whole.len() - 7]).expect("writes");
    let (again, report) = restored(&place, &RestorePoint::default()).await.expect("restores");
    assert_eq!(told(&report.checkpoints), (1, 1, 1, 5));
    assert!(verify(&again.cluster).await.verified);
}
