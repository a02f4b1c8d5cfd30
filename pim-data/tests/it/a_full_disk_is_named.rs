//! A server without room on its disk is said to have none, refuses what it cannot keep, and goes on where there is room again.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pim_core::id::Id;
use pim_data::backend::DbError;
use pim_data::cluster::{Cluster, EndpointFinding};
use pim_data::consistency::Consistency;
use pim_data::unit::UnitError;
use pim_servers::local::{LocalServer, Stop};
use pim_servers::small_disk::SmallDisk;

use super::ensemble::{DATABASE, Ensemble, PATIENCE, ROLES, points, request, set, until};
use super::world::{Account, Customer, ShopResource, tell, write};

/// A new server, two segments of its log, and some.
const DISK_KB: u64 = 112 * 1024;
/// More than fit into any room that is left.
const MANY: usize = 20_000;
const SOON: Duration = Duration::from_secs(5);

/// A primary whose rows and log share a small disk.
struct Small {
    server: LocalServer,
    ballast: PathBuf,
    _disk: SmallDisk,
}

impl Small {
    fn new(ensemble: &Ensemble) -> Self {
        let disk = SmallDisk::mount(&ensemble.servers.folder().join("small"), DISK_KB).expect("is mounted");
        let server = ensemble.servers.primary("small/full").expect("starts");
        server.sql("postgres", ROLES).expect("makes roles");
        server.sql("postgres", &format!("CREATE DATABASE \"{DATABASE}\" OWNER pim_test_owner")).expect("a database");
        ensemble.secrets.tell("c", &server);
        Self { server, ballast: disk.folder().join("ballast"), _disk: disk }
    }

    /// Not a byte is left.
    fn fill(&self) {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.ballast).expect("opens");
        while file.write(&[7; 4096]).is_ok_and(|written| written > 0) {}
    }

    fn make_room(&self) {
        fs::remove_file(&self.ballast).expect("removes");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Before its disk goes, where nobody would find it any more.
        let _stopped_already = self.server.stop(Stop::Immediate);
    }
}

async fn try_register(cluster: &Cluster) -> Result<Id<Customer>, UnitError> {
    let account = Account::new(Id::random());
    let mut unit = cluster.begin(&request(SOON), account.id);
    unit.save(&write(ShopResource::Account), &account)?;
    tell(&mut unit, &"registered ".repeat(20));
    unit.commit().await.map(|_| account.id)
}

/// Registers until somebody is refused; who was acknowledged until then, and the refusal.
async fn until_refused(cluster: &Cluster) -> (Vec<Id<Customer>>, UnitError) {
    let mut acknowledged = Vec::new();
    for _ in 0..MANY {
        match try_register(cluster).await {
            Ok(id) => acknowledged.push(id),
            Err(error) => return (acknowledged, error),
        }
    }
    panic!("there is room for {MANY} on a full disk");
}

async fn are_all_there(cluster: &Cluster, acknowledged: &[Id<Customer>]) {
    for id in acknowledged {
        assert_eq!(points(cluster, *id, &Consistency::Strong).await.expect("reads"), 0, "an acknowledged row is lost");
    }
    let verified = cluster.verify_audit().await.expect("reads");
    assert!(verified.verified, "{verified:?}");
}

/// PostgreSQL begins anew by itself, and gives up for good where it meets the full disk once more: it may be at that still.
async fn serves_again(small: &Small, cluster: &Cluster, id: Id<Customer>) {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if !small.server.is_running() {
            let _it_may_be_going_still = small.server.start();
        }
        match set(cluster, &request(SOON), id, 0).await {
            Ok(_) => return,
            Err(error) => assert!(Instant::now() < give_up, "there is room again: {error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs and to mount a disk: `cargo xtask test` runs it where they are"]
async fn where_rows_find_no_room_units_are_refused_and_reads_go_on() {
    let ensemble = Ensemble::new();
    let small = Small::new(&ensemble);
    let cluster = ensemble.open(&["c"], |_| {}).await;
    let first = try_register(&cluster).await.expect("there is room");
    // The log has a whole segment before it.
    small.server.sql(DATABASE, "SELECT pg_switch_wal(); CHECKPOINT").expect("answers");
    small.fill();
    let (mut acknowledged, refusal) = until_refused(&cluster).await;
    let UnitError::Database(error) = &refusal else { panic!("{refusal:?}") };
    assert!(matches!(error, DbError::Full { place } if place.contains('c')), "{error:?}");
    assert!(error.fix().is_some_and(|fix| fix.contains("disk")) && !error.is_ambiguous());
    acknowledged.push(first);
    are_all_there(&cluster, &acknowledged).await;
    assert!(small.server.is_running(), "rows that find no room stop no server");
    small.make_room();
    set(&cluster, &request(PATIENCE), first, 3).await.expect("there is room again");
    assert_eq!(points(&cluster, first, &Consistency::Strong).await.expect("reads"), 3);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs and to mount a disk: `cargo xtask test` runs it where they are"]
async fn where_the_log_finds_no_room_the_server_stops_and_comes_back_with_all_that_was_acknowledged() {
    let ensemble = Ensemble::new();
    let small = Small::new(&ensemble);
    let cluster = ensemble.open(&["c"], |_| {}).await;
    let mut acknowledged = vec![try_register(&cluster).await.expect("there is room")];
    small.fill();
    // The next segment of the log has no room either: PostgreSQL gives up rather than losing a commit.
    let gone = (0..20).map(|_| small.server.sql(DATABASE, "SELECT pg_switch_wal(); SELECT txid_current()"));
    assert!(gone.into_iter().any(|asked| asked.is_err()), "the log goes on without room");
    assert!(small.server.log_tail().contains("PANIC"), "{}", small.server.log_tail());
    let (more, refusal) = until_refused(&cluster).await;
    acknowledged.extend(more);
    // Whoever was under way when it stopped is told that it is not known, and nobody that it was done.
    let (UnitError::Database(error) | UnitError::Unknown(error)) = &refusal else { panic!("{refusal:?}") };
    assert!(error.fix().is_some_and(|fix| fix.contains("server") || fix.contains("primary")), "{error:?}");
    until(&cluster, "c", |endpoint| endpoint.finding == Some(EndpointFinding::Unreachable)).await;
    assert!(EndpointFinding::Unreachable.fix().contains("disk"));
    small.make_room();
    serves_again(&small, &cluster, acknowledged[0]).await;
    are_all_there(&cluster, &acknowledged).await;
}
