//! Failovers while many write and read: how long writes stop, and whether anything is lost.
//!
//! Two of them by default; `LAB_TEST_FAILOVERS` asks for more, and fails when one of them takes too long. What each cost is
//! printed (`--nocapture`).

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pim_core::id::Id;
use pim_data::cluster::Cluster;
use pim_data::consistency::{Consistency, ConsistencyToken};
use pim_servers::local::LocalServer;

use super::ensemble::{DATABASE, Ensemble, PATIENCE, patient, points, register, set, until};
use super::world::Customer;

const WRITERS: usize = 6;
/// From the promotion to the first write that is acknowledged.
const WRITES_BACK_MAX: Duration = Duration::from_secs(2);
/// The longest read of any age: one server or the other answers it at all times. One with a token may have to wait for a
/// primary first.
const READ_MAX: Duration = Duration::from_secs(1);
/// The same of a newest read, from the promotion on: one that hangs at a server that stands still is given up first.
const READ_NEWEST_MAX: Duration = Duration::from_secs(3);

/// One account with its one writer, who writes 1, 2, 3 …
#[derive(Debug)]
struct Ledger {
    id: Id<Customer>,
    /// The writes that were acknowledged.
    acknowledged: Mutex<Vec<i64>>,
    seen: Mutex<(i64, ConsistencyToken)>,
    /// How many reads of its one reader have ended.
    reads: AtomicU64,
}

#[derive(Debug, Default)]
struct Tally {
    is_over: AtomicBool,
    writes: AtomicU64,
    writes_failed: AtomicU64,
    reads: AtomicU64,
    reads_lost: AtomicU64,
    reads_stale: AtomicU64,
    /// Longest read of each kind so far, in microseconds: any age, with a token, newest.
    longest: [AtomicU64; 3],
    /// When a write was acknowledged last, and for how long none was at most.
    gap: Mutex<(Option<Instant>, Duration)>,
}

impl Tally {
    fn acknowledged(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let (now, mut gap) = (Instant::now(), self.gap.lock().expect("no panic"));
        if let Some(before) = gap.0.replace(now) {
            gap.1 = gap.1.max(now - before);
        }
    }
}

/// What one failover cost those who wrote and read.
#[derive(Debug)]
struct Cost {
    /// From the primary's end to the promotion.
    without_primary: Duration,
    /// From the promotion to the first write.
    back: Duration,
    /// The longest time without any write.
    outage: Duration,
    /// Longest read of each kind: any age, with a token, newest.
    longest: [Duration; 3],
}

impl Cost {
    /// What of it is more than a drill allows.
    fn excess(&self) -> Vec<String> {
        let [any_age, with_token, newest] = self.longest;
        let all = [
            ("writes were back after", self.back, WRITES_BACK_MAX),
            ("a read of any age took", any_age, READ_MAX),
            ("a read with a token took", with_token, self.without_primary + READ_MAX),
            ("a newest read took", newest, self.without_primary + READ_NEWEST_MAX),
        ];
        let beyond = all.into_iter().filter(|(_, took, most)| took > most);
        beyond.map(|(what, took, most)| format!("{what} {took:?}, more than {most:?}")).collect()
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { without_primary, back, outage, longest: [any_age, with_token, newest] } = self;
        write!(
            f,
            "promoted after {without_primary:?}, first write {back:?} later, no write for {outage:?}; longest read {any_age:?} of \
             any age, {with_token:?} with a token, {newest:?} newest"
        )
    }
}

