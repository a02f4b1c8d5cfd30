//! Buckets of a running lab move while everybody writes to them, and whoever moves them is killed at each step: no write fails.

mod carrier;
mod kept;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pim_core::clock::Clock;
use pim_core::context::{RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::shard::{Bucket, ShardId};
use pim_data::backend::{Db, SqlPair, Statement};
use pim_data::cluster::Access;
use pim_data::relocation::{MoveRecord, MoveStep, Mover};
use pim_events::OutboxOutlet;
use pim_lab::ids::PatientId;
use pim_lab::rig::PostgresSettings;
use pim_lab::signals::Hub;
use pim_lab::workers::{Place, Stores, service_actor};
use pim_testkit::folder::Folder;
use pim_testkit::program::Program;
use pim_testkit::random::Random;
use serde_json::json;
use tokio::time::Instant;

use self::carrier::Carrier;
use self::kept::{Books, examine};
use super::databases::Databases;
use crate::workload::{Workload, no_chores, settled};

const SHARDS: u16 = 2;
/// Patients of each writer.
const ROUNDS: u64 = 8;
/// Most buckets of one move.
const BUCKETS_MAX: usize = 12;
/// How long an onlooker may need to open the lab.
const OPENS_WITHIN: Duration = Duration::from_secs(60);
/// Latest kill of a mover that runs on, after it began to copy.
const RUNS_FOR_US: u64 = 60_000;

/// Longest pause of writers that a drill allows, but for one fence in a hundred.
const PAUSE_MAX_MS: f64 = 100.0;

/// Where a mover dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    /// Having written this step down.
    At(MoveStep),
    /// The giver has given and the taker has not taken.
    BetweenGiverAndTaker,
    /// At a random instant.
    Anywhen,
}

/// One each in a test that nobody asked for more.
const DEATHS: [Death; 7] = [
    Death::At(MoveStep::Planned),
    Death::At(MoveStep::Copying),
    Death::At(MoveStep::Fenced),
    Death::At(MoveStep::Activating),
    Death::BetweenGiverAndTaker,
    Death::At(MoveStep::Activated),
    Death::Anywhen,
];

/// A lab on servers, and an onlooker who has it open too.
struct Ground {
    databases: Databases,
    stores: Stores,
    mover: Mover,
    random: Random,
}

async fn services(folder: &Path, postgres: &PostgresSettings) -> Program {
    let config = folder.join("services.yaml");
    std::fs::write(&config, json!({"postgres": postgres, "upkeep": no_chores()}).to_string()).expect("a settings file");
    let (config, data_dir) = (config.display().to_string(), folder.join("data").display().to_string());
    let common = ["--config", &config, "--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--json"];
    let arguments = [&common[..], &["--patients", "20", "--traffic", "off"]].concat();
    Program::start("services", &arguments).await.expect("services starts on servers")
}

