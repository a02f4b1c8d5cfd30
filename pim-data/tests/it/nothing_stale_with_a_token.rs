//! Random pairs of a write and a read that carries its token, with think times, against a standby that lags more and more.
//!
//! A thousand pairs by default; `LAB_TEST_PAIRS` asks for more. The share of reads that the standby answered is printed for
//! each lag (`--nocapture`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pim_data::cluster::{Cluster, EndpointHealth};
use pim_data::consistency::Consistency;
use uuid::Uuid;

use super::ensemble::{Ensemble, PATIENCE, health, patient, points, register, set, until};
use super::world::Account;

const THINK_MS_MEAN: f64 = 100.0;
const LAGS_MS: [u64; 6] = [0, 20, 50, 200, 1_000, 2_000];
/// From here on a lag is more than what a busy machine makes of none.
const SHOWS_MS: u64 = 1_000;
/// How many write and read at the same time, each an account of their own.
const KEYS: usize = 60;

/// Exponentially distributed.
fn think() -> Duration {
    let random = Uuid::new_v4().as_u64_pair().1 & ((1 << 53) - 1);
    let unit = (random as f64 + 0.5) / (1_u64 << 53) as f64;
    Duration::from_secs_f64(-unit.ln() * THINK_MS_MEAN / 1_000.0)
}

async fn pairs(cluster: Cluster, account: Account, count: usize, stale: Arc<AtomicU64>, first: i64) {
    for number in 0..count {
        let value = first + i64::try_from(number).expect("a small number");
        let committed = set(&cluster, &patient(), account.id, value).await.expect("commits").expect("at once");
        tokio::time::sleep(think()).await;
        let own = Consistency::ReadYourWrites(committed.token);
        let found = points(&cluster, account.id, &own).await.expect("reads");
        if found < value {
            stale.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes until it shows that the standby is behind: where nothing is written, nothing is applied late.
async fn falls_behind(cluster: &Cluster, account: &Account, lag: u64) {
    let give_up = Instant::now() + PATIENCE;
    // Half of it: what was asked for between two commits is as new as the earlier one.
    let is_behind = |it: &EndpointHealth| it.id == "b" && it.lag_ms.is_none_or(|found| found > lag / 2);
    while !health(cluster).await.endpoints.iter().any(is_behind) {
        assert!(Instant::now() < give_up, "the standby does not lag by {lag} ms");
        set(cluster, &patient(), account.id, 0).await.expect("commits");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads until the standby is asked again, in case that a moment in which the machine stood still had it left alone.
async fn is_asked_again(cluster: &Cluster, account: &Account) {
    let give_up = Instant::now() + PATIENCE;
    while health(cluster).await.endpoints.iter().any(|it| it.breaker_open) {
        assert!(Instant::now() < give_up, "the standby is left alone for ever");
        points(cluster, account.id, &Consistency::Eventual).await.expect("reads");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn at_any_lag() {
    let asked = std::env::var("LAB_TEST_PAIRS").ok().and_then(|it| it.parse::<usize>().ok());
    let count = asked.unwrap_or(1_000).div_ceil(KEYS * LAGS_MS.len());
    let ensemble = Ensemble::new();
    let cluster = ensemble.open(&["a", "b"], |servers| servers.settings.connections_max = 24).await;
    let mut accounts = Vec::new();
    for _ in 0..KEYS {
        accounts.push(register(&cluster).await);
    }
    let stale = Arc::new(AtomicU64::new(0));
    for (round, lag) in LAGS_MS.into_iter().enumerate() {
        ensemble.second.configure(&[("recovery_min_apply_delay", &format!("{lag}ms"))]).expect("lags");
        until(&cluster, "b", |it| it.finding.is_none() && it.lag_ms.is_some_and(|found| found < lag + 2_000)).await;
        if lag >= SHOWS_MS {
            falls_behind(&cluster, &accounts[0], lag).await;
        }
        is_asked_again(&cluster, &accounts[0]).await;
        let before = ["replica", "caught_up", "stale", "failed", "absent"].map(|answer| ensemble.nearby(answer));
        let (begun, first) = (Instant::now(), i64::try_from(round * count + 1).expect("a small number"));
        let tasks = accounts.iter().map(|account| {
            tokio::spawn(pairs(cluster.clone(), account.clone(), count, Arc::clone(&stale), first))
        });
        for task in tasks.collect::<Vec<_>>() {
            tokio::time::timeout(PATIENCE * 30, task).await.expect("in time").expect("no panic");
        }
        let after = ["replica", "caught_up", "stale", "failed", "absent"].map(|answer| ensemble.nearby(answer));
        let [replica, caught_up, behind, failed, absent] = [0, 1, 2, 3, 4].map(|index| after[index] - before[index]);
        let all = replica + caught_up + behind + failed + absent;
        let share = (replica + caught_up) as f64 * 100.0 / all as f64;
        println!(
            "lag {lag:>4} ms: {all} pairs in {:.1?}, {share:.1} % of reads by the standby ({caught_up} after it had caught up), \
             primary asked: {behind} behind the token, {failed} failed, {absent} no standby fit",
            begun.elapsed()
        );
        assert_eq!(stale.load(Ordering::Relaxed), 0, "stale reads at {lag} ms");
        assert!(replica > 0 || lag > 0, "the standby answers nobody");
        assert!(replica + caught_up > 0 || lag > 200, "at {lag} ms the standby answers nobody");
        assert!(behind + caught_up > 0 || lag < 200, "at {lag} ms the standby is never behind");
        // How quick this machine is, is no promise; whoever asks for a full run wants to know.
        assert!(asked.is_none() || lag != 50 || share >= 80.0, "{share:.1} % at 50 ms");
    }
}
