//! Base backups that are taken while everything writes, and the log behind them, make servers of any instant since; what is
//! damaged, missing or out of reach is refused by name.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pim_servers::fleet::{BackupError, Fleet, Instant, ServersBackup, backups_of};
use pim_servers::local::RecoveryError;
use pim_servers::temporary::TemporaryServers;

/// Rows of one table, each with the instants before it was sent and after it was acknowledged.
#[derive(Default)]
struct Writer {
    rows: Mutex<Vec<(u64, Instant, Instant)>>,
    is_over: AtomicBool,
}

impl Writer {
    fn begin(fleet: Fleet) -> (Arc<Self>, JoinHandle<()>) {
        let writer = Arc::new(Self::default());
        let ours = Arc::clone(&writer);
        (writer, thread::spawn(move || ours.write(&fleet)))
    }

    fn write(&self, fleet: &Fleet) {
        let mut number = 0;
        while !self.is_over.load(Ordering::SeqCst) {
            number += 1;
            // Who is the primary is asked each time: one takes over meanwhile.
            let sent = Instant::now();
            let insert = format!("INSERT INTO written VALUES ({number})");
            if fleet.servers_of(0).is_ok_and(|(primary, _)| primary.sql("shard-0", &insert).is_ok()) {
                self.rows.lock().unwrap().push((number, sent, Instant::now()));
            }
        }
    }

