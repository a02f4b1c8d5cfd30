//! What runs on a machine is seen by everybody there, with its command line.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pim_servers::temporary::{TemporaryFleet, TemporaryServers};

/// Those of all programs that run.
fn command_lines() -> HashSet<String> {
    let lines = fs::read_dir("/proc").expect("processes").flatten().map(|it| fs::read(it.path().join("cmdline")));
    lines.flatten().map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).collect()
}

/// Guards: neither who asks, nor who copies, nor who makes logins is told a password by its command line.
#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn while_servers_are_made_copied_and_asked() {
    let is_over = AtomicBool::new(false);
    let watch = || {
        let mut seen = HashSet::new();
        while !is_over.load(Ordering::SeqCst) {
            seen.extend(command_lines());
            thread::park_timeout(Duration::from_millis(2));
        }
        seen
    };
    let (fleet, mut seen) = thread::scope(|scope| {
        let watching = scope.spawn(watch);
        let fleet = TemporaryFleet::new(1);
        let copied = fleet.as_ref().map(|fleet| fleet.back_up(&fleet.secrets().with_file_name("copy"), &mut |_| {}));
        // Before anything may end this thread, for which the other one would go on.
        is_over.store(true, Ordering::SeqCst);
        copied.expect("starts").expect("is copied");
        (fleet.expect("starts"), watching.join().expect("has seen them"))
    });
    let (primary, _) = fleet.servers_of(0).expect("a shard");
    // One that is there for sure when somebody looks.
    thread::scope(|scope| {
        let asked = scope.spawn(|| primary.sql("postgres", "SELECT pg_sleep(3)"));
        while !asked.is_finished() {
            seen.extend(command_lines());
            thread::park_timeout(Duration::from_millis(2));
        }
        asked.join().expect("ends").expect("answers");
    });
    for program in ["pg_basebackup", "pg_sleep(3)"] {
        assert!(seen.iter().any(|line| line.contains(program)), "{program} was not seen");
    }
    let secret = fs::read_to_string(fleet.secrets().join("fleet")).expect("is there");
    let telling: Vec<_> = seen.iter().filter(|line| line.contains(&secret)).collect();
    assert!(telling.is_empty(), "{telling:#?}");
}

/// Guard: nor is a password in a file that others may read, while a server is made.
#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn nor_has_a_file_that_others_may_read() {
    let servers = TemporaryServers::new().expect("a folder");
    let file = servers.folder().join("one/password");
    let mut seen = HashSet::new();
    thread::scope(|scope| {
        let starting = scope.spawn(|| servers.primary("one").map(drop));
        while !starting.is_finished() {
            seen.extend(fs::metadata(&file).map(|it| it.permissions().mode() & 0o777));
            thread::park_timeout(Duration::from_millis(2));
        }
        starting.join().expect("ends").expect("starts");
    });
    assert_eq!(seen, HashSet::from([0o600]));
    assert!(!file.exists());
}
