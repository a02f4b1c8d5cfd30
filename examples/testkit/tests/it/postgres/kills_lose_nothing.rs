//! SIGKILL of service, primary and standby at seeded instants under mixed writes: what was acknowledged is there afterwards, once.

use std::path::Path;
use std::time::Duration;

use pim_lab::rig::PostgresSettings;
use pim_servers::fleet::Fleet;
use pim_servers::temporary::TemporaryFleet;
use pim_testkit::folder::Folder;
use pim_testkit::program::Program;
use pim_testkit::random::Random;
use serde_json::json;
use tokio::task::block_in_place;
use tokio::time::Instant;

use super::inspection::{inspect, stock};
use crate::workload::{Workload, no_chores, settled};

const SHARDS: u16 = 2;
/// Each of the three is killed once in a test that nobody asked for more.
const KILLS: u64 = 6;

pub(super) async fn start(folder: &Path, fleet: &Fleet) -> Program {
    let postgres = PostgresSettings {
        shard_map: Some(fleet.shard_map()),
        secrets_dir: fleet.secrets(),
        ..PostgresSettings::default()
    };
    let config = folder.join("services.yaml");
    std::fs::write(&config, json!({"postgres": postgres, "upkeep": no_chores()}).to_string()).expect("a settings file");
    let (config, data_dir) = (config.display().to_string(), folder.join("data").display().to_string());
    let common = ["--config", &config, "--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--json"];
    let arguments = [&common[..], &["--patients", "20", "--traffic", "off"]].concat();
    Program::start("services", &arguments).await.expect("services starts on the same servers")
}

/// Kills a server and brings its shard back, the way that an operator would.
async fn kill_and_mend(fleet: &Fleet, victim: u64, shard: u16, down_for: Duration) -> &'static str {
    let (primary, standby) = fleet.servers_of(shard).expect("its servers");
    if victim == 1 {
        let mend = || primary.kill().map_err(Into::into).and_then(|()| fleet.promote(shard));
        block_in_place(mend).expect("the standby takes over");
        return "primary";
    }
    block_in_place(|| standby.kill()).expect("killed");
    // Writes wait for it meanwhile.
    tokio::time::sleep(down_for).await;
    block_in_place(|| standby.start()).expect("starts again");
    "standby"
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn of_service_primary_and_standby() {
    let kills = std::env::var("LAB_TEST_CRASH_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let (folder, fleet) = (Folder::new("kills").unwrap(), TemporaryFleet::new(SHARDS).expect("servers"));
    let workload = Workload::default();
    let mut random = Random::of(20_261_126);
    let (mut caught, mut kills_caught, mut retried) = (0, 0, 0);
    let mut services = start(folder.path(), &fleet).await;
    let before = settled(services.told("gateway")).await;
    let had = block_in_place(|| stock(&fleet));
    for kill in 0..kills {
        let writers = workload.begin(services.told("gateway")).await;
        workload.acknowledgement().await;
        tokio::time::sleep(Duration::from_millis(random.below(600))).await;
        let (shard, down_for) = (u16::try_from(random.below(u64::from(SHARDS))).unwrap(), random.below(1500));
        let (flying, begun) = (workload.in_flight(), Instant::now());
        let victim = match kill % 3 {
            0 => {
                services.kill().await.unwrap();
                writers.end().await;
                services = start(folder.path(), &fleet).await;
                "service"
            }
            which => {
                let down_for = Duration::from_millis(down_for);
                let victim = kill_and_mend(&fleet, which, shard, down_for).await;
                workload.acknowledgement().await;
                workload.rest(writers).await;
                victim
            }
        };
        let mended_ms = begun.elapsed().as_millis();
        let (unknown, answered) = workload.retry(services.told("gateway")).await;
        (caught, retried) = (caught + flying, retried + unknown + answered);
        kills_caught += u64::from(flying > 0);
        println!(
            "kill {kill} of {victim} (shard {shard}): {flying} writes in flight, {unknown} without an answer, mended after \
             {mended_ms} ms, {} records so far",
            workload.records().await
        );
    }
    assert!(2 * kills_caught >= kills, "{kills_caught} of {kills} kills met a write: the test shows too little");
    workload.check_and_stop(services, &before).await;
    let account = workload.account().await;
    let seen = block_in_place(|| inspect(&fleet, &had, &account));
    assert_eq!(seen.findings, Vec::<String>::new());
    println!(
        "{kills} kills, {kills_caught} of them with {caught} writes in flight, {retried} sent again, {} rows and {} events \
         inspected, {} writes acknowledged, audit verified",
        seen.records, seen.events, account.writes
    );
}
