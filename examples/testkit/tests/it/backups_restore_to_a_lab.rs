//! A backup that is taken while clinicians write restores, by the commands of the lab, to a lab that has what was acknowledged
//! before it, verifies, and goes on; what is no whole backup and what is no fresh directory is refused.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use http::StatusCode;
use pim_testkit::caller::{Caller, fresh_key};
use pim_testkit::folder::Folder;
use pim_testkit::program::{Program, built};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::workload::{Workload, settled};

async fn start(data_dir: &Path) -> Program {
    let data_dir = data_dir.display().to_string();
    let arguments =
        ["--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--patients", "50", "--traffic", "off", "--json"];
    Program::start("services", &arguments).await.expect("services starts")
}

/// What `services` says when it is told to restore or to check: exit code and line.
async fn offline(arguments: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(built("services").unwrap());
    command.args(arguments).arg("--json").stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().await.expect("services runs");
    let line = String::from_utf8_lossy(&output.stdout).lines().last().map(str::to_owned).unwrap_or_default();
    (output.status.code(), serde_json::from_str(&line).unwrap_or_default())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_the_backup_is_there_and_the_lab_goes_on() {
    let folder = Folder::new("backup").unwrap();
    let (data_dir, into) = (folder.path().join("lab"), folder.path().join("restored"));
    let services = start(&data_dir).await;
    let gateway = services.told("gateway").to_owned();
    let sre = Caller::sign_in(&gateway, "sre").await.unwrap();
    let workload = Workload::default();
    let writers = workload.begin(&gateway).await;
    while workload.records().await < 60 {
        workload.acknowledgement().await;
    }
    let before = workload.acknowledged().await;
    let (status, made) = sre.post("/v1/admin/backups", &fresh_key(), &json!({"name": "one"})).await.unwrap();
    assert_eq!(status, StatusCode::OK, "{made:#}");
    let after = workload.acknowledged().await;
    assert_ne!(after, before, "nobody wrote meanwhile: the test shows nothing");
    let (status, twice) = sre.post("/v1/admin/backups", &fresh_key(), &json!({"name": "one"})).await.unwrap();
    assert_eq!((status, &twice["type"]), (StatusCode::CONFLICT, &json!("urn:pim:problem:already-exists")), "{twice:#}");
    let (_, listed) = sre.get("/v1/admin/backups").await.unwrap();
    assert_eq!(listed["items"][0]["place"], made["place"], "{listed:#}");
    services.kill().await.unwrap();
    writers.end().await;

    let place = PathBuf::from(made["place"].as_str().unwrap());
    let (code, checked) = offline(&["--check-backup", text(&place)]).await;
    assert_eq!((code, &checked["whole"]), (Some(0), &json!(true)), "{checked:#}");
    let (code, restored) = offline(&["--restore", text(&place), "--data-dir", text(&into)]).await;
    assert_eq!((code, &restored["audit"]["verified"]), (Some(0), &json!(true)), "{restored:#}");
    println!(
        "RPO {} ms, RTO {} ms, {} records of audit, {} of {} records were acknowledged before the backup",
        restored["recovery_point_ms"],
        restored["recovery_time_ms"],
        restored["audit"]["records"],
        before.len(),
        after.len()
    );
    assert_eq!(restored["outboxes_rebased"], 5, "four shards and the control database");
    assert_eq!((&restored["audit"]["checkpoints"], &restored["checkpoints"]["signed"]), (&json!(1), &json!(2)));
    assert_eq!(restored["checkpoints"]["found_in"], json!(data_dir.join("audit-checkpoints.jsonl")), "{restored:#}");

    let services = start(&into).await;
    let gateway = services.told("gateway").to_owned();
    let summary = settled(&gateway).await;
    assert_eq!((&summary["lost"], &summary["duplicated"]), (&json!(0), &json!(0)), "{summary:#}");
    let clinician = Caller::sign_in(&gateway, "clinician").await.unwrap();
    for (path, (version, _)) in &before {
        let (status, record) = clinician.get(path).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{path} was acknowledged before the backup and is gone: {record:#}");
        assert!(record["version"].as_u64() >= Some(*version), "{path}: {record:#}");
    }
    let writers = workload.begin(&gateway).await;
    for _ in 0..20 {
        workload.acknowledgement().await;
    }
    let (code, summary) = services.stop().await.unwrap();
    writers.end().await;
    let summary = summary.expect("a summary");
    assert_eq!((code, summary["verdict"].as_str()), (Some(0), Some("ok")), "{summary:#}");
    assert_eq!(summary["audit_verified"], true);

    // Guards: never over something, never of something else, never something damaged.
    let (code, _) = offline(&["--restore", text(&place), "--data-dir", text(&into)]).await;
    assert_eq!(code, Some(7), "the directory is taken");
    let third = folder.path().join("third");
    let (code, _) = offline(&["--restore", text(&data_dir), "--data-dir", text(&third)]).await;
    assert_eq!(code, Some(3), "a data directory is no backup");
    let file = place.join("shards").join("shard-1.db");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[5_000] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (code, _) = offline(&["--check-backup", text(&place)]).await;
    assert_eq!(code, Some(5), "a file is damaged");
    let (code, _) = offline(&["--restore", text(&place), "--data-dir", text(&third)]).await;
    assert_eq!(code, Some(5), "a file is damaged");
    assert!(!third.exists(), "nothing was put anywhere");
}

/// The list of backups as name and state, when it is this.
async fn until_listed(sre: &Caller, state: &str) -> Value {
    let give_up = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let (status, listed) = sre.get("/v1/admin/backups").await.unwrap();
        assert_eq!(status, StatusCode::OK, "{listed:#}");
        if listed["items"][0]["state"] == state {
            assert_eq!((&listed["items"][0]["name"], &listed["items"][1]), (&json!("one"), &Value::Null), "{listed:#}");
            return listed["items"][0].clone();
        }
        assert!(tokio::time::Instant::now() < give_up, "no backup is {state}: {listed:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The list of operations, when both say how they ended: a backup is listed as failed before its operation is written to.
async fn until_both_are_refused(sre: &Caller) {
    let give_up = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let (_, operations) = sre.get("/v1/admin/operations").await.unwrap();
        let items = operations["items"].as_array().unwrap();
        let states: Vec<_> = items.iter().map(|it| (&it["name"], &it["state"])).collect();
        if states == vec![(&json!("backup.take"), &json!("refused")); 2] {
            return;
        }
        assert!(tokio::time::Instant::now() < give_up, "{operations:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Guard: a backup goes on when whoever asked for it is gone (`tokio::spawn` in `make`), and the list says how it stands.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_running_until_it_is_complete_or_has_failed_for_a_reason() {
    let folder = Folder::new("attempt").unwrap();
    let data_dir = folder.path().join("lab");
    let services = start(&data_dir).await;
    let sre = Caller::sign_in(services.told("gateway"), "sre").await.unwrap();
    // Nobody gets on with a pipe until somebody writes to it, and then it is no file that could be copied.
    let pipe = data_dir.join("keys").join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let gateway = services.told("gateway").to_owned();
    let impatient = tokio::spawn(async move {
        let sre = Caller::sign_in(&gateway, "sre").await.unwrap();
        sre.post("/v1/admin/backups", &fresh_key(), &json!({"name": "one"})).await
    });
    until_listed(&sre, "running").await;
    impatient.abort();
    let _gone = impatient.await;
    let (status, refusal) = sre.post("/v1/admin/backups", &fresh_key(), &json!({"name": "one"})).await.unwrap();
    assert_eq!(status, StatusCode::CONFLICT, "somebody is at it: {refusal:#}");
    until_listed(&sre, "running").await;
    let end = pipe.clone();
    tokio::task::spawn_blocking(move || drop(std::fs::OpenOptions::new().write(true).open(end).unwrap()))
        .await
        .unwrap();
    let failed = until_listed(&sre, "failed").await;
    assert!(failed["reason"].as_str().unwrap().contains("keys/pipe"), "{failed:#}");
    assert!(!Path::new(failed["place"].as_str().unwrap()).exists(), "nothing is left of it");
    until_both_are_refused(&sre).await;
    std::fs::remove_file(&pipe).unwrap();
    let (status, made) = sre.post("/v1/admin/backups", &fresh_key(), &json!({"name": "one"})).await.unwrap();
    assert_eq!(status, StatusCode::OK, "{made:#}");
    let complete = until_listed(&sre, "complete").await;
    assert_eq!((&complete["files"], &complete["reason"]), (&made["report"]["files"], &Value::Null), "{complete:#}");
    services.stop().await.unwrap();
}
