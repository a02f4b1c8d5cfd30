//! Power cuts while retention removes old audit records: none is ever gone without a signed tombstone that was on the disk
//! before it, and the next run goes on where the last was cut off.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use pim_core::clock::Clock;
use pim_data::audit::VerifyReport;
use pim_data::cluster::Access;
use pim_lab::seed::{SeedSettings, seed};
use pim_lab::signals::Hub;
use pim_lab::workers::Stores;
use pim_testkit::caller::{Caller, fresh_key};
use pim_testkit::disk::{Disk, Unsynced};
use pim_testkit::folder::Folder;
use pim_testkit::program::Program;
use pim_testkit::random::Random;
use serde_json::json;

/// As slow as a turning disk: a run takes long enough to be cut.
const SYNC_US: u32 = 8_000;
const CUTS: u64 = 4;
const RUNS_MAX: usize = 40;
const PATIENCE: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_micros(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

async fn open(data_dir: &Path, clock: Clock) -> Stores {
    Stores::open(data_dir, Some(2), Access::Exclusive, clock, &Hub::new(None).unwrap()).await.unwrap()
}

/// A lab that was seeded half a year ago.
async fn aged(data_dir: &Path) {
    let stores = open(data_dir, Clock::stepping(Clock::system().now().minus(180 * DAY), STEP)).await;
    let asked = SeedSettings { patients: 600, seed: 7, history_percent: 2 };
    seed(&stores, &asked, |_| {}).await.unwrap();
}

/// Brings a folder onto the disk, everything synced.
fn copy(from: &Path, disk: &Disk) {
    let script = format!(
        "cd {}; find . -type d | while read it; do mkdir -p \"$ROOT/$it\"; done; \
         find . -type f | while read it; do dd if=\"$it\" of=\"$ROOT/$it\" conv=fsync; done; \
         cd \"$ROOT\"; find . -type d | while read it; do sync \"$it\"; done",
        from.display()
    );
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", &script]).env("ROOT", disk.root()).envs(disk.environment()).stderr(Stdio::null());
    assert!(shell.status().unwrap().success(), "{script}");
}

async fn start(disk: &Disk) -> Program {
    let data_dir = disk.root().display().to_string();
    let arguments = ["--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--shards", "2", "--traffic", "off", "--json"];
    Program::start_on(disk, "services", &arguments).await.expect("services starts on what was synced")
}

/// Looks at a copy: what somebody else than the program wrote on the disk, the disk would not know of.
async fn verified(disk: &Disk) -> VerifyReport {
    let folder = Folder::new("looked-at").unwrap();
    let mut copying = Command::new("cp");
    copying.arg("-r").arg(disk.root().join(".")).arg(folder.path());
    assert!(copying.status().unwrap().success());
    let report = open(folder.path(), Clock::system()).await.cluster.verify_audit().await.unwrap();
    assert!(report.verified, "{report:?}");
    report
}

/// Waits until there is a line among the checkpoints.
async fn signed(disk: &Disk) {
    let lines = disk.root().join("audit-checkpoints.jsonl");
    let begun = std::time::Instant::now();
    while lines.metadata().map_or(0, |is| is.len()) == 0 {
        assert!(begun.elapsed() < PATIENCE, "no tombstone is signed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn and_the_next_run_goes_on() {
    let folder = Folder::new("aged").unwrap();
    aged(folder.path()).await;
    let mut disk = Disk::new(SYNC_US).unwrap();
    copy(folder.path(), &disk);
    let mut random = Random::of(20_260_303);
    let whole = verified(&disk).await.records;
    let (mut services, mut left) = (start(&disk).await, whole);
    for cut in 0..CUTS {
        let sre = Caller::sign_in(services.told("gateway"), "sre").await.unwrap();
        let running = tokio::spawn(async move { sre.post("/v1/admin/retention", &fresh_key(), &json!({})).await });
        // The first run signs a tombstone and then removes; those after it go on behind the same one.
        if cut == 0 {
            signed(&disk).await;
        }
        tokio::time::sleep(Duration::from_millis(100 + random.below(300) + cut.min(1) * 400)).await;
        services.kill().await.unwrap();
        let _unanswered = running.await;
        let unsynced = if cut % 2 == 0 { Unsynced::Lost } else { Unsynced::Some(&mut random) };
        disk.lose_power(unsynced).unwrap();
        let report = verified(&disk).await;
        println!("cut {cut}: {} of {whole} records are there, {} checkpoints", report.records, report.checkpoints);
        left = left.min(report.records);
        services = start(&disk).await;
    }
    assert!(left < whole, "no cut came after a removal: the test shows nothing");
    let sre = Caller::sign_in(services.told("gateway"), "sre").await.unwrap();
    for _ in 0..RUNS_MAX {
        let (status, told) = sre.post("/v1/admin/retention", &fresh_key(), &json!({})).await.unwrap();
        assert!(status.is_success(), "{told:#}");
        let items = told["items"].as_array().expect("items");
        if items.iter().all(|item| item["left"] == 0) {
            break;
        }
    }
    let (_, told) = sre.post("/v1/admin/retention", &fresh_key(), &json!({"dry_run": true})).await.unwrap();
    assert_eq!(told["items"], json!([]), "nothing is left: {told:#}");
    assert_eq!(services.stop().await.unwrap().0, Some(0));
    verified(&disk).await;
}
