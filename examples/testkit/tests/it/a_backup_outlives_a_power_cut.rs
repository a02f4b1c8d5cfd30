//! A backup that was told of is whole when the power goes right after, and so is what was restored from it.

use std::path::Path;
use std::process::{Command, Stdio};

use http::StatusCode;
use pim_testkit::caller::{Caller, fresh_key};
use pim_testkit::disk::{Disk, Unsynced};
use pim_testkit::program::{Program, built};
use serde_json::json;

async fn start(disk: &Disk, data_dir: &Path) -> Program {
    let data_dir = data_dir.display().to_string();
    let arguments =
        ["--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--patients", "20", "--traffic", "off", "--json"];
    Program::start_on(disk, "services", &arguments).await.expect("services starts")
}

/// What `services` ends with when it is told to check or to restore.
fn offline(disk: &Disk, arguments: &[&str]) -> Option<i32> {
    let mut command = Command::new(built("services").unwrap());
    command.args(arguments).envs(disk.environment()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().expect("services runs").code()
}

#[tokio::test(flavor = "multi_thread")]
async fn and_so_does_what_was_restored() {
    let mut disk = Disk::new(0).unwrap();
    // The backups are beside the data directory, on the same disk.
    let (data_dir, restored) = (disk.root().join("lab"), disk.root().join("restored"));
    let services = start(&disk, &data_dir).await;
    let sre = Caller::sign_in(services.told("gateway"), "sre").await.unwrap();
    let (status, made) = sre.post("/v1/admin/backups", &fresh_key(), &json!({"name": "one"})).await.unwrap();
    assert_eq!(status, StatusCode::OK, "{made:#}");
    services.kill().await.unwrap();
    disk.lose_power(Unsynced::Lost).unwrap();
    let place = made["place"].as_str().unwrap();
    assert_eq!(offline(&disk, &["--check-backup", place]), Some(0), "every file is there under its name");

    let into = restored.display().to_string();
    assert_eq!(offline(&disk, &["--restore", place, "--data-dir", &into]), Some(0));
    disk.lose_power(Unsynced::Lost).unwrap();
    let services = start(&disk, &restored).await;
    let (code, summary) = services.stop().await.unwrap();
    assert_eq!(code, Some(0), "{summary:?}");
}