    fn until_more(&self, more: usize) {
        let wanted = self.rows.lock().unwrap().len() + more;
        while self.rows.lock().unwrap().len() < wanted {
            thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// Gone with the value.
struct Place(PathBuf);

impl Place {
    fn new(what: &str) -> Self {
        // As long as a checkout's may be: a server cuts a long command, and what is left of it archives nothing.
        let folder = std::env::temp_dir().join(format!("pim-{what}-{}-{}", std::process::id(), "long".repeat(30)));
        fs::create_dir(&folder).unwrap();
        // The user of the servers has to get in.
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        Self(folder)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for name in ["servers", "then", "now", "other"] {
            let _absent = Fleet::remove(&self.0.join(name));
        }
        let _gone = fs::remove_dir_all(&self.0);
    }
}

fn rows_in(fleet: &Fleet) -> Vec<u64> {
    let rows = fleet.servers_of(0).unwrap().0.sql("shard-0", "SELECT number FROM written ORDER BY 1").unwrap();
    rows.lines().map(|row| row.parse().unwrap()).collect()
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 0xFF;
    fs::write(file, bytes).unwrap();
}

fn segments(archive: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(archive).unwrap().flatten().map(|entry| entry.path());
    let mut files: Vec<_> = files.filter(|file| file.file_name().unwrap().len() == 24).collect();
    files.sort();
    files
}

#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn what_was_acknowledged_before_it_is_there_and_nothing_that_came_after() {
    let place = Place::new("restore");
    let folder = place.0.join("servers");
    let fleet = Fleet::create(&folder, 1).expect("starts");
    fleet.servers_of(0).unwrap().0.sql("shard-0", "CREATE TABLE written (number bigint PRIMARY KEY)").unwrap();
    let (writer, thread) = Writer::begin(Fleet::open(&folder).unwrap());
    writer.until_more(5);
    let base = backups_of(&folder).join("one").join("servers");
    let mut steps = Vec::new();
    let taken = fleet.back_up(&base, &mut |step| steps.push(step.to_owned())).expect("is copied");
    assert_eq!(steps.len(), 2, "a shard, and what is not sharded: {steps:?}");
    assert!(matches!(fleet.back_up(&base, &mut |_| {}), Err(BackupError::Taken { .. })));
    writer.until_more(5);
    // The standby takes over: the log goes on along another timeline.
    fleet.promote(0).expect("takes over");
    writer.until_more(5);
    let target = Instant::now();
    writer.until_more(5);
    writer.is_over.store(true, Ordering::SeqCst);
    thread.join().unwrap();
    fleet.close_archive().expect("is archived");
    let rows = writer.rows.lock().unwrap().clone();

    let found = ServersBackup::check(&base, &mut |_| {}).expect("is whole");
    assert_eq!((found.shards, found.finished_at), (1, taken.finished_at));
    let then = Fleet::restore(&base, &place.0.join("then"), Some(target), &mut |_| {}).expect("is restored");
    let restored = rows_in(&then.fleet);
    for (number, sent, acknowledged) in &rows {
        let is_there = restored.contains(number);
        assert!(is_there || *acknowledged > target, "{number} was acknowledged at {acknowledged}, before {target}");
        assert!(!is_there || *sent <= target, "{number} was sent at {sent}, after {target}");
    }
    assert!(then.reached <= target && then.has_archive);
    let state = &then.fleet.state().unwrap()[0];
    assert_eq!((state.primary.role, state.standby.role, state.is_synchronous), ("primary", "standby", true));

    // The servers are gone, and what the backup needs is not.
    let archive = fleet.archive().unwrap();
    Fleet::remove(&folder).expect("stops");
    let now = Fleet::restore(&base, &place.0.join("now"), None, &mut |_| {}).expect("is restored");
    assert!(rows.iter().all(|(number, ..)| rows_in(&now.fleet).contains(number)), "as far as the archive reaches");
    // It serves, also after a stop, and archives for itself.
    now.fleet.stop().expect("stops");
    now.fleet.start().expect("starts");
    now.fleet.back_up(&place.0.join("again"), &mut |_| {}).expect("is copied");
    assert_ne!(now.fleet.archive().unwrap(), archive);

    refuses(&place, &base, &taken, &archive.join("shard_0"));
}

/// Guards: nothing is restored to an instant that the log does not reach, nor from what is damaged.
fn refuses(place: &Place, base: &Path, taken: &ServersBackup, archive: &Path) {
    let other = place.0.join("other");
    let refused = |until| Fleet::restore(base, &other, until, &mut |_| {}).expect_err("is refused");
    let before = Instant(taken.finished_at.0 - 1);
    assert!(matches!(refused(Some(before)), BackupError::TooEarly { .. }));
    let refusal = refused(Some(Instant::now()));
    assert!(matches!(refusal, BackupError::Recovery(RecoveryError::Beyond { .. })), "{refusal}");
    assert!(!other.exists(), "nothing is left of what was not restored");
    // Somebody else restores to the same place, and was at it first.
    let of_somebody = other.join("of-somebody");
    let mut begins = |_: &str| fs::create_dir_all(&other).and_then(|()| fs::write(&of_somebody, "")).unwrap();
    let refusal = Fleet::restore(base, &other, None, &mut begins).expect_err("is refused");
    assert!(matches!(refusal, BackupError::Taken { .. }), "{refusal}");
    assert!(of_somebody.exists(), "it is theirs");
    fs::remove_dir_all(&other).unwrap();

    let away = archive.with_file_name("away");
    let all = archive.parent().unwrap();
    let hidden = all.with_file_name("hidden");
    fs::rename(all, &hidden).unwrap();
    assert!(matches!(refused(Some(Instant::now())), BackupError::NoArchive { .. }));
    fs::rename(&hidden, all).unwrap();

    // Of one shard.
    fs::rename(archive, &away).unwrap();
    assert!(matches!(refused(None), BackupError::NoArchive { folder } if folder == archive));
    // Its beginning, and all of it: from the base backup alone nobody would see that the rest is missing.
    fs::create_dir(archive).unwrap();
    assert!(matches!(refused(None), BackupError::Segment { what, .. } if what == "missing"));
    let last = segments(&away).pop().unwrap();
    fs::copy(&last, archive.join(last.file_name().unwrap())).unwrap();
    assert!(matches!(refused(None), BackupError::Segment { what, .. } if what == "missing"));
    fs::remove_dir_all(archive).unwrap();
    fs::rename(&away, archive).unwrap();

    let files = segments(archive);
    assert!(files.len() >= 3, "{files:?}");
    let middle = &files[files.len() - 2];
    fs::rename(middle, &away).unwrap();
    assert!(matches!(refused(None), BackupError::Segment { .. }), "a segment is missing");
    fs::rename(&away, middle).unwrap();
    flip(middle, 0);
    let refusal = refused(None);
    assert!(matches!(refusal, BackupError::Segment { .. }), "a segment is damaged: {refusal}");
    flip(middle, 0);
    ServersBackup::check(base, &mut |_| {}).expect("is whole again");
    flip(&base.join("shard_0").join("PG_VERSION"), 0);
    assert!(matches!(ServersBackup::check(base, &mut |_| {}), Err(BackupError::Damaged { .. })));
    flip(&base.join("shard_0").join("PG_VERSION"), 0);
    let manifest = base.join("servers.conf");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("version = ", "version = 1")).unwrap();
    assert!(matches!(refused(None), BackupError::Version { .. }));
    fs::remove_file(&manifest).unwrap();
    assert!(matches!(refused(None), BackupError::Absent { .. }));
}

/// Guard: `Fleet::close_archive` goes on behind a shard that fails.
#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn what_the_others_have_acknowledged_is_archived_beside_a_dead_primary() {
    let place = Place::new("archive");
    let fleet = Fleet::create(&place.0.join("servers"), 2).expect("starts");
    let base = place.0.join("base");
    fleet.back_up(&base, &mut |_| {}).expect("is copied");
    fleet.servers_of(0).unwrap().0.kill().expect("dies");
    let make = "CREATE TABLE written AS SELECT 7 AS number";
    fleet.servers_of(1).unwrap().0.sql("shard-1", make).unwrap();
    fleet.unsharded_server().unwrap().sql("control", make).unwrap();
    let refusal = fleet.close_archive().expect_err("a shard's log is not finished").to_string();
    assert!(refusal.starts_with("shard_0: "), "{refusal}");

