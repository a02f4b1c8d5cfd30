use std::path::PathBuf;

use futures_util::future::join_all;
use pim_core::clock::Clock;
use pim_core::shard::ShardId;
use pim_data::backend::Statement;
use pim_data::cluster::{Access, CONTROL};
use pim_data::idempotency::KEPT_FOR;

use super::*;
use crate::signals::Hub;
use crate::workers::Stores;

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

struct Place {
    folder: PathBuf,
    clock: Clock,
    stores: Stores,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _leftover = std::fs::remove_dir_all(&self.folder);
    }
}

impl Place {
    async fn open() -> Self {
        let folder = std::env::temp_dir().join(format!("pim-upkeep-{}", Uuid::new_v4()));
        let clock = Clock::manual(Timestamp::from_micros(1_800_000_000_000_000));
        let hub = Hub::new(None).expect("binds");
        let stores = Stores::open(&folder, Some(2), Access::Shared, clock.clone(), &hub).await.expect("opens");
        Self { folder, clock, stores }
    }

    fn worker(&self) -> Upkeep {
        self.worker_that_signs_every(600)
    }

    fn worker_that_signs_every(&self, audit_checkpoint_secs: u64) -> Upkeep {
        let settings = UpkeepSettings { idempotency_sweep_secs: 7200, audit_checkpoint_secs };
        Upkeep::new(self.stores.cluster.clone(), &settings, self.stores.hub.chores()).expect("within bounds")
    }

    /// Of a program on the same stores whose clock is wrong.
    async fn worker_ahead_by(&self, time: Duration) -> Upkeep {
        let (clock, hub) = (Clock::manual(self.clock.now().plus(time)), Hub::new(None).expect("binds"));
        let stores = Stores::open(&self.folder, Some(2), Access::Shared, clock, &hub).await.expect("opens");
        let settings = UpkeepSettings { idempotency_sweep_secs: 7200, audit_checkpoint_secs: 600 };
        Upkeep::new(stores.cluster.clone(), &settings, stores.hub.chores()).expect("within bounds")
    }

    async fn checkpoints(&self) -> u64 {
        let report = self.stores.cluster.verify_audit().await.expect("verifies");
        assert!(report.verified, "{report:?}");
        report.checkpoints
    }
}

