//! A publication that has begun to fence comes into force, whether whoever asked for it stays, and although it fails at first.

use std::time::Duration;

use pim_core::id::Id;
use pim_core::shard::ShardId;
use pim_data::backend::{Db, Engine, SqlPair, Statement, Transaction};
use pim_data::fence::PublishError;

use super::ENGINE;
use super::moving::eventually;
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

/// Has a shard refuse to be fenced, or not any more.
async fn refuse(world: &World, refuses: bool) {
    let script = match (ENGINE, refuses) {
        (Engine::Postgres, true) => {
            "CREATE FUNCTION no_fence() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$;
             CREATE TRIGGER no_fence BEFORE INSERT OR UPDATE ON pim_bucket_owned FOR EACH ROW EXECUTE FUNCTION no_fence()"
        }
        (Engine::Postgres, false) => "DROP FUNCTION no_fence CASCADE",
        (Engine::Sqlite, true) => {
            "CREATE TRIGGER no_fence BEFORE UPDATE ON pim_bucket_owned BEGIN SELECT RAISE(ABORT, 'not now'); END"
        }
        (Engine::Sqlite, false) => "DROP TRIGGER no_fence",
    };
    let mut tx = world.powerful(THERE).await.begin().await.expect("begins");
    tx.script(script).await.expect("runs");
    tx.commit().await.expect("commits");
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
    refuse(&world, true).await;
    let next = world.cluster.map().fenced().expect("a successor");
    let failed = world.cluster.publish_map(&next).await;
    assert!(matches!(failed, Err(PublishError::Shard { shard: THERE, .. })), "{failed:?}");
    assert!(is_fenced(&world, HERE).await);
    refuse(&world, false).await;
    let write = async || world.change(here.id, |account| account.points = 1).await.is_ok();
    eventually("it takes writes", write).await;
    assert_eq!(world.cluster.map().version().0, 2);
    assert!(world.cluster.publish_map(&next).await.expect("is in force").is_empty());
}
