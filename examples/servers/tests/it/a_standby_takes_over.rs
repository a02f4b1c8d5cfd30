//! A standby has what its primary acknowledged, and takes its place.

use std::fs;

use pim_servers::local::Stop;
use pim_servers::temporary::TemporaryServers;

#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn what_was_acknowledged_is_there_after_the_primary_was_killed() {
    let servers = TemporaryServers::new().expect("a folder");
    let primary = servers.primary("first").expect("starts");
    let standby = servers.standby(&primary, "second").expect("streams");
    primary.require_synchronous("second").expect("waits from now on");
    primary.sql("postgres", "CREATE TABLE fact (n int); INSERT INTO fact VALUES (7)").expect("is acknowledged");
    assert!(standby.is_standby().expect("answers"));
    assert!(standby.sql("postgres", "INSERT INTO fact VALUES (8)").is_err(), "a standby takes no writes");

    primary.kill().expect("is killed");
    assert!(!primary.is_running());
    standby.promote().expect("takes over");
    assert!(!standby.is_standby().expect("answers"));
    assert_eq!(standby.sql("postgres", "SELECT n FROM fact").expect("answers"), "7");
    standby.sql("postgres", "INSERT INTO fact VALUES (8)").expect("it waits for nobody");

    // Or a request to take over could lie there for five seconds.
    assert_eq!(standby.sql("postgres", "SHOW wal_retrieve_retry_interval").expect("answers"), "250ms");

    let third = servers.standby(&standby, "third").expect("a new primary can be followed");
    assert!(third.is_standby().expect("answers"));
}

/// Guards: what is acknowledged while a standby is copied is not in an unfinished copy alone.
#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn commits_wait_for_a_standby_and_not_for_its_copy() {
    let servers = TemporaryServers::new().expect("a folder");
    let primary = servers.primary("first").expect("starts");
    primary.sql("postgres", "CREATE TABLE fact (n int)").expect("waits for nobody yet");
    let told = [("log_replication_commands", "on"), ("log_line_prefix", "%a: ")];
    primary.configure(&told).expect("is told");
    primary.require_synchronous("second").expect("waits from now on");
    let waiting = std::thread::spawn({
        let primary = primary.clone();
        move || primary.sql("postgres", "INSERT INTO fact VALUES (7)")
    });
    let standby = servers.standby(&primary, "second").expect("streams");
    waiting.join().expect("ends").expect("is acknowledged");
    let held = "SELECT application_name, sync_state FROM pg_stat_replication";
    assert_eq!(primary.sql("postgres", held).expect("answers"), "second|sync");
    standby.promote().expect("takes over");
    assert_eq!(standby.sql("postgres", "SELECT n FROM fact").expect("answers"), "7");

    let log = fs::read_to_string(servers.folder().join("first/log")).expect("a log");
    let mut by_name = log.lines().filter(|line| line.starts_with("second: ") && line.contains("replication command"));
    assert!(log.contains("BASE_BACKUP"), "the log tells of what copies");
    assert!(by_name.all(|line| !line.contains("BASE_BACKUP") && !line.contains("REPLICATION_SLOT")), "{log}");
    assert_eq!(log.matches(": START_REPLICATION").count(), 2, "{log}");
    assert_eq!(log.lines().filter(|it| it.starts_with("second: ") && it.contains(": START_REPLICATION")).count(), 1);
}

#[test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
fn a_server_comes_back_on_its_port() {
    let servers = TemporaryServers::new().expect("a folder");
    let server = servers.primary("again").expect("starts");
    server.sql("postgres", "CREATE TABLE fact AS SELECT 1 AS n").expect("runs");
    for end in [Stop::Fast, Stop::Immediate] {
        server.stop(end).expect("stops");
        assert!(server.sql("postgres", "SELECT 1").is_err());
        server.start().expect("starts");
    }
    server.kill().expect("is killed");
    server.start().expect("recovers");
    assert_eq!(server.sql("postgres", "SELECT n FROM fact").expect("answers"), "1");
}