pub(super) async fn open(data_dir: &Path, postgres: &PostgresSettings) -> Stores {
    let place = Place { data_dir, shards: None, postgres };
    let hub = Hub::new(None).expect("a hub");
    let give_up = Instant::now() + OPENS_WITHIN;
    loop {
        match Stores::open_at(place, Access::Shared, Clock::system(), &hub).await {
            Ok(stores) => return stores,
            // Whoever publishes a map at this moment is waited for.
            Err(error) => assert!(Instant::now() < give_up, "does not open beside the lab: {error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(super) fn operator() -> RequestContext {
    let actor = service_actor("bucket-mover").expect("an actor");
    RequestContext::new(RequestId::mint(), actor, Deadline::after(Duration::from_secs(60)))
}

impl Ground {
    async fn new(folder: &Path, databases: Databases) -> Self {
        let stores = open(&folder.join("data"), &databases.settings).await;
        let mover = Mover::new(&stores.cluster, Arc::new(OutboxOutlet));
        Self { databases, stores, mover, random: Random::of(20_261_127) }
    }

    /// Plans a move of some of the buckets that everybody writes to.
    async fn plan(&mut self, written: &BTreeSet<Bucket>) -> MoveRecord {
        self.stores.cluster.refresh_map().await.expect("reads");
        let map = self.stores.cluster.map();
        let written: Vec<Bucket> = written.iter().copied().collect();
        let chosen = written[usize::try_from(self.random.next()).unwrap_or(0) % written.len()];
        let from = map.owner(chosen).0;
        let others = written.into_iter().filter(|bucket| map.owner(*bucket).0 == from && *bucket != chosen);
        let some: Vec<Bucket> = [chosen].into_iter().chain(others).take(BUCKETS_MAX).collect();
        self.mover.plan(&operator(), some, ShardId(1 - from.0)).await.expect("plans")
    }

    fn order(&self, planned: &MoveRecord, stop_at: Option<MoveStep>) -> Carrier {
        Carrier::start(&self.databases.settings, self.stores.cluster.data_dir(), planned.id, stop_at)
    }

    /// Carries a move out until the mover dies; how many writes were under way then.
    async fn until_death(&mut self, planned: &MoveRecord, death: Death, workload: &Workload) -> u64 {
        let mut carrier = self.order(planned, if let Death::At(step) = death { Some(step) } else { None });
        let taker = match death {
            Death::At(step) => {
                carrier.reaches(step).await;
                None
            }
            Death::Anywhen => {
                carrier.reaches(MoveStep::Copying).await;
                tokio::time::sleep(Duration::from_micros(self.random.below(RUNS_FOR_US))).await;
                None
            }
            Death::BetweenGiverAndTaker => {
                let taker = self.databases.superuser(&format!("shard-{}", planned.target)).await;
                let mut busy = taker.begin().await.expect("begins");
                // The taker's fence waits for whoever writes to the bucket there.
                let hold = format!("SELECT pg_advisory_xact_lock_shared(7461, {})", planned.buckets[0]);
                busy.script(&hold).await.expect("locks");
                let giver = self.databases.superuser(&format!("shard-{}", planned.source)).await;
                has_given(&giver, planned.buckets[0]).await;
                takes(&taker, 1).await;
                Some((taker, busy))
            }
        };
        let flying = match death {
            Death::Anywhen => workload.in_flight(),
            // It stands still where it is.
            Death::At(_) | Death::BetweenGiverAndTaker => workload.departure().await,
        };
        carrier.kill().await;
        if let Some((taker, busy)) = taker {
            cut_off(&taker, planned).await;
            busy.rollback().await.expect("lets go");
        }
        let left = self.mover.find(planned.id).await.expect("reads").step;
        match death {
            Death::At(step) => assert_eq!(left, step, "where it died"),
            Death::BetweenGiverAndTaker => assert_eq!(left, MoveStep::Activating, "where it died"),
            Death::Anywhen => println!("died at {}", left.text()),
        }
        flying
    }
}

/// The mover's call at the taker is under way in the server when its process has gone: it would take once it may.
async fn cut_off(taker: &Db, planned: &MoveRecord) {
    let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%pim_take%'";
    taker.query(Statement::of(SqlPair::generated(ended.to_owned()))).await.expect("ends it");
    takes(taker, 0).await;
    let bucket = planned.buckets[0];
    let taken = format!("SELECT count(*) FROM pim_bucket_owned WHERE bucket = {bucket} AND state = 'owned'");
    let rows = taker.query(Statement::of(SqlPair::generated(taken))).await.expect("reads");
    assert_eq!(rows[0].count(0).expect("a number"), 0, "nobody has taken");
}

/// Until so many calls wait there to take buckets.
async fn takes(taker: &Db, calls: u64) {
    let give_up = Instant::now() + Duration::from_secs(60);
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                   AND query LIKE '%pim_take%' AND state = 'active' AND wait_event_type = 'Lock'";
    loop {
        let rows = taker.query(Statement::of(SqlPair::generated(waiting.to_owned()))).await.expect("reads");
        if rows[0].count(0).expect("a number") == calls {
            return;
        }
        assert!(Instant::now() < give_up, "not {calls} calls wait for the taker's fence");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn has_given(giver: &Db, bucket: Bucket) {
    let give_up = Instant::now() + Duration::from_secs(60);
    let asked = format!("SELECT count(*) FROM pim_bucket_owned WHERE bucket = {bucket} AND state = 'moved'");
    loop {
        let rows = giver.query(Statement::of(SqlPair::generated(asked.clone()))).await.expect("reads");
        if rows[0].count(0).expect("a number") == 1 {
            return;
        }
        assert!(Instant::now() < give_up, "the giver did not give");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Of sorted pauses, in milliseconds.
fn quantile(sorted: &[u64], share: f64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "few and short"
    )]
    let at = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a pause")]
    sorted.get(at).map_or(0.0, |pause| *pause as f64 / 1000.0)
}

/// What of sorted pauses is more than a drill allows.
fn excess(pauses: &[u64]) -> Option<String> {
    let p99 = quantile(pauses, 0.99);
    match pauses {
        [] => Some("no fence was measured".to_owned()),
        _ => (p99 > PAUSE_MAX_MS).then(|| format!("writers waited {p99:.1} ms at p99, more than {PAUSE_MAX_MS} ms")),
    }
}

#[test]
fn a_pause_that_is_too_long_is_told() {
    assert_eq!(excess(&[1_000, 100_000]), None);
    assert_eq!(excess(&[1_000, 100_100]).as_deref(), Some("writers waited 100.1 ms at p99, more than 100 ms"));
    assert_eq!(excess(&[]).as_deref(), Some("no fence was measured"));
}

/// `LAB_TEST_MOVES=20` does twenty moves, and fails when writers waited too long for them.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_moves_buckets_dies_at_each_step_and_no_write_fails() {
    let asked = std::env::var("LAB_TEST_MOVES").ok().and_then(|text| text.parse().ok());
    let moves = asked.unwrap_or(DEATHS.len());
    let folder = Folder::new("moves").expect("a folder");
    let databases = Databases::new(folder.path(), SHARDS);
    let services = services(folder.path(), &databases.settings).await;
    let gateway = services.told("gateway").to_owned();
    let before = settled(&gateway).await;
    let had = Books::open(&databases, SHARDS).await.stock().await;
    let mut ground = Ground::new(folder.path(), databases).await;
    let workload = Workload::default();
    let written = workload.regulars(&gateway, ROUNDS).await;
    let written = written.iter().map(|id| id.parse::<PatientId>().expect("an id").bucket()).collect();
    let (writers, mut caught, mut kills, mut pauses) = (workload.begin(&gateway).await, 0, 0, Vec::new());
    for (number, death) in DEATHS.into_iter().cycle().take(moves).enumerate() {
        workload.acknowledgement().await;
        let planned = ground.plan(&written).await;
        workload.slowest();
        let flying = ground.until_death(&planned, death, &workload).await;
        (caught, kills) = (caught + flying, kills + 1);
        let died = Instant::now();
        ground.order(&planned, None).ends().await;
        let done = ground.mover.find(planned.id).await.expect("reads");
        assert_eq!(done.step, MoveStep::Done, "move {number}, whose mover died {death:?}");
        // One whose mover died between fence and map is as long as the next one needed to start.
        pauses.extend(Some(done.report.paused_us).filter(|pause| *pause > 0));
        workload.acknowledgement().await;
        println!(
            "move {number}: {} buckets, {} rows from shard {} to {}; mover killed ({death:?}) with {flying} writes in flight, \
             done {} ms later by the next; fence to map {} µs, slowest write {} ms, {} writes failed",
            done.buckets.len(),
            done.report.rows,
            done.source,
            done.target,
            died.elapsed().as_millis(),
            done.report.paused_us,
            workload.slowest().as_millis(),
            workload.failed().await
        );
    }
    workload.rest(writers).await;
    let failed = workload.failed().await;
    pauses.sort_unstable();
    let Ground { databases, stores, .. } = ground;
    // Not by way of the admin service, where it would be an operation, and so two more facts.
    let verified = stores.cluster.verify_audit().await.expect("reads");
    assert!(verified.verified, "{verified:?}");
    let data_dir = stores.cluster.data_dir().to_owned();
    drop(stores);
    workload.check_and_stop(services, &before).await;
    let kept = examine(&Books::open(&databases, SHARDS).await, &data_dir, &had, &workload.account().await).await;
    println!(
        "{moves} moves, {kills} kills of the mover, {caught} writes in flight, {failed} writes failed; pause p50 {:.1} ms, p99 \
         {:.1} ms, max {:.1} ms of {} fences that one mover held to the end; {} events: {} lost, {} twice, {} order violations; \
         {} rows inspected, audit verified",
        quantile(&pauses, 0.5),
        quantile(&pauses, 0.99),
        quantile(&pauses, 1.0),
        pauses.len(),
        kept.events,
        kept.lost,
        kept.twice,
        kept.disordered,
        kept.rows,
    );
    assert_eq!((failed, kept.lost, kept.twice, kept.disordered), (0, 0, 0, 0));
    // How quick this machine is, is no promise; whoever asks for a drill wants to know.
    assert_eq!(excess(&pauses).filter(|_| asked.is_some()), None);
}
