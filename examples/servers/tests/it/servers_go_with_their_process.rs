//! Whatever ends a test process, its servers and their folder end too, and nobody else's.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pim_servers::fleet::Fleet;
use pim_servers::temporary::{TemporaryFleet, TemporaryServers};

/// Tells the child that it is one, and what it restores.
const HOLD: &str = "LAB_TEST_HOLD";
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn also_when_it_is_killed() {
    goes_with_a_child("a_child_holds_one", Path::new("1"));
}

/// Guard: so do servers that were restored, until they are stopped: what is made to agree with them takes its time.
#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn restored_ones_too_until_they_are_stopped() {
    let place = TemporaryServers::new().expect("a folder");
    let base = place.folder().join("base");
    let _goes = Removed(["killed", "restored"].map(|name| place.folder().join(name)));
    let fleet = TemporaryFleet::new(1).expect("starts");
    fleet.back_up(&base, &mut |_| {}).expect("is copied");
    goes_with_a_child("a_child_restores", &base);
    let folder = place.folder().join("restored");
    let restored = Fleet::restore(&base, &folder, None, &mut |_| {}).expect("is restored");
    assert!(!processes_of(&folder).is_empty(), "they run");
    restored.stop().expect("stops");
    wait_until("a server", || processes_of(&folder).is_empty());
    Fleet::open(&folder).expect("is there").start().expect("starts");
}

/// Whatever happens to the test.
struct Removed([PathBuf; 2]);

impl Drop for Removed {
    fn drop(&mut self) {
        for folder in &self.0 {
            let _absent = Fleet::remove(folder);
        }
    }
}

/// A test of this file, which holds servers in another process; that one is killed.
fn goes_with_a_child(test: &str, held: &Path) {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", &format!("servers_go_with_their_process::{test}"), "--nocapture", "--test-threads=1"])
        .env(HOLD, held)
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let told = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("holds ").map(PathBuf::from));
    let folder = told.expect("the child says where its servers are");
    assert!(!processes_of(&folder).is_empty(), "they run");
    child.kill().expect("is killed");
    child.wait().expect("has ended");
    wait_until(&folder.display().to_string(), || !folder.exists() && processes_of(&folder).is_empty());
}

fn wait_until(what: &str, is_gone: impl Fn() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !is_gone() {
        assert!(Instant::now() < give_up, "{what} is still there");
        // Whoever cleans up needs the processor.
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// The child of a test above; does nothing when nobody asks for it.
#[test]
fn a_child_holds_one() {
    if std::env::var_os(HOLD).is_none() {
        return;
    }
    let servers = TemporaryServers::new().expect("a folder");
    let _server = servers.primary("held").expect("starts");
    hold(servers.folder());
}

/// The other one's.
#[test]
fn a_child_restores() {
    let Some(base) = std::env::var_os(HOLD).map(PathBuf::from) else { return };
    let folder = base.with_file_name("killed");
    let _restored = Fleet::restore(&base, &folder, None, &mut |_| {}).expect("is restored");
    hold(&folder);
}

fn hold(folder: &Path) -> ! {
    println!("\nholds {}", folder.display());
    loop {
        std::thread::park();
    }
}

#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn and_with_the_value() {
    let (stays, goes) = (TemporaryServers::new().expect("a folder"), TemporaryServers::new().expect("a folder"));
    let other = stays.primary("other").expect("starts");
    // PostgreSQL's own children show the name only.
    let name = format!("frozen_{}", std::process::id());
    let frozen = goes.primary(&name).expect("starts");
    frozen.freeze().expect("stands still");
    assert!(!processes_of(Path::new(&name)).is_empty());
    let folder = goes.folder().to_owned();
    drop(goes);
    assert!(!folder.exists(), "its folder is gone");
    wait_until("its process", || processes_of(&folder).is_empty());
    wait_until(&name, || processes_of(Path::new(&name)).is_empty());
    assert_eq!(other.sql("postgres", "SELECT 1").expect("nobody else's"), "1");
}

/// Whose command line names the folder or server.
fn processes_of(folder: &Path) -> Vec<String> {
    let lines = fs::read_dir("/proc").expect("processes").flatten().filter_map(|process| {
        let line = fs::read(process.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    let postgres = |line: &String| line.contains("postgres") && line.contains(&*folder.to_string_lossy());
    lines.filter(postgres).collect()
}