async fn write_on(cluster: Cluster, ledger: Arc<Ledger>, tally: Arc<Tally>) {
    let mut next = 0;
    while !tally.is_over.load(Ordering::Relaxed) {
        next += 1;
        match set(&cluster, &patient(), ledger.id, next).await {
            Ok(committed) => {
                tally.acknowledged();
                ledger.acknowledged.lock().expect("no panic").push(next);
                if let Some(committed) = committed {
                    *ledger.seen.lock().expect("no panic") = (next, committed.token);
                }
            }
            Err(error) => {
                eprintln!("a write failed: {error:?}");
                tally.writes_failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

async fn read_on(cluster: Cluster, ledger: Arc<Ledger>, tally: Arc<Tally>) {
    let mut kind = 0;
    while !tally.is_over.load(Ordering::Relaxed) {
        let (seen, token) = ledger.seen.lock().expect("no panic").clone();
        let (least, consistency) = match kind {
            0 => (-1, Consistency::Eventual),
            1 => (seen, Consistency::ReadYourWrites(token)),
            _ => (seen, Consistency::Strong),
        };
        let begun = Instant::now();
        let outcome = points(&cluster, ledger.id, &consistency).await;
        ledger.reads.fetch_add(1, Ordering::Relaxed);
        tally.reads.fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        tally.longest[kind].fetch_max(took, Ordering::Relaxed);
        match outcome {
            Ok(found) if found < least => drop(tally.reads_stale.fetch_add(1, Ordering::Relaxed)),
            Ok(_) => {}
            Err(error) => {
                eprintln!("a read failed: {error:?}");
                tally.reads_lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        kind = (kind + 1) % 3;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Every value that an account ever had, by the database itself.
fn values_on(server: &LocalServer, id: Id<Customer>) -> Vec<i64> {
    let values = format!("SELECT points FROM account_history WHERE id = '{}' ORDER BY version", id.uuid());
    server.sql(DATABASE, &values).expect("answers").lines().filter_map(|line| line.parse().ok()).collect()
}

/// How many acknowledged writes a server lacks, and how many it has twice or out of order.
fn lost_and_strange(server: &LocalServer, ledgers: &[Arc<Ledger>]) -> (usize, usize) {
    let (mut lost, mut strange) = (0, 0);
    for ledger in ledgers {
        let acknowledged = ledger.acknowledged.lock().expect("no panic").clone();
        let of_one = compared(&acknowledged, &values_on(server, ledger.id));
        (lost, strange) = (lost + of_one.0, strange + of_one.1);
    }
    (lost, strange)
}

/// Of an account whose values rise with each write.
fn compared(acknowledged: &[i64], values: &[i64]) -> (usize, usize) {
    let known: BTreeSet<_> = values.iter().collect();
    let lost = acknowledged.iter().filter(|value| !known.contains(value)).count();
    (lost, values.windows(2).filter(|pair| pair[0] >= pair[1]).count())
}

#[test]
fn what_is_lost_doubled_or_out_of_order_is_counted() {
    assert_eq!(compared(&[1, 2, 3], &[0, 1, 2, 3, 4]), (0, 0), "one that nobody heard of may be there");
    assert_eq!(compared(&[1, 2, 3], &[0, 1, 3]), (1, 0));
    assert_eq!(compared(&[1, 2], &[0, 1, 1, 2]), (0, 1));
    assert_eq!(compared(&[1, 2], &[0, 2, 1]), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn no_read_and_no_acknowledged_write_is_lost() {
    let asked = std::env::var("LAB_TEST_FAILOVERS").ok().and_then(|it| it.parse::<usize>().ok());
    let failovers = asked.unwrap_or(2);
    let ensemble = Ensemble::new();
    let cluster = ensemble.open(&["a", "b"], |_| {}).await;
    let tally = Arc::new(Tally::default());
    let (mut ledgers, mut tasks) = (Vec::new(), Vec::new());
    for _ in 0..WRITERS {
        let id = register(&cluster).await.id;
        let seen = Mutex::new((0, ConsistencyToken::default()));
        ledgers.push(Arc::new(Ledger { id, acknowledged: Mutex::default(), seen, reads: AtomicU64::new(0) }));
    }
    until(&cluster, "b", |it| it.lag_ms.is_some_and(|lag| lag < 5_000)).await;
    for ledger in &ledgers {
        tasks.push(tokio::spawn(write_on(cluster.clone(), Arc::clone(ledger), Arc::clone(&tally))));
        tasks.push(tokio::spawn(read_on(cluster.clone(), Arc::clone(ledger), Arc::clone(&tally))));
    }
    let (mut primary, mut standby) = (ensemble.first.clone(), ensemble.second.clone());
    let (mut names, mut total, mut excess) = (("a", "b"), (0, 0), Vec::new());
    for number in 1..=failovers {
        writes_flow(&tally).await;
        tally.gap.lock().expect("no panic").1 = Duration::ZERO;
        tally.longest.iter().for_each(|longest| longest.store(0, Ordering::Relaxed));
        let begun = Instant::now();
        let how = if number % 2 == 1 { "killed" } else { "frozen" };
        let (old, new) = (primary.clone(), standby.clone());
        let freezes = how == "frozen";
        blocking(move || if freezes { old.freeze() } else { old.kill() }).await.expect("ends");
        blocking(move || new.promote()).await.expect("takes over");
        let promoted = Instant::now();
        let before = tally.writes.load(Ordering::Relaxed);
        more_writes(&tally, before, 1).await;
        let back = promoted.elapsed();
        writes_flow(&tally).await;
        // A read that hangs has taken its time too, once it ends.
        reads_flow(&ledgers).await;
        let outage = tally.gap.lock().expect("no panic").1;
        let longest = tally.longest.each_ref().map(|it| Duration::from_micros(it.load(Ordering::Relaxed)));
        let cost = Cost { without_primary: promoted - begun, back, outage, longest };
        let (new, all) = (standby.clone(), ledgers.clone());
        let (lost, strange) = blocking(move || lost_and_strange(&new, &all)).await;
        total = (total.0 + lost, total.1 + strange);
        println!(
            "failover {number}: primary {how}, {cost}; reads lost {}, stale {}; acknowledged writes lost {lost}, doubled {strange}",
            tally.reads_lost.load(Ordering::Relaxed),
            tally.reads_stale.load(Ordering::Relaxed),
        );
        excess.extend(cost.excess().into_iter().map(|what| format!("failover {number}, primary {how}: {what}")));
        if number == failovers {
            break;
        }
        // A new standby under the name of the server that is gone.
        (primary, standby) = replace(&ensemble, primary, standby, number).await;
        ensemble.secrets.tell(names.0, &standby);
        names = (names.1, names.0);
        until(&cluster, names.1, |it| it.finding.is_none() && it.lag_ms.is_some_and(|lag| lag < 5_000)).await;
    }
    tally.is_over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("no panic");
    }
    // Whoever hung at the last primary has been told only now.
    let (last, all) = (standby.clone(), ledgers.clone());
    let (lost, strange) = blocking(move || lost_and_strange(&last, &all)).await;
    total = (total.0 + lost, total.1 + strange);
    let count = |it: &AtomicU64| it.load(Ordering::Relaxed);
    println!("{} writes, {} reads, {failovers} failovers", count(&tally.writes), count(&tally.reads));
    let (writes_failed, reads_lost) = (count(&tally.writes_failed), count(&tally.reads_lost));
    assert_eq!((total, writes_failed, reads_lost, count(&tally.reads_stale)), ((0, 0), 0, 0, 0));
    assert!(cluster.verify_audit().await.expect("reads").verified);
    assert!(ensemble.signal("pim_data_failovers_total{}") >= failovers as u64);
    // How quick this machine is, is no promise; whoever asks for a drill wants to know.
    assert!(asked.is_none() || excess.is_empty(), "{}", excess.join("\n"));
}

#[test]
fn each_excess_is_told() {
    let second = Duration::from_secs(1);
    let longest = [second, second * 2, second * 4];
    let kept = Cost { without_primary: second, back: second * 2, outage: second * 9, longest };
    assert_eq!(kept.excess(), Vec::<String>::new());
    let late = Cost { back: second * 3, longest: [second * 2, second * 3, second * 5], ..kept };
    let [back, any_age, with_token, newest] = late.excess().try_into().expect("all four");
    assert_eq!(back, "writes were back after 3s, more than 2s");
    assert_eq!(any_age, "a read of any age took 2s, more than 1s");
    assert_eq!(with_token, "a read with a token took 3s, more than 2s");
    assert_eq!(newest, "a newest read took 5s, more than 4s");
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

async fn writes_flow(tally: &Tally) {
    more_writes(tally, tally.writes.load(Ordering::Relaxed), 60).await;
}

/// Each reader ends the read that it is at, and another one.
async fn reads_flow(ledgers: &[Arc<Ledger>]) {
    let give_up = Instant::now() + PATIENCE;
    for ledger in ledgers {
        let before = ledger.reads.load(Ordering::Relaxed);
        while ledger.reads.load(Ordering::Relaxed) < before + 2 {
            assert!(Instant::now() < give_up, "a read does not end");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn more_writes(tally: &Tally, before: u64, more: u64) {
    let give_up = Instant::now() + PATIENCE;
    while tally.writes.load(Ordering::Relaxed) < before + more {
        assert!(Instant::now() < give_up, "no writes any more");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Ends the old primary for good and gives the new one a standby, for which each commit waits from then on.
async fn replace(
    ensemble: &Ensemble,
    old: LocalServer,
    new: LocalServer,
    number: usize,
) -> (LocalServer, LocalServer) {
    let folder = ensemble.servers.folder().to_owned();
    blocking(move || {
        if old.is_running() {
            old.thaw().expect("goes on");
            old.kill().expect("ends");
        }
        std::fs::remove_dir_all(folder.join(old.name())).expect("is removed");
        let name = format!("standby_{number}");
        let standby = new.standby(&folder.join(&name), &name).expect("streams");
        new.require_synchronous(&name).expect("waits from now on");
        (new, standby)
    })
    .await
}
