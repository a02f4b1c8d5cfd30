//! Two projection workers on one data directory do each chore when it is due, and one of them at a time.

use std::time::{Duration, Instant};

use pim_core::clock::Clock;
use pim_data::backend::Statement;
use pim_data::cluster::{Access, CONTROL};
use pim_lab::signals::Hub;
use pim_lab::workers::Stores;
use pim_testkit::folder::Folder;
use pim_testkit::program::Program;

const PATIENCE: Duration = Duration::from_secs(40);
const RUNS: u64 = 4;

async fn runs_of(stores: &Stores, chore: &str) -> u64 {
    let runs = Statement::sqlite("SELECT runs FROM chore_row WHERE name = ?").bind(chore);
    let rows = stores.cluster.database(CONTROL).unwrap().query(runs).await.unwrap();
    rows[0].count(0).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn by_two_workers_at_once() {
    let folder = Folder::new("chores").unwrap();
    let data_dir = folder.path().display().to_string();
    let every = ["upkeep.audit_checkpoint_secs=1", "upkeep.idempotency_sweep_secs=1"];
    let arguments = ["--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--set", every[0], "--set", every[1]];
    let one = Program::start("projection-worker", &arguments).await.unwrap();
    let other = Program::start("projection-worker", &arguments).await.unwrap();
    let hub = Hub::new(None).unwrap();
    let stores = Stores::open(folder.path(), None, Access::Shared, Clock::system(), &hub).await.unwrap();
    let since = Instant::now();
    while runs_of(&stores, "audit_checkpoint").await < RUNS || runs_of(&stores, "idempotency_sweep").await < RUNS {
        assert!(since.elapsed() < PATIENCE, "chores are not done");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Whoever is told to stop in the middle of a chore leaves it to the other, and the last one to nobody.
    let codes = [one.stop().await.unwrap().0, other.stop().await.unwrap().0];
    assert_eq!(codes, [Some(0), Some(0)]);
    let report = stores.cluster.verify_audit().await.unwrap();
    assert!(report.verified, "{report:?}");
    let (signed, runs) = (report.checkpoints, runs_of(&stores, "audit_checkpoint").await);
    // Each of the two signs once more when it stops.
    assert!((runs + 2..=runs + 4).contains(&signed), "{signed} checkpoints of {runs} runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn never_outside_the_bounds_of_its_settings() {
    let folder = Folder::new("chores").unwrap();
    let data_dir = folder.path().display().to_string();
    let arguments = ["--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--set", "upkeep.audit_checkpoint_secs=0"];
    assert!(Program::start("projection-worker", &arguments).await.is_err());
}