    let then = Fleet::restore(&base, &place.0.join("then"), None, &mut |_| {}).expect("is restored");
    let asked = "SELECT number FROM written";
    assert_eq!(then.fleet.servers_of(1).unwrap().0.sql("shard-1", asked).unwrap(), "7");
    assert_eq!(then.fleet.unsharded_server().unwrap().sql("control", asked).unwrap(), "7");
}

/// Guard: segments of a primary that its successor never had do not make an archive a damaged one.
#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn what_a_failover_lost_is_nothing_that_the_archive_lacks() {
    let place = Place::new("lost");
    let fleet = Fleet::create(&place.0.join("servers"), 1).expect("starts");
    let base = place.0.join("base");
    fleet.back_up(&base, &mut |_| {}).expect("is copied");
    let (primary, standby) = fleet.servers_of(0).unwrap();
    let archive = fleet.archive().unwrap().join("shard_0");
    primary.sql("shard-0", "CREATE TABLE written AS SELECT 1 AS number").unwrap();
    standby.freeze().expect("stands still");
    primary.require_synchronous("").expect("acknowledges alone");
    // Or sockets bring it whole segments once it goes on: how many is up to the kernel and its load.
    let end = "SELECT bool_and(pg_terminate_backend(pid, 30000)) FROM pg_stat_replication";
    assert_eq!(primary.sql("postgres", end).unwrap(), "t", "somebody still sends the standby what is written");
    for number in 2..=5 {
        primary.sql("shard-0", &format!("INSERT INTO written VALUES ({number})")).unwrap();
        primary.close_segment(&archive).expect("is archived");
    }
    primary.kill().expect("dies");
    standby.thaw().expect("goes on");
    assert_eq!(fleet.take_over(0).expect("takes over"), standby.name());
    standby.sql("shard-0", "INSERT INTO written VALUES (7)").unwrap();
    fleet.close_archive().expect("is archived");
    let name = |file: &PathBuf| file.file_name().unwrap().to_string_lossy().into_owned();
    let archived: Vec<_> = segments(&archive).iter().map(name).collect();
    let newest = archived.iter().max().unwrap();
    let is_lost = |it: &String| it.starts_with("00000001") && it[8..] > newest[8..];
    assert!(archived.iter().any(is_lost), "nothing was lost: {archived:?}");

    let then = Fleet::restore(&base, &place.0.join("then"), None, &mut |_| {}).expect("is restored");
    let rows = rows_in(&then.fleet);
    assert!(rows.contains(&1) && rows.contains(&7) && !rows.contains(&2), "{rows:?}");
}

/// Guard: whoever copies a server that answers nobody is told so.
#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn nobody_waits_for_a_primary_that_stands_still() {
    let servers = TemporaryServers::new().expect("a folder");
    let primary = servers.primary("still").expect("starts");
    primary.freeze().expect("stands still");
    let outcome = thread::scope(|scope| {
        let copying = scope.spawn(|| primary.base_backup(&servers.folder().join("copy")));
        let give_up = std::time::Instant::now() + Duration::from_secs(30);
        while !copying.is_finished() && std::time::Instant::now() < give_up {
            thread::park_timeout(Duration::from_millis(50));
        }
        let is_told = copying.is_finished();
        // Or the copy, and this test with it, would wait for ever.
        primary.thaw().expect("goes on");
        is_told.then(|| copying.join().expect("ends"))
    });
    let refusal = outcome.expect("it waits").expect_err("it answers nobody").to_string();
    assert!(refusal.contains("timeout expired"), "{refusal}");
}
