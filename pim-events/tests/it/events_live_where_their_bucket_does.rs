//! On a server events and what commands have done live where their bucket does, whoever writes them.

use pim_core::shard::{HomeKey, ShardId};
use pim_data::backend::DbError;

use super::rig::{Folder, Rig, patient, powerful_of};

/// An event as somebody would type it.
fn event(home: HomeKey, bucket: u16) -> String {
    let (key, lane) = (home.uuid(), bucket & 63);
    format!(
        "INSERT INTO outbox_event (bucket, lane, owner_epoch, home_key, n, event_id, topic, event_type, schema_version, \
         aggregate, aggregate_id, aggregate_version, correlation, traceparent, actor, role, at, payload) VALUES \
         ({bucket}, {lane}, 1, '{key}', 1, '{key}', 'domain.v1', 'thing.happened', 1, 'thing', '{key}', 1, '{key}', '', 'u-1', \
         'person', 1, '{{}}')"
    )
}

/// What a command has done, as somebody would type it.
fn done(home: HomeKey, bucket: u16) -> String {
    let key = home.uuid();
    format!("INSERT INTO command_inbox VALUES ('c', '{key}', '{key}', {bucket}, 1)")
}

fn at(rig: &Rig, shard: u16) -> HomeKey {
    let is_there = |home: &HomeKey| rig.cluster.router().route(home).shard == ShardId(shard);
    std::iter::repeat_with(patient).find(is_there).unwrap()
}

/// Guard: the relay of a shard sends whatever its outbox has; also the commit of whom row-level security does not bind is looked at.
#[tokio::test]
async fn hand_typed_ones_too() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    let (mine, theirs) = (at(&rig, 0), at(&rig, 1));
    let db = powerful_of(&rig, ShardId(0)).await;
    let (here, there) = (mine.bucket().get(), theirs.bucket().get());
    for (sql, rule) in [
        (event(theirs, there), "pim:bucket-not-owned"),
        (event(theirs, here), "outbox_event_of_bucket"),
        (done(theirs, there), "pim:bucket-not-owned"),
    ] {
        let mut tx = db.begin().await.unwrap();
        let refused = tx.script(&sql).await;
        let Err(DbError::Refused { rule: found, .. }) = &refused else { panic!("{sql}: {refused:?}") };
        assert!(found.contains(rule), "{sql}: {found}");
    }
    for sql in [event(mine, here), done(mine, here)] {
        let mut tx = db.begin().await.unwrap();
        tx.script(&sql).await.unwrap();
        tx.rollback().await.unwrap();
    }
}
