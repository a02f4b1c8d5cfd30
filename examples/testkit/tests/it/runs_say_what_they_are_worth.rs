//! Exit codes of `services`: a run that cannot be paced is invalid, bad flags and used directories are named.

use std::process::Stdio;

use pim_testkit::folder::Folder;
use pim_testkit::program::{self, Program};
use tokio::process::Command;

async fn ends(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(program::built("services").unwrap());
    let output = command.args(arguments).stdin(Stdio::null()).output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_that_cannot_be_reached_is_invalid() {
    let arguments =
        ["--ephemeral", "--listen", "127.0.0.1:0", "--patients", "50", "--traffic", "8000", "--for", "3s", "--json"];
    let (code, out, _) = ends(&arguments).await;
    let last = out.lines().last().unwrap_or_default();
    assert_eq!(code, Some(6), "{last}");
    assert!(last.contains("\"verdict\":\"invalid\"") && last.contains("\"lost\":0"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_flags_and_settings_are_named() {
    let folder = Folder::new("settings").unwrap();
    let file = folder.path().join("lab.yaml");
    std::fs::write(&file, "shard: 4\n").unwrap();
    let (code, _, err) = ends(&["--config", &file.display().to_string()]).await;
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("shard") && err.contains("shards"), "names the key and the fix: {err}");
    let (code, _, err) = ends(&["--traffic", "lots"]).await;
    assert_eq!(code, Some(2), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_use_or_of_another_form_is_named() {
    let folder = Folder::new("used").unwrap();
    let data_dir = folder.path().display().to_string();
    let common = ["--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--patients", "20", "--traffic", "off", "--json"];
    let first = Program::start("services", &common).await.unwrap();
    let (code, _, err) = ends(&[&common[..], &["--for", "1s"]].concat()).await;
    assert_eq!(code, Some(3), "{err}");
    assert!(err.contains("in use"), "{err}");
    let port = first.told("gateway").rsplit(':').next().unwrap().to_owned();
    let (code, _, err) = ends(&["--ephemeral", "--listen", &format!("127.0.0.1:{port}"), "--for", "1s"]).await;
    assert_eq!(code, Some(3), "{err}");
    assert!(err.contains("port is in use"), "{err}");
    assert_eq!(first.stop().await.unwrap().0, Some(0));
    let (code, _, err) = ends(&[&common[..], &["--shards", "7", "--for", "1s"]].concat()).await;
    assert_eq!(code, Some(3), "{err}");
    assert!(err.contains("was made with 4 shards, not 7"), "{err}");
}
