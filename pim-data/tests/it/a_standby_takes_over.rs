//! A standby is promoted while programs run: they find it by themselves, write there alone, and lose nothing.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pim_core::id::Id;
use pim_core::problem::IntoProblem as _;
use pim_core::shard::ShardId;
use pim_data::backend::{DbError, Resolver, Secrets as _};
use pim_data::cluster::{Cluster, EndpointFinding, PrimaryState};
use pim_data::consistency::Consistency;
use pim_data::repository::Page;
use pim_data::unit::UnitError;
use tokio::net::{TcpListener, TcpStream};

use super::ensemble::{
    DATABASE, Ensemble, PATIENCE, patient, points, points_on, register, request, set, until, until_shard,
};
use super::moving::eventually;
use super::queueing::save_notes;
use super::world::{Account, Customer, CustomerNote, ShopResource, read, tell};
use crate::lines::Lines;

const SOON: Duration = Duration::from_millis(700);
/// Longer than it takes to find a successor.
const FAR_OFF: Duration = Duration::from_secs(20);

/// Whatever is written now fails in time, and is a 503 to the caller.
async fn is_refused(cluster: &Cluster, id: Id<Customer>) -> UnitError {
    let refused = set(cluster, &request(SOON), id, 99).await.expect_err("nobody takes it");
    let told = format!("{refused:?}");
    let error = set(cluster, &request(SOON), id, 99).await.expect_err("nobody takes it");
    assert_eq!(error.into_problem().status().as_u16(), 503, "{told}");
    refused
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn it_is_found_without_a_restart_and_a_returning_primary_is_never_written() {
    let ensemble = Ensemble::new();
    // Or a standby that is slow to answer leaves a read to the primary, which is dead.
    let cluster = ensemble.open(&["a", "b"], |servers| servers.settings.probe_max = PATIENCE).await;
    let id = register(&cluster).await.id;
    set(&cluster, &patient(), id, 1).await.expect("commits");
    until(&cluster, "b", |it| it.lag_ms.is_some_and(|lag| lag < 5_000)).await;

    ensemble.first.kill().expect("dies");
    until_shard(&cluster, |it| it.primary == Some(PrimaryState::Silent)).await;
    let refused = is_refused(&cluster, id).await;
    assert!(matches!(refused, UnitError::Database(DbError::NoPrimary { .. })), "{refused:?}");
    assert_eq!(points(&cluster, id, &Consistency::Eventual).await.expect("reads never stop"), 1);
    // Nor where there is nothing to be found.
    let look = read(ShopResource::Note);
    let listed = cluster.list::<CustomerNote>(&request(PATIENCE), &look, id, Page::FIRST, &Consistency::Eventual).await;
    assert_eq!(listed.expect("reads never stop"), []);

    ensemble.second.promote().expect("takes over");
    set(&cluster, &patient(), id, 2).await.expect("commits");
    assert_eq!(points_on(&ensemble.second, id), "2");
    assert_eq!(ensemble.signal("pim_data_failovers_total{}"), 1);

    // It knows nothing of its successor, takes writes, and its secret comes first in the map.
    ensemble.first.start().expect("is back");
    until(&cluster, "a", |it| it.finding == Some(EndpointFinding::FormerPrimary)).await;
    set(&cluster, &patient(), id, 3).await.expect("commits");
    assert_eq!((points_on(&ensemble.first, id), points_on(&ensemble.second, id)), ("1".to_owned(), "3".to_owned()));

    // Whoever starts now finds both and takes the newer one.
    drop(cluster);
    let cluster = ensemble.open(&["a", "b"], |_| {}).await;
    set(&cluster, &patient(), id, 4).await.expect("commits");
    assert_eq!((points_on(&ensemble.first, id), points_on(&ensemble.second, id)), ("1".to_owned(), "4".to_owned()));
}

/// Guard: whoever looks for the reason of what happened then finds it in the log, once, with which server came after which.
#[tokio::test]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn it_is_told_once_with_what_correlates() {
    let (lines, _listening) = Lines::listen();
    let ensemble = Ensemble::new();
    let cluster = ensemble.open(&["a", "b"], |_| {}).await;
    let id = register(&cluster).await.id;
    until(&cluster, "b", |it| it.lag_ms.is_some()).await;
    ensemble.first.kill().expect("dies");
    ensemble.second.promote().expect("takes over");
    set(&cluster, &patient(), id, 2).await.expect("commits");
    let told = lines.of("shard.primary_changed");
    assert_eq!(told.len(), 1, "{told:?}");
    for (name, value) in [
        ("shard_id", "0"),
        ("term", "2"),
        ("term_before", "1"),
        ("endpoint", "1"),
        ("endpoint_before", "0"),
        ("degraded_before", "false"),
    ] {
        assert_eq!(told[0].get(name).map(String::as_str), Some(value), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn a_call_that_hangs_at_a_frozen_primary_is_made_of_its_successor() {
    let ensemble = Ensemble::new();
    let change = |servers: &mut pim_data::cluster::Servers| servers.settings.probe_max = Duration::from_millis(300);
    let cluster = ensemble.open(&["a", "b"], change).await;
    let id = register(&cluster).await.id;
    set(&cluster, &patient(), id, 1).await.expect("connections are open");
    ensemble.first.freeze().expect("stands still");
    let hanging = tokio::spawn({
        let cluster = cluster.clone();
        async move { set(&cluster, &patient(), id, 2).await.map(drop) }
    });
    until_shard(&cluster, |it| it.primary == Some(PrimaryState::Silent)).await;
    ensemble.second.promote().expect("takes over");
    hanging.await.expect("no panic").expect("it does not wait for the frozen one until its deadline");
    assert_eq!(points_on(&ensemble.second, id), "2");
    ensemble.first.thaw().expect("goes on");
    until(&cluster, "a", |it| it.finding == Some(EndpointFinding::FormerPrimary)).await;
    set(&cluster, &patient(), id, 3).await.expect("commits");
    assert_eq!((points_on(&ensemble.first, id), points_on(&ensemble.second, id)), ("1".to_owned(), "3".to_owned()));
}

/// Guard: nor is a place kept while an idle connection to it is asked whether it is still there, or one of it is rolled back.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn no_place_is_kept_for_the_one_before() {
    let ensemble = Ensemble::new();
    let change = |servers: &mut pim_data::cluster::Servers| {
        let settings = &mut servers.settings;
        (settings.probe_max, settings.connect_timeout) = (Duration::from_millis(300), 2 * FAR_OFF);
        // Each is asked before it is lent.
        (settings.connections_max, settings.idle_check_after) = (2, Duration::ZERO);
    };
    let cluster = ensemble.open(&["a", "b"], change).await;
    let id = register(&cluster).await.id;
    let database = cluster.database(ShardId(0)).expect("a shard").clone();
    let (begun, idle) = (database.begin().await.expect("begins"), database.read().await.expect("lent"));
    drop(idle);
    ensemble.first.freeze().expect("stands still");
    drop(begun);
    let asking = tokio::spawn({
        let database = database.clone();
        async move { database.read().await.map(drop) }
    });
    until_shard(&cluster, |it| it.primary == Some(PrimaryState::Silent)).await;
    ensemble.second.promote().expect("takes over");
    until_shard(&cluster, |it| it.term == Some(2)).await;
    let asked = tokio::time::timeout(FAR_OFF, asking).await.expect("it waits for the frozen one");
    asked.expect("no panic").expect("gets one of the successor");
    let both = async { (database.read().await, database.read().await) };
    let both = tokio::time::timeout(FAR_OFF, both).await.expect("a place is kept for the frozen one");
    assert!(matches!(both, (Ok(_), Ok(_))), "{both:?}");
    drop(both);
    set(&cluster, &patient(), id, 2).await.expect("commits");
    ensemble.first.thaw().expect("goes on");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn a_changed_connection_string_is_picked_up_and_one_that_leads_back_is_refused() {
    let ensemble = Ensemble::new();
    // One name for whoever is the primary, as a proxy or an operator of a cluster gives it.
    let cluster = ensemble.open(&["a"], |_| {}).await;
    let id = register(&cluster).await.id;
    set(&cluster, &patient(), id, 1).await.expect("commits");
    let before = ensemble.secrets.secret("a").expect("a secret");
    // Both are there and take writes: only the name tells which one is meant.
    ensemble.first.require_synchronous("").expect("waits for nobody");
    ensemble.second.promote().expect("takes over");
    ensemble.secrets.tell("a", &ensemble.second);
    until_shard(&cluster, |it| it.term == Some(2)).await;
    set(&cluster, &patient(), id, 2).await.expect("commits");
    assert_eq!((points_on(&ensemble.first, id), points_on(&ensemble.second, id)), ("1".to_owned(), "2".to_owned()));

    ensemble.secrets.set("a", before);
    until(&cluster, "a", |it| it.finding == Some(EndpointFinding::FormerPrimary)).await;
    let refused = is_refused(&cluster, id).await;
    assert!(matches!(refused, UnitError::Database(DbError::NoPrimary { .. })), "{refused:?}");
    // Whoever writes without a unit, such as a relay, is kept off by the connection itself.
    let database = cluster.database(ShardId(0)).expect("a shard");
    let refused = database.begin().await.err();
    assert!(matches!(refused, Some(DbError::FormerPrimary { term: 1, .. })), "{refused:?}");
    assert_eq!(points_on(&ensemble.first, id), "1");
}

/// Answers what it was told last.
#[derive(Clone, Debug)]
struct Names(Arc<Mutex<IpAddr>>);

impl Resolver for Names {
    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        assert_eq!(host, "primary.test");
        Ok(vec![*self.0.lock().expect("no panic")])
    }
}

/// Carries what comes to a port of an address over to a server.
async fn carry(from: (IpAddr, u16), to: u16) -> u16 {
    let listener = TcpListener::bind(from).await.expect("a loopback address");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", to)).await.expect("the server answers");
                let _ended = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn a_changed_answer_of_the_resolver_is_picked_up() {
    let ensemble = Ensemble::new();
    let [here, there] = [[127, 0, 0, 2], [127, 0, 0, 3]].map(IpAddr::from);
    let port = carry((here, 0), ensemble.first.port()).await;
    carry((there, port), ensemble.second.port()).await;
    for name in ["a", "a-owner"] {
        let dsn = ensemble.secrets.secret(name).expect("a secret");
        let address = format!("127.0.0.1:{}", ensemble.first.port());
        ensemble.secrets.set(name, dsn.replace(&address, &format!("primary.test:{port}")));
    }
    let names = Names(Arc::new(Mutex::new(here)));
    let cluster = ensemble.open(&["a"], |servers| servers.resolver = Arc::new(names.clone())).await;
    let id = register(&cluster).await.id;
    set(&cluster, &patient(), id, 1).await.expect("commits");
    ensemble.first.require_synchronous("").expect("waits for nobody");
    ensemble.second.promote().expect("takes over");
    // The old server goes on and keeps its connections: only the name leads elsewhere.
    *names.0.lock().expect("no panic") = there;
    until_shard(&cluster, |it| it.term == Some(2)).await;
    set(&cluster, &patient(), id, 2).await.expect("commits");
    assert_eq!((points_on(&ensemble.first, id), points_on(&ensemble.second, id)), ("1".to_owned(), "2".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn a_lost_standby_keeps_writes_to_their_deadline_and_is_named() {
    let ensemble = Ensemble::new();
    let cluster = ensemble.open(&["a", "b"], |_| {}).await;
    let (id, other) = (register(&cluster).await.id, register(&cluster).await.id);
    ensemble.second.kill().expect("dies");
    // The first to write finds out: what it wrote is not acknowledged.
    is_refused(&cluster, id).await;
    until(&cluster, "a", |it| it.finding == Some(EndpointFinding::NoStandby)).await;
    assert_eq!(ensemble.signal("pim_data_endpoints_unsound{finding=\"no_standby\"}"), 1);
    let refused = is_refused(&cluster, other).await;
    assert!(matches!(refused, UnitError::Database(DbError::NoStandby { .. })), "it was not sent: {refused:?}");
    assert_eq!(points(&cluster, other, &Consistency::Strong).await.expect("reads go on"), 0);
    let waiting = tokio::spawn({
        let cluster = cluster.clone();
        async move { set(&cluster, &patient(), other, 7).await.map(drop) }
    });
    ensemble.second.start().expect("is back");
    waiting.await.expect("no panic").expect("writes go on");
    assert_eq!(ensemble.second.sql(DATABASE, "SELECT 1").expect("answers"), "1");
}

/// Guard: commits that wait for a lost standby keep their connections until they give up, and leave some to whoever reads.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn reads_go_on_beside_commits_that_wait_for_a_lost_standby() {
    const WAITING: &str = "SELECT count(*) >= 2 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let ensemble = Ensemble::new();
    let cluster = ensemble.open(&["a", "b"], |servers| servers.settings.connections_max = 3).await;
    let mut ids: Vec<Id<Customer>> = Vec::new();
    while ids.len() < 4 {
        let id = register(&cluster).await.id;
        // Of one lane the second would wait for the first, and not for the standby.
        if ids.iter().all(|other| other.bucket().lane() != id.bucket().lane()) {
            ids.push(id);
        }
    }
    ensemble.second.kill().expect("dies");
    let commits = ids.split_off(1).into_iter().map(|id| {
        let mut unit = cluster.begin(&request(8 * SOON), id);
        save_notes(&mut unit, id, 2);
        tell(&mut unit, "noted");
        tokio::spawn(unit.commit())
    });
    let commits: Vec<_> = commits.collect();
    eventually("two that wait", async || ensemble.first.sql(DATABASE, WAITING).expect("answers") == "t").await;
    tokio::time::sleep(SOON / 2).await;
    let look = read(ShopResource::Account);
    let seen = cluster.read::<Account>(&request(PATIENCE), &look, ids[0], &Consistency::Strong).await;
    assert!(seen.expect("reads go on").is_some());
    let mut told = Vec::new();
    for commit in commits {
        told.push(commit.await.expect("no panic").expect_err("no standby has it"));
    }
    // Whoever waited for their connection is not sent to wait as well.
    let not_sent = told.iter().filter(|it| matches!(it, UnitError::Database(DbError::NoStandby { .. }))).count();
    assert_eq!(not_sent, 1, "{told:?}");
}
