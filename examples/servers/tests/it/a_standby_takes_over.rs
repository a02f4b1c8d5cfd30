//! A standby has what its primary acknowledged, and takes its place.

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