#[tokio::test]
async fn of_many_workers_one_does_what_is_due() {
    let place = Place::open().await;
    let workers: Vec<Upkeep> = (0..8).map(|_| place.worker()).collect();
    workers[0].enter().await.expect("enters");
    let look = async || {
        let looks = join_all(workers.iter().map(|worker| worker.look(ChoreName::AuditCheckpoint))).await;
        looks.into_iter().filter_map(|look| look.expect("looks")).collect::<Vec<_>>()
    };
    assert_eq!(look().await, Vec::<u64>::new(), "nothing is due yet");
    for number in 1..=3 {
        place.clock.advance(Duration::from_secs(600));
        assert_eq!(look().await, [number], "one does it, and once");
        assert_eq!(look().await, Vec::<u64>::new());
        assert_eq!(place.checkpoints().await, number);
    }
    let told = place.stores.hub.exposition(pim_telemetry::exposition::Format::OpenMetrics);
    assert!(told.contains(r#"pim_chore_runs_total{chore="audit_checkpoint",outcome="done"} 3"#), "{told}");
}

#[tokio::test]
async fn a_worker_that_is_at_it_keeps_others_away_until_its_lease_is_over() {
    let place = Place::open().await;
    let (dead, other) = (place.worker(), place.worker());
    dead.enter().await.expect("enters");
    place.clock.advance(Duration::from_secs(600));
    assert!(dead.take(ChoreName::AuditCheckpoint).await.expect("takes"));
    place.clock.advance(CHORE_LEASE);
    assert_eq!(other.look(ChoreName::AuditCheckpoint).await.expect("looks"), None);
    place.clock.advance(Duration::from_secs(1));
    assert_eq!(other.look(ChoreName::AuditCheckpoint).await.expect("looks"), Some(1));
    assert!(
        !dead.finish(ChoreName::AuditCheckpoint, 9, false).await.expect("finishes"),
        "the one that was late changes nothing"
    );
    assert_eq!(other.look(ChoreName::AuditCheckpoint).await.expect("looks"), None, "due again after its time");
}

/// Guard: a setting that was lowered does not wait for what the larger one had written down, and others that still have the
/// larger one do not make it be done over and over.
#[tokio::test]
async fn a_time_that_was_lowered_counts_at_once() {
    let place = Place::open().await;
    let (before, after) = (place.worker_that_signs_every(86_400), place.worker_that_signs_every(60));
    before.enter().await.expect("enters");
    place.clock.advance(Duration::from_secs(61));
    assert_eq!(before.look(ChoreName::AuditCheckpoint).await.expect("looks"), None);
    assert_eq!(after.look(ChoreName::AuditCheckpoint).await.expect("looks"), Some(1));
    assert_eq!(after.look(ChoreName::AuditCheckpoint).await.expect("looks"), None, "due again after its time");
    let mut done = 0;
    for _second in 0..180 {
        place.clock.advance(Duration::from_secs(1));
        for worker in [&before, &after] {
            done += u32::from(worker.look(ChoreName::AuditCheckpoint).await.expect("looks").is_some());
        }
    }
    assert!((3..=6).contains(&done), "each within its time, not both in turns: {done}");
}

/// Guard: a clock that was a year ahead for a moment stops neither what it has done nor what it was at.
#[tokio::test]
async fn a_clock_that_jumped_ahead_and_came_back_stops_no_chore() {
    let place = Place::open().await;
    let worker = place.worker();
    worker.enter().await.expect("enters");
    let wrong = place.worker_ahead_by(YEAR).await;
    assert_eq!(wrong.look(ChoreName::AuditCheckpoint).await.expect("looks"), Some(1));
    assert!(wrong.take(ChoreName::IdempotencySweep).await.expect("takes"), "and dies of it");
    assert_eq!(worker.look(ChoreName::AuditCheckpoint).await.expect("looks"), Some(2));
    place.clock.advance(Duration::from_secs(7200));
    assert_eq!(worker.look(ChoreName::IdempotencySweep).await.expect("looks"), Some(0), "no lease is that long");
}

/// Guard: a clock that stays wrong makes no two workers undo each other's word every second.
#[tokio::test]
async fn workers_whose_clocks_disagree_do_no_chore_in_turns() {
    let place = Place::open().await;
    let (worker, wrong) = (place.worker(), place.worker_ahead_by(YEAR).await);
    worker.enter().await.expect("enters");
    let mut done = 0;
    for _second in 0..10 {
        for worker in [&wrong, &worker] {
            done += u32::from(worker.look(ChoreName::AuditCheckpoint).await.expect("looks").is_some());
        }
        place.clock.advance(Duration::from_secs(1));
    }
    assert!((2..=3).contains(&done), "{done}");
}

/// Guard: what was not believed and fails is overdue from then on, as the gauge tells.
#[tokio::test]
async fn what_was_not_believed_and_fails_is_overdue() {
    let place = Place::open().await;
    place.worker_that_signs_every(86_400).enter().await.expect("enters");
    let (dead, other) = (place.worker(), place.worker());
    assert!(dead.take(ChoreName::AuditCheckpoint).await.expect("takes"));
    place.clock.advance(Duration::from_secs(30));
    assert_eq!(other.look(ChoreName::AuditCheckpoint).await.expect("looks"), None);
    let told = place.stores.hub.exposition(pim_telemetry::exposition::Format::OpenMetrics);
    assert!(told.contains(r#"pim_chore_overdue_seconds{chore="audit_checkpoint"} 30"#), "{told}");
}

#[tokio::test]
async fn a_sweep_removes_what_is_older_than_promised() {
    let place = Place::open().await;
    let worker = place.worker();
    worker.enter().await.expect("enters");
    let db = place.stores.cluster.database(CONTROL).expect("a database");
    let insert = "INSERT INTO idempotency (scope, bucket, body, status, answer, n, request_id, created_at) \
                  VALUES (randomblob(32), 1, zeroblob(32), 201, '{}', 1, zeroblob(16), ?)";
    let old = place.clock.now();
    let fill = (0..2500).map(|_| Statement::sqlite(insert).bind(old)).collect();
    db.begin().await.expect("begins").commit_with(fill).await.expect("fills");
    place.clock.advance(KEPT_FOR);
    assert_eq!(worker.look(ChoreName::IdempotencySweep).await.expect("looks"), Some(0), "still promised");
    place.clock.advance(Duration::from_secs(7200));
    assert_eq!(worker.look(ChoreName::IdempotencySweep).await.expect("looks"), Some(2500), "all of it, in rounds");
}

/// Guard: a shard that fails keeps nothing old on the others, however much of it there is; that it failed is told afterwards.
#[tokio::test]
async fn a_sweep_goes_on_beside_a_shard_that_fails() {
    let place = Place::open().await;
    let worker = place.worker();
    worker.enter().await.expect("enters");
    let [db, broken] = [CONTROL, ShardId(0)].map(|shard| place.stores.cluster.database(shard).expect("a database"));
    let insert = "INSERT INTO idempotency (scope, bucket, body, status, answer, n, request_id, created_at) \
                  VALUES (randomblob(32), 1, zeroblob(32), 201, '{}', 1, zeroblob(16), ?)";
    let old = place.clock.now();
    let fill = (0..2500).map(|_| Statement::sqlite(insert).bind(old)).collect();
    db.begin().await.expect("begins").commit_with(fill).await.expect("fills");
    let mut tx = broken.begin().await.expect("begins");
    tx.script("ALTER TABLE idempotency RENAME TO elsewhere").await.expect("runs");
    tx.commit().await.expect("commits");
    place.clock.advance(KEPT_FOR + Duration::from_secs(1));
    let told = worker.look(ChoreName::IdempotencySweep).await;
    assert!(matches!(told, Err(UpkeepError::Sweep(_))), "{told:?}");
    let left = db.query(Statement::same("SELECT COUNT(*) FROM idempotency")).await.expect("reads");
    assert_eq!(left[0].count(0).expect("a count"), 0);
}

/// Guard: what cannot be done leaves a row, a record and an event with each lease, not with each look.
#[tokio::test]
async fn a_chore_that_failed_is_left_alone_for_its_lease() {
    let place = Place::open().await;
    let worker = place.worker();
    worker.enter().await.expect("enters");
    let db = place.stores.cluster.database(ShardId(0)).expect("a database");
    let mut tx = db.begin().await.expect("begins");
    tx.script("ALTER TABLE idempotency RENAME TO elsewhere").await.expect("runs");
    tx.commit().await.expect("commits");
    place.clock.advance(Duration::from_secs(7200));
    let look = async || worker.look(ChoreName::IdempotencySweep).await;
    let version = async || worker.row(ChoreName::IdempotencySweep).await.expect("reads").map(|row| row.version);
    let before = version().await.expect("is entered");
    assert!(matches!(look().await, Err(UpkeepError::Sweep(_))));
    for _second in 0..10 {
        place.clock.advance(Duration::from_secs(1));
        assert_eq!(look().await.expect("leaves it alone"), None);
    }
    assert_eq!(version().await, Some(before + 1), "it was taken once");
    place.clock.advance(CHORE_LEASE);
    assert!(matches!(look().await, Err(UpkeepError::Sweep(_))), "it is tried again");
    assert_eq!(version().await, Some(before + 2));
}

/// Guard: `finish` makes a sweep due again that did not reach the end; else records that come faster would stay for ever.
#[tokio::test]
async fn what_a_sweep_has_left_is_due_at_once() {
    let place = Place::open().await;
    let worker = place.worker();
    worker.enter().await.expect("enters");
    let db = place.stores.cluster.database(CONTROL).expect("a database");
    let insert = "INSERT INTO idempotency (scope, bucket, body, status, answer, n, request_id, created_at) \
                  WITH RECURSIVE many(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many WHERE n < 100500) \
                  SELECT randomblob(32), 1, zeroblob(32), 201, '{}', 1, zeroblob(16), ? FROM many";
    let fill = vec![Statement::sqlite(insert).bind(place.clock.now())];
    db.begin().await.expect("begins").commit_with(fill).await.expect("fills");
    place.clock.advance(KEPT_FOR + Duration::from_secs(1));
    let look = async || worker.look(ChoreName::IdempotencySweep).await.expect("looks");
    assert_eq!(look().await, Some(100_000), "as much as a run removes");
    assert_eq!(look().await, Some(500));
    assert_eq!(look().await, None, "due again after its time");
}

#[test]
fn settings_have_bounds() {
    let bad = UpkeepSettings { audit_checkpoint_secs: 0, ..UpkeepSettings::default() };
    assert_eq!(bad.check().map_err(|error| error.key), Err("audit_checkpoint_secs"));
    let bad = UpkeepSettings { idempotency_sweep_secs: DAY_SECS + 1, ..UpkeepSettings::default() };
    assert_eq!(bad.check().map_err(|error| error.key), Err("idempotency_sweep_secs"));
}
