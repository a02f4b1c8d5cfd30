//! Shards are restored to an earlier instant than log and read models are of: keys whose numbers are given out again are named
//! and held, nothing is applied twice, and a rebuild tells what the shards tell.

use std::sync::Arc;
use std::time::Duration;

use pim_core::shard::HomeKey;
use pim_data::backend::Statement;
use pim_data::consistency::ConsistencyToken;
use pim_events::{Rebuild, RebuildError, Source, StoreError, UnparkError, Verdict};
use tokio::time::Instant;
use uuid::Uuid;

use super::order_survives_moves::{Answer, answers, commands};
use super::rig::{Folder, Journal, Rig, Running, eventually, patient, put_back, snapshot};

/// What the outbox of a key's shard has of it: number and step.
async fn told(rig: &Rig, home: HomeKey) -> Vec<(u64, u64)> {
    let db = rig.cluster.database(rig.cluster.router().route(&home).shard).unwrap();
    let asked = Statement::same("SELECT n, payload FROM outbox_event WHERE home_key = ? ORDER BY n").bind(home.uuid());
    let step = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["step"].as_u64().unwrap();
    let rows = db.query(asked).await.unwrap();
    rows.iter().map(|row| (row.count(0).unwrap(), step(row.text(1).unwrap()))).collect()
}

/// What the read model has of a key, in the order in which it was applied.
async fn applied(rig: &Rig, home: HomeKey) -> Vec<(u64, u64)> {
    let journal = rig.journal().await;
    journal.into_iter().filter(|(key, ..)| *key == home.uuid()).map(|(_, n, step)| (n, step)).collect()
}

/// What a rebuilt read model has of a key. A swap copies rows as they come: in which order they were applied is told by their
/// numbers alone.
async fn kept(rig: &Rig, home: HomeKey) -> Vec<(u64, u64)> {
    let mut rows = applied(rig, home).await;
    rows.sort_unstable();
    rows
}

async fn held(rig: &Rig) -> Vec<(Uuid, String)> {
    let held = rig.store.held_keys(None, 10).await.unwrap();
    held.into_iter().map(|key| (key.key, key.reason)).collect()
}

async fn all_is_read(rig: &Rig) -> bool {
    let mut backlog = 0;
    for source in Source::all(&rig.cluster) {
        backlog += source.status(pim_core::clock::Clock::system().now()).await.unwrap().backlog;
    }
    let status = rig.store.status(&rig.bus).await.unwrap();
    backlog == 0 && status.iter().all(|it| it.partitions.iter().all(|partition| partition.lag == 0))
}

