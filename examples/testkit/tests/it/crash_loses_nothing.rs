//! SIGKILL at seeded random instants under mixed writes: what was acknowledged is there afterwards, once, and verifies.

use std::time::Duration;

use pim_testkit::folder::Folder;
use pim_testkit::program::Program;
use pim_testkit::random::Random;
use serde_json::json;

use crate::workload::{Workload, no_chores, settled};

async fn start(settings: &Folder) -> Program {
    let data_dir = settings.path().join("data").display().to_string();
    let config = settings.path().join("services.yaml");
    std::fs::write(&config, json!({"upkeep": no_chores()}).to_string()).expect("a settings file");
    let config = config.display().to_string();
    let common = ["--config", &config, "--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--json"];
    let arguments = [&common[..], &["--patients", "50", "--traffic", "off"]].concat();
    Program::start("services", &arguments).await.expect("services starts on the same directory")
}

#[tokio::test(flavor = "multi_thread")]
async fn after_every_kill_the_acknowledged_is_there_once() {
    let kills: u64 = std::env::var("LAB_TEST_CRASH_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let folder = Folder::new("crash").unwrap();
    let workload = Workload::default();
    let mut random = Random::of(20_260_301);
    let (mut caught, mut kills_caught, mut retried) = (0, 0, 0);
    let mut services = start(&folder).await;
    let before = settled(services.told("gateway")).await;
    for kill in 0..kills {
        let writers = workload.begin(services.told("gateway")).await;
        workload.acknowledgement().await;
        tokio::time::sleep(Duration::from_millis(random.below(600))).await;
        let flying = workload.in_flight();
        services.kill().await.unwrap();
        writers.end().await;
        services = start(&folder).await;
        let (unknown, answered) = workload.retry(services.told("gateway")).await;
        (caught, retried) = (caught + flying, retried + unknown + answered);
        kills_caught += u64::from(flying > 0);
        let total = workload.records().await;
        println!("kill {kill}: {flying} writes in flight, {unknown} without an answer, {total} records so far");
    }
    assert!(2 * kills_caught >= kills, "{kills_caught} of {kills} kills met a write: the test shows too little");
    let summary = workload.check_and_stop(services, &before).await;
    println!(
        "{kills} kills, {kills_caught} of them with {caught} writes in flight, {retried} sent again, {} records checked, {} \
         facts, audit verified",
        workload.records().await,
        summary["facts"]
    );
}
