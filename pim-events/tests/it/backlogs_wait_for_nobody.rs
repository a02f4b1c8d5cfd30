//! A server that stands still, or is away, keeps nobody from what the other outboxes hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pim_core::shard::ShardId;
use pim_data::backend::{DbError, SecretError, Secrets, Statement};
use pim_data::cluster::{Access, ClusterSettings};
use pim_events::{Backlog, Origin};
use tokio::time::Instant;

use super::rig::{Folder, Rig, powerful_of, settings};

/// Leads to where nobody listens while the second shard's server is away.
#[derive(Debug)]
struct Leave(Arc<dyn Secrets>, Arc<AtomicBool>);

impl Secrets for Leave {
    fn secret(&self, name: &str) -> Result<String, SecretError> {
        let dsn = self.0.secret(name)?;
        if !self.1.load(Ordering::SeqCst) || !name.starts_with("shard-1") {
            return Ok(dsn);
        }
        let (address, database) = dsn.rsplit_once('/').expect("a database");
        let (user, _) = address.rsplit_once('@').expect("a user");
        Ok(format!("{user}@127.0.0.1:1/{database}"))
    }
}

fn leaving(folder: &Folder, is_away: &Arc<AtomicBool>) -> ClusterSettings {
    let mut settings = settings(folder.path(), 2).with_access(Access::Shared);
    let servers = settings.servers.as_mut().expect("servers");
    servers.secrets = Arc::new(Leave(Arc::clone(&servers.secrets), Arc::clone(is_away)));
    settings
}

/// Who has told, and who has not.
fn parts(backlog: &Backlog) -> (Vec<&str>, Vec<Origin>) {
    let told = backlog.outboxes.iter().map(|status| status.origin.as_str()).collect();
    (told, backlog.failed.iter().map(|error| error.origin).collect())
}

/// Guard: the outboxes are asked at once, and none has more time than all.
#[tokio::test]
async fn that_stands_still() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let lock = Statement::same("LOCK TABLE outbox_event IN ACCESS EXCLUSIVE MODE");
    let db = powerful_of(&rig, ShardId(0)).await;
    let (held, _none) = db.begin_with(&[lock]).await.unwrap();
    let begun = Instant::now();
    let found = Backlog::of(&rig.cluster, begun + Duration::from_secs(1)).await;
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert_eq!(parts(&found), (vec!["shard/1", "control"], vec![Origin::Shard(ShardId(0))]));
    held.rollback().await.unwrap();
}

/// Guard: a shard that could not be opened is not left out.
#[tokio::test]
async fn that_is_away() {
    let (folder, is_away) = (Folder::new(), Arc::new(AtomicBool::new(false)));
    drop(Rig::over(folder.path(), leaving(&folder, &is_away)).await);
    is_away.store(true, Ordering::SeqCst);
    let rig = Rig::over(folder.path(), leaving(&folder, &is_away)).await;
    assert_eq!(rig.cluster.missing(), [ShardId(1)]);
    let found = Backlog::of(&rig.cluster, Instant::now() + Duration::from_secs(2)).await;
    assert_eq!((parts(&found), found.events()), ((vec!["shard/0", "control"], vec![Origin::Shard(ShardId(1))]), None));
    assert!(matches!(found.failed[0].source, DbError::NotOpen { .. }), "{:?}", found.failed);
}