/// Guards: the epochs that a restore raises (`ShardMap::fenced`) tell the consumer that it is another history, and
/// `Superseded` what of the log was given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn to_what_the_restored_shards_tell() {
    let folder = Folder::new();
    let (again, untouched, ahead) = (patient(), patient(), patient());
    {
        let rig = Rig::open(folder.path()).await;
        let (relay, runner) = (Running::relay(rig.relay()), rig.projections(&Journal::default()).await);
        let runner = Running::projections(runner);
        for home in [again, untouched, ahead] {
            rig.write(home, Uuid::new_v4(), &[1, 2, 3]).await;
        }
        eventually("all of it is applied", || async { rig.journal().await.len() == 9 }).await;
        relay.end().await;
        runner.end().await;
    }
    snapshot(folder.path()).await;
    {
        let rig = Rig::open(folder.path()).await;
        let (relay, runner) = (Running::relay(rig.relay()), rig.projections(&Journal::default()).await);
        let runner = Running::projections(runner);
        // Acknowledged, sent, and applied to the read model before the shards are lost.
        rig.write(again, Uuid::new_v4(), &[40, 50]).await;
        rig.write(ahead, Uuid::new_v4(), &[40]).await;
        eventually("all of it is applied", || async { rig.journal().await.len() == 12 }).await;
        relay.end().await;
        runner.end().await;
    }
    put_back(folder.path()).await;

    let rig = Rig::open(folder.path()).await;
    rig.cluster.publish_map(&rig.cluster.map().fenced().unwrap()).await.unwrap();
    for source in Source::all(&rig.cluster) {
        source.rebase().await.unwrap();
    }
    let _relay = Running::relay(rig.relay());
    let _runner = Running::projections(rig.projections(&Journal::default()).await);
    rig.write(again, Uuid::new_v4(), &[41]).await;
    rig.write(again, Uuid::new_v4(), &[51, 61]).await;
    rig.write(untouched, Uuid::new_v4(), &[41]).await;
    eventually("what was not rewound goes on", || async { applied(&rig, untouched).await.len() == 4 }).await;
    eventually("the log is read", || all_is_read(&rig)).await;
    assert_eq!(held(&rig).await, [(again.uuid(), "rewound".to_owned())]);
    assert!(matches!(rig.store.unpark("journal", again.uuid()).await, Err(UnparkError::Rewound)));
    let seen = ConsistencyToken::of(again.uuid(), 3);
    let anything = Statement::same("SELECT 1 FROM journal");
    let read = rig.store.query_after("journal", &seen, Instant::now() + Duration::from_secs(60), anything).await;
    assert!(matches!(read, Err(StoreError::Behind { held: true, .. })), "its rows are of what was given up: {read:?}");
    let before = [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50)];
    assert_eq!(applied(&rig, again).await, before, "nothing is applied over what was given up");

    let journal: Arc<Journal> = Arc::new(Journal::default());
    let rebuild = || Rebuild::new(&rig.store, rig.subscriber(), &rig.registry, journal.clone(), Verdict::MustEqual);
    let report = rebuild().run(folder.path(), |_, _| {}).await.unwrap();
    assert_eq!((report.state, report.equal, report.rewound), ("live", false, 1), "{report:?}");
    assert_eq!(held(&rig).await, []);
    for home in [again, untouched] {
        assert_eq!(kept(&rig, home).await, told(&rig, home).await);
    }
    rig.write(again, Uuid::new_v4(), &[71]).await;
    eventually("it goes on", || async { applied(&rig, again).await.len() == 7 }).await;

    // A key that nobody has written since is ahead of its shard until somebody does.
    assert_eq!(applied(&rig, ahead).await.len(), 4);
    rig.write(ahead, Uuid::new_v4(), &[42]).await;
    eventually("it is named", || async { held(&rig).await == [(ahead.uuid(), "rewound".to_owned())] }).await;
    let report = rebuild().run(folder.path(), |_, _| {}).await.unwrap();
    assert_eq!((report.state, report.rewound), ("live", 2));
    for home in [again, untouched, ahead] {
        assert_eq!(kept(&rig, home).await, told(&rig, home).await);
    }
    // The same log once more: there is nothing to mend, and nothing may differ.
    let report = rebuild().run(folder.path(), |_, _| {}).await.unwrap();
    assert_eq!((report.state, report.equal, report.rewound), ("live", true, 2));
}

/// Guards: a head knows its event (`KeyState::take`), so that a key which was set back unnoticed, and numbers on under the same
/// epoch, is named when it comes by the head; and `Superseded` tells which of two events with one number came last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn also_when_nobody_noticed_that_they_were_set_back() {
    let folder = Folder::new();
    let home = patient();
    let write = async |steps: &'static [u64], rows: usize| {
        let rig = Rig::open(folder.path()).await;
        let (relay, runner) = (Running::relay(rig.relay()), rig.projections(&Journal::default()).await);
        let runner = Running::projections(runner);
        rig.write(home, Uuid::new_v4(), steps).await;
        eventually("all of it is applied", || async { rig.journal().await.len() == rows }).await;
        relay.end().await;
        runner.end().await;
    };
    write(&[1, 2, 3], 3).await;
    snapshot(folder.path()).await;
    write(&[40, 50], 5).await;
    put_back(folder.path()).await;

    let rig = Rig::open(folder.path()).await;
    for source in Source::all(&rig.cluster) {
        source.rebase().await.unwrap();
    }
    let _relay = Running::relay(rig.relay());
    let _runner = Running::projections(rig.projections(&Journal::default()).await);
    rig.write(home, Uuid::new_v4(), &[41]).await;
    rig.write(home, Uuid::new_v4(), &[51]).await;
    eventually("it is named", || async { held(&rig).await == [(home.uuid(), "rewound".to_owned())] }).await;
    assert_eq!(applied(&rig, home).await, [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50)]);

    let journal: Arc<Journal> = Arc::new(Journal::default());
    let rebuild = Rebuild::new(&rig.store, rig.subscriber(), &rig.registry, journal, Verdict::MustEqual);
    let refused = rebuild.clone().remembering(1).run(folder.path(), |_, _| {}).await;
    assert!(matches!(refused, Err(RebuildError::Rewound { most: 1 })), "{refused:?}");
    assert_eq!(applied(&rig, home).await.len(), 5, "the live model is as it was");
    let report = rebuild.run(folder.path(), |_, _| {}).await.unwrap();
    assert_eq!((report.state, report.rewound), ("live", 1), "{report:?}");
    assert_eq!((held(&rig).await, kept(&rig, home).await), (vec![], told(&rig, home).await));
    rig.write(home, Uuid::new_v4(), &[61]).await;
    eventually("it goes on", || async { applied(&rig, home).await.len() == 6 }).await;
}

