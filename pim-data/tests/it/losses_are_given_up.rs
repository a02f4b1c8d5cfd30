//! A promotion that loses acknowledged records sets a shard back. Somebody may give that up by name; the trail then verifies
//! without what that shard has lost, and nothing else may be missing.

use std::fs;
use std::path::Path;

use pim_core::shard::ShardId;
use pim_data::audit::{AuditFindingKind, VerifyReport};
use pim_data::cluster::{Cluster, ClusterSettings};
use pim_data::degradation::Reason;
use pim_data::loss::LossError;

use super::world::{Account, Folder, ShopResource, World, cx, policy, schema, write};

const HERE: ShardId = ShardId(0);
const THERE: ShardId = ShardId(1);

fn reason() -> Reason {
    "standby-lost".parse().expect("a word")
}

fn file_of(folder: &Path, shard: ShardId) -> std::path::PathBuf {
    folder.join("shards").join(format!("shard-{}.db", shard.0))
}

async fn account_on(world: &World, shard: ShardId) -> Account {
    loop {
        let account = Account::new(pim_core::id::Id::random());
        if world.cluster.router().route(&account.id).shard == shard {
            return world.register_as(account).await;
        }
    }
}

/// Two shards with an account each, both changed and signed after what `lost` of them go back to.
async fn set_back(lost: &[ShardId]) -> (World, [Account; 2]) {
    let world = World::new(2).await;
    let accounts = [account_on(&world, HERE).await, account_on(&world, THERE).await];
    world.cluster.checkpoint_audit().await.expect("signs");
    let place = world.folder.path().join("backups").join("one");
    world.cluster.back_up(&place, &[]).await.expect("backs up");
    for account in &accounts {
        for points in [1, 2] {
            world.change(account.id, |account| account.points = points).await.expect("commits");
        }
    }
    world.cluster.checkpoint_audit().await.expect("signs");
    // Elsewhere, so that no connection of this one writes back what it still has.
    let elsewhere = Folder::new();
    copy(world.folder.path(), elsewhere.path());
    for shard in lost {
        fs::copy(file_of(&place, *shard), file_of(elsewhere.path(), *shard)).expect("copies");
        fs::remove_file(format!("{}-wal", file_of(elsewhere.path(), *shard).display())).expect("was copied");
    }
    let cluster = Cluster::open(ClusterSettings::at(elsewhere.path()), schema()).await.expect("opens");
    (World { cluster, policy: policy(), folder: elsewhere }, accounts)
}

/// Copies a data directory that nobody writes to.
fn copy(from: &Path, into: &Path) {
    fs::create_dir_all(into).expect("makes");
    for entry in fs::read_dir(from).expect("reads").map(|entry| entry.expect("reads")) {
        let (name, target) = (entry.file_name(), into.join(entry.file_name()));
        let name = name.to_string_lossy();
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else if !name.ends_with("-shm") && !name.ends_with(".lock") {
            fs::copy(entry.path(), &target).expect("copies");
        }
    }
}

async fn verify(cluster: &Cluster) -> VerifyReport {
    cluster.verify_audit().await.expect("reads")
}

fn kinds(report: &VerifyReport) -> Vec<(Option<u16>, AuditFindingKind)> {
    report.findings.iter().map(|finding| (finding.shard, finding.kind)).collect()
}

