//! Power cuts at seeded random instants under mixed writes: the same holds when all that was not synced is gone.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use pim_testkit::disk::{Cut, Disk, Unsynced};
use pim_testkit::folder::Folder;
use pim_testkit::program::Program;
use pim_testkit::random::Random;
use serde_json::json;

use crate::workload::{Workload, no_chores, settled};

/// As slow as a turning disk: an answer that does not wait for it is there first.
const SYNC_US: u32 = 8_000;

async fn start(disk: &Disk, settings: &Folder) -> Program {
    let data_dir = disk.root().display().to_string();
    let config = settings.path().join("services.yaml");
    std::fs::write(&config, json!({"upkeep": no_chores()}).to_string()).expect("a settings file");
    let config = config.display().to_string();
    let common = ["--config", &config, "--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--json"];
    let arguments = [&common[..], &["--patients", "50", "--traffic", "off"]].concat();
    Program::start_on(disk, "services", &arguments).await.expect("services starts on what was synced")
}

/// Half of the cuts take all that was not synced; the others leave a random part of it, sector by sector.
fn unsynced(cut: u64, random: &mut Random) -> Unsynced<'_> {
    if cut % 4 < 2 { Unsynced::Lost } else { Unsynced::Some(random) }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_every_cut_the_acknowledged_is_there_once() {
    let cuts: u64 = std::env::var("LAB_TEST_CRASH_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let mut disk = Disk::new(SYNC_US).unwrap();
    let settings = Folder::new("cuts").unwrap();
    let workload = Workload::default();
    let mut random = Random::of(20_260_302);
    let (mut caught, mut cuts_caught, mut retried, mut lost) = (0, 0, 0, 0);
    let mut services = start(&disk, &settings).await;
    let before = settled(services.told("gateway")).await;
    for cut in 0..cuts {
        let writers = workload.begin(services.told("gateway")).await;
        workload.acknowledgement().await;
        tokio::time::sleep(Duration::from_millis(random.below(400))).await;
        // Every second cut comes right after an answer, when what was answered must be on the disk.
        if cut.is_multiple_of(2) {
            workload.acknowledgement().await;
        }
        let flying = workload.in_flight();
        services.kill().await.unwrap();
        let Cut { files, bytes } = disk.lose_power(unsynced(cut, &mut random)).unwrap();
        writers.end().await;
        services = start(&disk, &settings).await;
        let (unknown, answered) = workload.retry(services.told("gateway")).await;
        (caught, retried, lost) = (caught + flying, retried + unknown + answered, lost + bytes);
        cuts_caught += u64::from(flying > 0);
        let total = workload.records().await;
        println!(
            "cut {cut}: {bytes} bytes of {files} files not synced, {flying} writes in flight, {unknown} without an \
             answer, {total} records so far"
        );
    }
    assert!(2 * cuts_caught >= cuts, "{cuts_caught} of {cuts} cuts met a write: the test shows too little");
    assert!(lost > 0, "everything was synced: the test shows nothing");
    let summary = workload.check_and_stop(services, &before).await;
    println!(
        "{cuts} power cuts, {cuts_caught} of them with {caught} writes in flight, {lost} bytes not synced, {retried} sent \
         again, {} records checked, {} facts, audit verified",
        workload.records().await,
        summary["facts"]
    );
}

/// Runs a shell on the disk.
fn run(disk: &Disk, script: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", script]).current_dir(disk.root()).envs(disk.environment()).stderr(Stdio::null());
    assert!(shell.status().unwrap().success(), "{script}");
}

fn length(path: &Path) -> Option<u64> {
    path.metadata().ok().map(|is| is.len())
}

#[test]
fn the_disk_forgets_what_was_not_synced_and_nothing_else() {
    let mut disk = Disk::new(0).unwrap();
    let root = disk.root();
    run(&disk, "mkdir folder && dd if=/dev/zero of=folder/kept bs=1000 count=1 conv=fsync && sync folder && sync .");
    run(&disk, "dd if=/dev/zero of=empty bs=1000 count=1 && sync .");
    run(&disk, "dd if=/dev/zero of=nameless bs=1000 count=1 conv=fsync");
    run(&disk, "dd if=/dev/zero of=folder/kept bs=1000 seek=1 count=1 conv=notrunc && mv folder/kept folder/moved");
    assert_eq!(length(&root.join("folder/moved")), Some(2000), "the program sees what it wrote");
    let cut = disk.lose_power(Unsynced::Lost).unwrap();
    assert_eq!(length(&root.join("folder/kept")), Some(1000), "what was synced is there under the synced name");
    assert_eq!(length(&root.join("folder/moved")), None);
    assert_eq!(length(&root.join("empty")), Some(0), "a name without contents");
    assert_eq!(length(&root.join("nameless")), None, "contents without a name");
    assert_eq!(cut, Cut { files: 3, bytes: 2000 });

    run(&disk, "rm folder/kept && dd if=/dev/zero of=other bs=1000 count=1 conv=fsync && sync .");
    disk.lose_power(Unsynced::Lost).unwrap();
    assert_eq!(length(&root.join("folder/kept")), Some(1000), "a removal that was not synced has not happened");
    assert_eq!(length(&root.join("other")), Some(1000));
    run(&disk, "dd if=/dev/zero of=folder/kept bs=10 count=1 conv=fsync");
    disk.lose_power(Unsynced::Lost).unwrap();
    assert_eq!(length(&root.join("folder/kept")), Some(10), "a synced cut has happened");
}

/// Guard: `begin_sync`. Whoever answers a write by a sync that had begun before is found out by a power cut.
#[test]
fn what_is_written_while_a_sync_runs_is_none_of_it() {
    let mut disk = Disk::new(300_000).unwrap();
    let file = disk.root().join("file");
    let (mut child, marks) = (Command::new(std::env::current_exe().unwrap()), Folder::new("marks").unwrap());
    child.env(MARK, marks.path().join("begun"));
    child.args(["--exact", "power_cuts_lose_nothing::a_child_writes_while_it_syncs"]).env(SYNCED, &file);
    assert!(child.envs(disk.environment()).output().unwrap().status.success());
    disk.lose_power(Unsynced::Lost).unwrap();
    assert_eq!(length(&file), Some(1000));
}

/// Tells the child which file, and the disk where to say that a sync has begun.
const SYNCED: &str = "LAB_TEST_SYNCED";
const MARK: &str = "FORGETFUL_MARK";

/// The child of the test above; does nothing when nobody asks for it.
#[tokio::test]
async fn a_child_writes_while_it_syncs() {
    let Some(path) = std::env::var_os(SYNCED).map(PathBuf::from) else { return };
    let mut file = File::create(&path).unwrap();
    file.write_all(&[1; 1000]).unwrap();
    let synced = file.try_clone().unwrap();
    let syncing = std::thread::spawn(move || synced.sync_data().unwrap());
    let begun = PathBuf::from(std::env::var_os(MARK).unwrap());
    while !begun.exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    file.write_all(&[2; 1000]).unwrap();
    syncing.join().unwrap();
    File::open(path.parent().unwrap()).unwrap().sync_all().unwrap();
}

#[test]
fn a_disk_may_keep_some_sectors_of_what_was_not_synced() {
    let mut disk = Disk::new(0).unwrap();
    let path = disk.root().join("file");
    run(&disk, "dd if=/dev/zero of=file bs=512 count=200 conv=fsync && sync .");
    run(&disk, "tr '\\0' x < /dev/zero | dd of=file bs=512 count=200 iflag=fullblock conv=notrunc");
    disk.lose_power(Unsynced::Some(&mut Random::of(1))).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let whole = |sector: &&[u8], byte: u8| sector.iter().all(|found| *found == byte);
    let new = bytes.chunks(512).filter(|sector| whole(sector, b'x')).count();
    let old = bytes.chunks(512).filter(|sector| whole(sector, 0)).count();
    assert!(new > 50 && old > 50 && new + old == 200, "{new} new sectors, {old} old ones");
}