/// Guard: `ReadStore::prepare` lets a store of before learn the events of its heads, and takes what it does not know for sound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_heads_knew_no_events_goes_on() {
    let folder = Folder::new();
    let home = patient();
    for (steps, is_older) in [(&[1, 2][..], true), (&[3], false)] {
        let rig = Rig::open(folder.path()).await;
        let (relay, runner) = (Running::relay(rig.relay()), rig.projections(&Journal::default()).await);
        let runner = Running::projections(runner);
        rig.write(home, Uuid::new_v4(), steps).await;
        eventually("all of it is applied", || async { applied(&rig, home).await == told(&rig, home).await }).await;
        relay.end().await;
        runner.end().await;
        if is_older {
            let mut tx = rig.store.db().begin().await.unwrap();
            tx.script("ALTER TABLE inbox_head DROP COLUMN event_id").await.unwrap();
            tx.commit().await.unwrap();
        }
    }
    let rig = Rig::open(folder.path()).await;
    let known =
        rig.store.query(Statement::same("SELECT count(*) FROM inbox_head WHERE event_id IS NULL")).await.unwrap();
    assert_eq!((known[0].count(0).unwrap(), held(&rig).await), (0, vec![]));
}

/// Guard: `ReadStore::unpark_command` goes through what the log has of a key, without what was given up; the inbox, which was
/// set back with its shard, tells what has happened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_commands_are_given_again() {
    let folder = Folder::new();
    let home = patient();
    let write = async |steps: &'static [u64], answered: usize| {
        let rig = Rig::open(folder.path()).await;
        let (relay, runner) = (Running::relay(rig.relay()), commands(&rig).await);
        rig.write(home, Uuid::new_v4(), steps).await;
        eventually("all of it is answered", || async { answers(&rig).await.len() == answered }).await;
        eventually("the log is read", || all_is_read(&rig)).await;
        relay.end().await;
        runner.end().await;
    };
    write(&[1, 2], 2).await;
    snapshot(folder.path()).await;
    write(&[40], 3).await;
    put_back(folder.path()).await;

    let rig = Rig::open(folder.path()).await;
    for source in Source::all(&rig.cluster) {
        source.rebase().await.unwrap();
    }
    let _relay = Running::relay(rig.relay());
    let _runner = commands(&rig).await;
    rig.write(home, Uuid::new_v4(), &[41]).await;
    rig.write(home, Uuid::new_v4(), &[51]).await;
    eventually("it is named", || async { held(&rig).await == [(home.uuid(), "rewound".to_owned())] }).await;
    assert_eq!(answers(&rig).await.len(), 2, "nothing new is answered");

    rig.store.unpark_command(rig.subscriber().as_ref(), &Answer, home.uuid()).await.unwrap();
    eventually("nothing is held", || async { held(&rig).await.is_empty() }).await;
    let mut causes = answers(&rig).await;
    causes.sort_unstable();
    causes.dedup();
    assert_eq!((causes.len(), answers(&rig).await.len()), (4, 4), "each step that there is, once");
    rig.write(home, Uuid::new_v4(), &[61]).await;
    eventually("it goes on", || async { answers(&rig).await.len() == 5 }).await;
}
