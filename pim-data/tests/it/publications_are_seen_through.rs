//! A publication that has begun to fence comes into force, whether whoever asked for it stays, and although it fails at first.

use std::time::Duration;

use pim_core::id::Id;
use pim_core::shard::ShardId;
use pim_data::backend::{Db, Engine, SqlPair, Statement, Transaction};
use pim_data::fence::PublishError;

use super::ENGINE;
use super::moving::{eventually, refuse_owners};
use super::world::{Account, World};

const HERE: ShardId = ShardId(0);
const THERE: ShardId = ShardId(1);

/// An account of a shard.
async fn account_on(world: &World, shard: ShardId) -> Account {
    let mut account = Account::new(Id::random());
    while world.cluster.router().route(&account.id).shard != shard {
        account = Account::new(Id::random());
    }
    world.register_as(account).await
}

/// Keeps a shard from being fenced until it ends: it holds a writer, or what a writer holds of one bucket.
async fn hold(db: &Db, account: &Account) -> Transaction {
    let mut held = db.begin().await.expect("begins");
    if ENGINE == Engine::Postgres {
        let lock = format!("SELECT pg_advisory_xact_lock_shared(7461, {})", account.id.bucket().get());
        held.script(&lock).await.expect("locks");
    }
    held
}

async fn is_fenced(world: &World, shard: ShardId) -> bool {
    let lagging = Statement::of(SqlPair::same("SELECT COUNT(*) FROM pim_bucket_owned WHERE epoch < 2"));
    world.powerful(shard).await.query(lagging).await.expect("reads")[0].count(0).expect("a count") == 0
}

/// Guard: a caller who goes leaves no bucket that refuses its writers for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_whoever_asked_for_it_has_gone() {
    let world = World::new(2).await;
    let (here, there) = (account_on(&world, HERE).await, account_on(&world, THERE).await);
    let db = world.powerful(THERE).await;
    let held = hold(&db, &there).await;
    let publishing = tokio::spawn({
        let (cluster, next) = (world.cluster.clone(), world.cluster.map().fenced().expect("a successor"));
        async move { cluster.publish_map(&next).await }
    });
    eventually("one shard is fenced", async || is_fenced(&world, HERE).await).await;
    publishing.abort();
    assert!(publishing.await.is_err_and(|ended| ended.is_cancelled()), "it waits for the other shard");
    assert_eq!(world.cluster.map().version().0, 1);
    held.rollback().await.expect("ends");
    for account in [here, there] {
        let write = async || world.change(account.id, |account| account.points = 1).await.is_ok();
        eventually("it takes writes", write).await;
    }
    assert_eq!(world.cluster.map().version().0, 2);
}

/// Guard: nor does one that fails halfway; and whoever asks once more, before or after it is in force, is told that it is done.
#[tokio::test]
async fn when_it_has_failed_halfway() {
    let world = World::with(2, |mut settings| {
        settings.maps_every = Duration::from_millis(50);
        settings
    })
    .await;
    let here = account_on(&world, HERE).await;
    refuse_owners(&world, THERE, true).await;
    let next = world.cluster.map().fenced().expect("a successor");
    let failed = world.cluster.publish_map(&next).await;
    assert!(matches!(failed, Err(PublishError::Shard { shard: THERE, .. })), "{failed:?}");
    assert!(is_fenced(&world, HERE).await);
    refuse_owners(&world, THERE, false).await;
    let write = async || world.change(here.id, |account| account.points = 1).await.is_ok();
    eventually("it takes writes", write).await;
    assert_eq!(world.cluster.map().version().0, 2);
    assert!(world.cluster.publish_map(&next).await.expect("is in force").is_empty());
}
