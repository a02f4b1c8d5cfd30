//! The README's walk is executed as it stands: against `services`, and against the programs as processes of their own.

use std::process::Stdio;

use pim_testkit::folder::Folder;
use pim_testkit::nine::Nine;
use pim_testkit::program::Program;
use tokio::process::Command;

const README: &str = include_str!("../../../../README.md");

fn narrative() -> &'static str {
    let (_, rest) = README.split_once("<!-- narrative -->\n```sh\n").expect("the README has a narrative");
    rest.split_once("\n```").expect("the narrative ends").0
}

async fn walk(gateway: &str) -> String {
    let mut bash = Command::new("timeout");
    bash.args(["60", "bash", "-euo", "pipefail", "-c", narrative()]).env("GATEWAY", gateway);
    let output = bash.stdin(Stdio::null()).output().await.expect("bash runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the walk failed: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

fn check(told: &str) {
    for expected in
        ["\"state\":\"draft\"", "\"claims\":1", "Quillfeather", "encounter.completed", "claim.drafted", "complete"]
    {
        assert!(told.contains(expected), "the walk did not show {expected}:\n{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn against_everything_in_one_process() {
    let arguments = ["--ephemeral", "--listen", "127.0.0.1:0", "--patients", "200", "--traffic", "off", "--json"];
    let services = Program::start("services", &arguments).await.unwrap();
    check(&walk(services.told("gateway")).await);
    let (code, summary) = services.stop().await.unwrap();
    let summary = summary.expect("a summary");
    assert_eq!((code, summary["verdict"].as_str()), (Some(0), Some("ok")), "{summary:#}");
    assert_eq!((&summary["lost"], &summary["duplicated"]), (&0.into(), &0.into()));
    assert_eq!(summary["audit_verified"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn against_nine_programs_on_one_data_directory() {
    let folder = Folder::new("nine").unwrap();
    let nine = Nine::start(folder.path()).await.unwrap();
    check(&walk(&nine.gateway).await);
    assert!(nine.stop().await.unwrap().iter().all(|code| *code == Some(0)), "every program drains and ends well");
}
