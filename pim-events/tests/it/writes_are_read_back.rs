//! Who brings a token reads from a read model what the token tells of, or is told that the model is behind.

use std::time::Duration;

use futures_util::future::join_all;
use pim_core::shard::HomeKey;
use pim_data::backend::{DbError, Engine, Row, ServerSettings, Statement};
use pim_data::consistency::ConsistencyToken;
use pim_events::StoreError;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::rig::{Folder, Journal, POISON, Rig, Running, eventually, patient};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);
/// Of somebody who waits in vain, and for whom a model is looked at some times.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the journal knows of a key, read by somebody who has seen this of some keys.
async fn read(rig: &Rig, home: HomeKey, seen: &ConsistencyToken, wait: Duration) -> Result<Vec<Row>, StoreError> {
    let select = Statement::same("SELECT n FROM journal WHERE home = ?").bind(home.uuid());
    let answer = rig.store.query_after("journal", seen, Instant::now() + wait, select);
    timeout(LONG / 2, answer).await.expect("does not wait in vain")
}

/// With everything at work that brings events to the journal, until what is returned behind it is dropped or ended.
async fn at_work(folder: &Folder) -> (Rig, Running, Running) {
    let rig = Rig::open(folder.path()).await;
    let relay = Running::relay(rig.relay());
    let projections = Running::projections(rig.projections(&Journal::default()).await);
    (rig, relay, projections)
}

fn seen(keys: &[(HomeKey, u64)]) -> ConsistencyToken {
    let mut seen = ConsistencyToken::default();
    keys.iter().for_each(|(key, n)| seen.merge(&ConsistencyToken::of(key.uuid(), *n)));
    seen
}

/// Guard: `ReadStore::query_after`. Each read comes right behind its write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_once_and_whole() {
    let folder = Folder::new();
    let (rig, _relay, _projections) = at_work(&folder).await;
    let (home, other) = (patient(), patient());
    for n in 1..=10 {
        rig.write(home, Uuid::new_v4(), &[n]).await;
        rig.write(other, Uuid::new_v4(), &[n]).await;
        // The key that is read is not the one that was written last.
        let rows = read(&rig, home, &seen(&[(home, n), (other, n)]), LONG).await.expect("catches up");
        assert_eq!(rows.len() as u64, n);
    }
}

/// Guard: `standing`. One key behind is enough, and nobody waits for longer than they have time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_is_behind_says_so() {
    let folder = Folder::new();
    let (rig, relay, projections) = at_work(&folder).await;
    let (home, other) = (patient(), patient());
    rig.write(home, Uuid::new_v4(), &[1]).await;
    read(&rig, home, &seen(&[(home, 1)]), LONG).await.expect("catches up");
    projections.end().await;
    rig.write(other, Uuid::new_v4(), &[1]).await;
    let behind = read(&rig, home, &seen(&[(home, 1), (other, 1)]), PATIENCE).await;
    assert!(matches!(behind, Err(StoreError::Behind { held: false, .. })), "{behind:?}");
    if rig.store.db().engine() == Engine::Postgres {
        // Also where what ends is a call, as while others have all connections.
        let others = async {
            sleep(PATIENCE / 4).await;
            join_all((0..ServerSettings::default().connections_max).map(|_| rig.store.db().begin())).await
        };
        let token = seen(&[(home, 1), (other, 1)]);
        let (behind, _held) = tokio::join!(read(&rig, home, &token, PATIENCE), others);
        assert!(matches!(behind, Err(StoreError::Behind { held: false, .. })), "{behind:?}");
    }
    assert_eq!(read(&rig, home, &ConsistencyToken::default(), LONG).await.expect("asks for nothing").len(), 1);
    relay.end().await;
}

/// Guard: what is held does not come by waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_what_is_held() {
    let folder = Folder::new();
    let (rig, _relay, _projections) = at_work(&folder).await;
    let home = patient();
    rig.write(home, Uuid::new_v4(), &[1, POISON]).await;
    eventually("it is held", || async { !rig.store.holds_of(home.uuid()).await.unwrap().is_empty() }).await;
    let held = read(&rig, home, &seen(&[(home, 2)]), LONG).await;
    assert!(matches!(held, Err(StoreError::Behind { held: true, .. })), "{held:?}");
    assert_eq!(read(&rig, home, &seen(&[(home, 1)]), LONG).await.expect("was applied before").len(), 1);
}

/// Guard: whoever has seen nothing yet is bounded by their deadline as well.
#[tokio::test]
async fn whoever_brings_nothing_waits_no_longer() {
    let folder = Folder::new();
    let rig = Rig::open(folder.path()).await;
    if rig.store.db().engine() == Engine::Postgres {
        let (begun, slow) = (Instant::now(), Statement::same("SELECT pg_sleep(20)::text"));
        let until = begun + Duration::from_millis(300);
        let read = rig.store.query_after("journal", &ConsistencyToken::default(), until, slow).await;
        assert!(matches!(read, Err(StoreError::Db(DbError::Unanswered | DbError::Late))), "{read:?}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
    let nothing = Statement::same("SELECT 1");
    let until = Instant::now() + LONG;
    assert!(rig.store.query_after("journal", &ConsistencyToken::default(), until, nothing).await.is_ok());
}