#[tokio::test]
async fn before_the_next_checkpoint_and_behind_it() {
    for is_signed_meanwhile in [false, true] {
        let (world, [account, other]) = set_back(&[HERE]).await;
        assert_eq!(kinds(&verify(&world.cluster).await), [(Some(0), AuditFindingKind::Truncated)]);
        let mut lines = Vec::new();
        if is_signed_meanwhile {
            lines.push(world.cluster.checkpoint_audit().await.expect("signs"));
            assert_eq!(kinds(&verify(&world.cluster).await), [(None, AuditFindingKind::SetBack)]);
        }
        let (permit, before) = (write(ShopResource::Account), world.cluster.map());
        if is_signed_meanwhile {
            let refused = world.cluster.accept_loss(&cx(), &permit, HERE, &reason(), &[]).await;
            assert!(matches!(&refused, Err(LossError::Unnamed { lines: unnamed }) if *unnamed == lines), "{refused:?}");
        }
        let given_up = world.cluster.accept_loss(&cx(), &permit, HERE, &reason(), &lines).await.expect("is given up");
        assert_eq!((&given_up.lines, given_up.records), (&lines, if is_signed_meanwhile { 0 } else { 2 }));
        let report = verify(&world.cluster).await;
        assert!(report.verified && report.agrees, "{report:?}");
        let told: Vec<_> = report.losses.iter().map(|it| (it.checkpoint, it.shard, it.reason.as_str())).collect();
        assert_eq!(told, [(given_up.checkpoint, Some(0), "standby-lost")]);

        // What comes next is numbered under a risen epoch, on that shard alone.
        let epoch_of = |account: &Account| {
            let bucket = world.cluster.router().route(&account.id).bucket;
            (before.owner(bucket).1.0, world.cluster.router().map().owner(bucket).1.0)
        };
        assert_eq!((epoch_of(&account), epoch_of(&other)), ((1, if is_signed_meanwhile { 3 } else { 2 }), (1, 1)));
        world.change(account.id, |account| account.points = 3).await.expect("commits");
        world.cluster.checkpoint_audit().await.expect("signs");
        assert!(verify(&world.cluster).await.verified);
    }
}

/// Guard: `Signed::take` forgives one shard. Another that was set back by the same promotion, or by somebody, is still found.
#[tokio::test]
async fn of_one_shard_at_a_time() {
    let (world, _) = set_back(&[HERE, THERE]).await;
    let permit = write(ShopResource::Account);
    let first = world.cluster.accept_loss(&cx(), &permit, HERE, &reason(), &[]).await.expect("is given up");
    assert_eq!(kinds(&verify(&world.cluster).await), [(None, AuditFindingKind::SetBack)], "shard 1, at that line");
    let lines = [first.checkpoint];
    world.cluster.accept_loss(&cx(), &permit, THERE, &reason(), &lines).await.expect("is given up");
    let report = verify(&world.cluster).await;
    assert_eq!((report.verified, report.losses.len()), (true, 2), "{report:?}");
}

/// Guard: the signed line names what it gives up. A shard that is set back once more is found once more.
#[tokio::test]
async fn and_not_for_the_future() {
    let (world, [account, _]) = set_back(&[HERE]).await;
    let permit = write(ShopResource::Account);
    world.cluster.accept_loss(&cx(), &permit, HERE, &reason(), &[]).await.expect("is given up");
    world.change(account.id, |account| account.points = 3).await.expect("commits");
    world.cluster.checkpoint_audit().await.expect("signs");
    let cut = "DROP TRIGGER audit_no_delete; DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit);";
    world.raw(account.id, cut).await.expect("runs");
    world.cluster.checkpoint_audit().await.expect("signs");
    let found = kinds(&verify(&world.cluster).await);
    assert!(found.contains(&(None, AuditFindingKind::SetBack)), "{found:?}");
    // Trail and data disagree: that is no loss, and nobody can give it up as one.
    let refused = world.cluster.accept_loss(&cx(), &permit, HERE, &reason(), &[]).await;
    assert!(matches!(refused, Err(LossError::Unsound { findings: 1.. })), "{refused:?}");
}

/// Guard: `Signed::point` gives up what was signed from where the chain is another, and nothing before that. The shard has been
/// written to again, past what was signed, before anybody signed or said anything.
#[tokio::test]
async fn and_what_was_signed_before_it_still_speaks() {
    let (world, [account, _]) = set_back(&[HERE]).await;
    for points in 7..10 {
        world.change(account.id, |account| account.points = points).await.expect("commits");
    }
    assert_eq!(kinds(&verify(&world.cluster).await), [(Some(0), AuditFindingKind::Rewritten)]);
    let permit = write(ShopResource::Account);
    world.cluster.accept_loss(&cx(), &permit, HERE, &reason(), &[]).await.expect("is given up");
    let report = verify(&world.cluster).await;
    assert!(report.verified && report.agrees, "{report:?}");

    let lane = world.cluster.router().route(&account.id).bucket.lane().get();
    let rewrite =
        format!("DROP TRIGGER audit_no_update; UPDATE audit SET hash = zeroblob(32) WHERE lane = {lane} AND seq = 1;");
    world.raw(account.id, &rewrite).await.expect("runs");
    let found: Vec<_> = verify(&world.cluster).await.findings.iter().map(|it| (it.seq, it.kind)).collect();
    assert!(found.contains(&(1, AuditFindingKind::Rewritten)), "{found:?}");
}
