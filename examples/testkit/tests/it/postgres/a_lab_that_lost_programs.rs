//! A lab of processes of which some were killed: it is said which, and nothing is taken for well, or for done, that is not.

use std::process::Command;

use pim_testkit::folder::Folder;
use serde_json::{Value, json};

use super::a_lab_of_processes::{Background, fleet_of};

fn kill(lab: &Background, name: &str) {
    let state = std::fs::read_to_string(lab.folder.join("state.json")).expect("is noted");
    let state: Value = serde_json::from_str(&state).expect("is JSON");
    let programs = state["programs"].as_array().expect("programs");
    let pid = &programs.iter().find(|it| it["name"] == name).expect("was started")["pid"];
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().expect("runs").success());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn says_which_and_promises_nothing_without_them() {
    let folder = Folder::new("lost-programs").unwrap();
    let mut lab = Background { folder: folder.path().join("lab"), is_up: true };
    let up = ["--shards", "1", "--patients", "10", "--traffic", "off", "--listen", "127.0.0.1:0"];
    lab.ask(&[&["up", "--mode", "process"][..], &up].concat(), "up").await;
    kill(&lab, "admin-service");
    let (code, told) = lab.run(&["status"]).await;
    let status = &told["status"];
    assert_eq!((code, &status["running"], &status["ended"]), (Some(4), &true.into(), &json!(["admin-service"])));
    let (code, told) = lab.run(&["shard", "doctor"]).await;
    let findings = told["shard-doctor"]["findings"].as_array().expect("findings");
    assert_eq!((code, findings.len(), &findings[0]["code"]), (Some(4), 1, &"lab-silent".into()), "{told:#}");
    assert!(findings[0]["finding"].as_str().is_some_and(|it| it.contains("told to: admin-service")), "{told:#}");

    let (primary, standby) = fleet_of(&lab).await.servers_of(0).expect("a shard");
    kill(&lab, "gateway");
    primary.kill().expect("is lost");
    let (code, said) = lab.said(&["shard", "promote", "0", "--accept-loss", "drill"]).await;
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("is not given up yet") && said.contains("shard accept-loss 0 --reason drill"), "{said}");
    assert_eq!(fleet_of(&lab).await.servers_of(0).expect("a shard").0.name(), standby.name(), "it has taken over");
    // Whatever has ended, nothing is left behind.
    let (code, said) = lab.said(&["down"]).await;
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("admin-service") && !lab.folder.join("state.json").exists(), "{said}");
    lab.is_up = false;
}
