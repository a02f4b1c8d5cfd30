//! The README's walk is executed as it stands: against `services`, and against the programs as processes of their own.

use std::path::Path;
use std::process::Stdio;

use http::StatusCode;
use pim_testkit::caller::Caller;
use pim_testkit::folder::Folder;
use pim_testkit::nine::Nine;
use pim_testkit::program::Program;
use serde_json::Value;
use tokio::process::Command;

const README: &str = include_str!("../../../../README.md");

fn narrative() -> &'static str {
    let (_, rest) = README.split_once("<!-- narrative -->\n```sh\n").expect("the README has a narrative");
    rest.split_once("\n```").expect("the narrative ends").0
}

pub(crate) async fn walk(gateway: &str) -> String {
    let mut bash = Command::new("timeout");
    // Long enough for `cargo xtask` to be built on a busy machine.
    bash.args(["400", "bash", "-euo", "pipefail", "-c", narrative()]).env("GATEWAY", gateway);
    bash.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace's root"));
    let output = bash.stdin(Stdio::null()).output().await.expect("bash runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the walk failed: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

pub(crate) fn check(told: &str) {
    for expected in
        ["\"state\":\"draft\"", "\"claims\":1", "Quillfeather", "encounter.completed", "claim.drafted", "complete"]
    {
        assert!(told.contains(expected), "the walk did not show {expected}:\n{told}");
    }
    let request = told.lines().find_map(|line| line.strip_prefix("request  ")).expect("a journey was shown");
    let journeys = told.lines().filter(|line| line.ends_with(request)).count();
    assert!(journeys >= 2, "once by curl and once by xtask:\n{told}");
    assert!(told.contains("\"agrees\": true"), "xtask shows the lineage with its verification:\n{told}");
}

/// Every hop of the walk's request has its time, and the story goes from the gateway to the claim's read models.
pub(crate) async fn check_journey(gateway: &str, told: &str) {
    let request = told.lines().find_map(|line| line.strip_prefix("request  ")).expect("a journey was shown");
    let sre = Caller::sign_in(gateway, "sre").await.unwrap();
    let (status, journey) = sre.get(&format!("/v1/admin/journeys/{request}")).await.unwrap();
    assert_eq!(
        (status, &journey["complete"], &journey["unknown"]),
        (StatusCode::OK, &true.into(), &Value::Array(vec![]))
    );
    let hops = journey["hops"].as_array().unwrap();
    for hop in hops {
        assert!(hop["at"].is_string() && hop["state"] == "ok", "a hop without its time: {hop}\n{journey:#}");
    }
    let at = |stage: &str, what: &str| {
        let is_it = |hop: &Value| hop["stage"] == stage && hop["what"].as_str().unwrap().contains(what);
        hops.iter().position(is_it).unwrap_or_else(|| panic!("no hop {stage} {what}: {journey:#}"))
    };
    let story = [
        at("edge", "gateway POST"),
        at("service", "encounter-service POST"),
        at("commit", "encounter"),
        at("publish", "encounter.completed"),
        at("command", "draft-claim"),
        at("publish", "claim.drafted"),
    ];
    // The command's time is its end, so its commit is before it and its event may be published at once.
    assert!(story.windows(2).take(3).all(|pair| pair[0] < pair[1]), "{story:?}: {journey:#}");
    for model in ["patient_summary", "encounter_timeline", "audit_index", "journey_hops"] {
        at("apply", model);
    }
    let (edge, service) = (&hops[story[0]], &hops[story[1]]);
    assert_eq!(service["parent_id"], edge["span_id"], "the service's span is a child of the gateway's");
    assert_eq!(edge["parent_id"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn against_everything_in_one_process() {
    let arguments = ["--ephemeral", "--listen", "127.0.0.1:0", "--patients", "200", "--traffic", "off", "--json"];
    let services = Program::start("services", &arguments).await.unwrap();
    let gateway = services.told("gateway").to_owned();
    let told = walk(&gateway).await;
    check(&told);
    check_journey(&gateway, &told).await;
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
    let told = walk(&nine.gateway).await;
    check(&told);
    check_journey(&nine.gateway, &told).await;
    let codes = nine.stop().await.unwrap();
    assert_eq!(codes.len(), 9);
    // The personas stop first; on a machine that could not keep their pace they say so, with 6.
    assert!(matches!(codes[0], Some(0 | 6)), "{codes:?}");
    assert!(codes[1..].iter().all(|code| *code == Some(0)), "every program drains and ends well: {codes:?}");
}
