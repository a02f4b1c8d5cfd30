//! The disk of backups, and that of a restore, is full: it is said by name, nothing half-made is left, and the lab goes on.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use http::StatusCode;
use pim_lab::backup::folder_of;
use pim_testkit::caller::{Caller, fresh_key};
use pim_testkit::folder::Folder;
use pim_testkit::program::{Program, built};
use pim_testkit::servers::small_disk::SmallDisk;
use serde_json::json;
use tokio::process::Command;

use crate::workload::{Workload, settled};

/// Less than a lab has, and more than its smaller files are.
const DISK_KB: u64 = 1_024;

/// What `services` says when it is told to restore: exit code, and what it wrote for people.
async fn restore(backup: &Path, into: &Path) -> (Option<i32>, String) {
    let mut command = Command::new(built("services").unwrap());
    command.arg("--restore").arg(backup).arg("--data-dir").arg(into).stdin(Stdio::null());
    let output = command.output().await.expect("services runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs to mount a disk: `cargo xtask test` runs it where that is allowed"]
async fn a_full_disk_makes_no_half_backup_and_no_half_lab() {
    let folder = Folder::new("full").unwrap();
    let data_dir = folder.path().join("lab");
    let text = data_dir.display().to_string();
    let arguments = ["--data-dir", &text, "--listen", "127.0.0.1:0", "--patients", "200", "--traffic", "off", "--json"];
    let services = Program::start("services", &arguments).await.expect("services starts");
    let gateway = services.told("gateway").to_owned();
    let sre = Caller::sign_in(&gateway, "sre").await.unwrap();
    let workload = Workload::default();
    let writers = workload.begin(&gateway).await;
    workload.acknowledgement().await;

    let backups = folder_of(&data_dir);
    let disk = SmallDisk::mount(&backups, DISK_KB).expect("is mounted");
    let (status, problem) = sre.post("/v1/admin/backups", &fresh_key(), &json!({"name": "one"})).await.unwrap();
    assert_eq!(
        (status, &problem["detail"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("the disk is full")),
        "{problem:#}"
    );
    let (_, listed) = sre.get("/v1/admin/backups").await.unwrap();
    let failed = &listed["items"][0];
    assert_eq!((&failed["name"], &failed["state"]), (&json!("one"), &json!("failed")), "{listed:#}");
    assert!(failed["reason"].as_str().unwrap().contains("is full"), "{listed:#}");
    assert!(!backups.join("one").exists(), "half a backup is left");
    workload.acknowledgement().await;
    drop(disk);
    let (status, made) = sre.post("/v1/admin/backups", &fresh_key(), &json!({"name": "one"})).await.unwrap();
    assert_eq!(status, StatusCode::OK, "{made:#}");
    workload.rest(writers).await;
    assert_eq!(workload.failed().await, 0, "the lab was harmed");
    let summary = settled(&gateway).await;
    assert_eq!((&summary["lost"], &summary["duplicated"]), (&json!(0), &json!(0)), "{summary:#}");

    let disk = SmallDisk::mount(&folder.path().join("small"), DISK_KB).expect("is mounted");
    let place = backups.join("one");
    for into in [disk.folder().join("new"), disk.folder().to_owned()] {
        let (code, said) = restore(&place, &into).await;
        assert!(code == Some(5) && said.contains("is full"), "{code:?} {said}");
        assert!(is_empty(disk.folder()), "half a lab is left");
    }
    let (code, said) = restore(&place, &folder.path().join("new")).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, summary) = services.stop().await.unwrap();
    assert_eq!((code, summary.as_ref().map(|it| &it["audit_verified"])), (Some(0), Some(&json!(true))), "{summary:?}");
}
