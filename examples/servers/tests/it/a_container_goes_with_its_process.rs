//! A container takes connections once it is there, and is removed with whoever started it.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pim_servers::container;

#[test]
#[ignore = "needs a Docker engine: `cargo xtask test` runs it where one answers"]
fn and_with_the_value() {
    let contained = container::postgres().expect("starts");
    let id = contained.id().to_owned();
    assert!(is_there(&id));
    let address = contained.dsn();
    let address = address.rsplit('@').next().and_then(|rest| rest.split('/').next()).expect("an address");
    std::net::TcpStream::connect(address).expect("takes connections");
    drop(contained);
    assert!(!is_there(&id), "it is removed");
}

fn is_there(id: &str) -> bool {
    listed("{{.ID}}").lines().any(|line| line == id)
}

fn listed(what: &str) -> String {
    let listed = Command::new("docker").args(["ps", "--all", "--no-trunc", "--format", what]).output();
    String::from_utf8_lossy(&listed.expect("lists").stdout).into_owned()
}

/// Tells the child that it is one.
const HOLD: &str = "LAB_TEST_HOLD";
const PATIENCE: Duration = Duration::from_secs(30);

/// Guard: a container goes also when its process is killed before it takes connections.
#[test]
#[ignore = "needs a Docker engine: `cargo xtask test` runs it where one answers"]
fn also_when_that_is_killed_while_it_starts() {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "a_container_goes_with_its_process::a_child_starts_one", "--ignored", "--test-threads=1"])
        .env(HOLD, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let name = format!("pim-postgres-{}-", child.id());
    let is_there = || listed("{{.Names}}").lines().any(|line| line.starts_with(&name));
    let has_come = within(PATIENCE, is_there);
    child.kill().and_then(|()| child.wait()).expect("is killed");
    let has_gone = within(PATIENCE, || !is_there());
    if !has_gone {
        let left = listed("{{.Names}}").lines().find(|line| line.starts_with(&name)).map(str::to_owned);
        let _gone = Command::new("docker").args(["rm", "--force", "--volumes"]).args(left).output();
    }
    assert!(has_come && has_gone, "came: {has_come}, went: {has_gone}");
}

/// The child of the test above; does nothing when nobody asks for it.
#[test]
#[ignore = "is the other process of a test"]
fn a_child_starts_one() {
    if std::env::var_os(HOLD).is_some() {
        let _contained = container::postgres().expect("starts");
        std::thread::park();
    }
}

fn within(patience: Duration, holds: impl Fn() -> bool) -> bool {
    let give_up = Instant::now() + patience;
    while Instant::now() < give_up {
        if holds() {
            return true;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    false
}
