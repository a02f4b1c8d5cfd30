//! What all outboxes hold is told as far as they answer, and who does not is named.

use std::time::Duration;

use pim_core::shard::ShardId;
use pim_data::backend::Statement;
use pim_events::{Backlog, Origin};
use tokio::time::Instant;
use uuid::Uuid;

use super::rig::{Folder, Rig, patient, powerful_of};

async fn told(rig: &Rig) -> Backlog {
    Backlog::of(&rig.cluster, Instant::now() + Duration::from_secs(2)).await
}

fn origins(backlog: &Backlog) -> Vec<&str> {
    backlog.outboxes.iter().map(|status| status.origin.as_str()).collect()
}

/// Guard: one that cannot be read keeps nobody from the others, and is not taken for an empty one.
#[tokio::test]
async fn that_cannot_be_read() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    for _ in 0..3 {
        rig.write(patient(), Uuid::new_v4(), &[1, 2]).await;
    }
    let whole = told(&rig).await;
    assert_eq!((whole.events(), origins(&whole)), (Some(6), vec!["shard/0", "shard/1", "control"]));
    assert_eq!(whole.into_events().unwrap(), 6);
    let rename = Statement::same("ALTER TABLE outbox_event RENAME TO outbox_event_away");
    let db = powerful_of(&rig, ShardId(1)).await;
    db.begin().await.unwrap().commit_with(vec![rename]).await.unwrap();
    let partial = told(&rig).await;
    assert_eq!((partial.events(), origins(&partial)), (None, vec!["shard/0", "control"]));
    let failed: Vec<_> = partial.failed.iter().map(|error| error.origin).collect();
    assert_eq!(failed, [Origin::Shard(ShardId(1))]);
    assert!(partial.into_events().is_err());
}
