//! The face of `services`: at a terminal, in a pipe, and as JSON lines; what it prints works as printed.

use std::process::{Output, Stdio};

use pim_data::backend::{Db, DbSettings};
use pim_testkit::folder::Folder;
use pim_testkit::program::{self, Program};
use pim_testkit::terminal::Terminal;
use serde_json::Value;
use tokio::process::Command;

const SMALL: [&str; 5] = ["--ephemeral", "--listen", "127.0.0.1:0", "--patients", "300"];

async fn ends(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(program::built("services").unwrap());
    command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
    let Output { status, stdout, stderr } = command.output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (status.code(), text(&stdout), text(&stderr))
}

/// Executes the lines of the page that a person is asked to execute, as they stand, in one shell.
async fn execute(page: &str) -> Vec<Value> {
    let is_asked = |line: &&str| line.starts_with("  export ") || line.starts_with("  curl ");
    let lines: Vec<&str> = page.lines().filter(is_asked).collect();
    assert_eq!(lines.iter().filter(|line| line.starts_with("  curl ")).count(), 4, "{page}");
    let script = lines.join("\necho\n");
    let output = Command::new("bash").args(["-euc", &script]).stdin(Stdio::null()).output().await.unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{script}\n{out}");
    out.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_terminal() {
    let arguments = [&SMALL[..3], &["--patients", "1500", "--traffic", "10"]].concat();
    let terminal = Terminal::start("services", &arguments).unwrap();
    let page = terminal.shows("Ctrl-C drains").await.unwrap();
    assert!(page.contains("seeding  ") && page.contains("/1500 patients") && page.contains('█'), "a bar: {page}");
    for part in ["gateway ", "admin-service ", "session-broker ", "ready after ", "MiB resident"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let answers = execute(&page).await;
    assert_eq!(answers.len(), 4);
    for answer in &answers {
        let is_problem =
            answer["type"].as_str().is_some_and(|kind| kind.contains("problem")) || answer["status"].is_u64();
        assert!(!is_problem, "{answer}");
    }
    terminal.shows("requests/s").await.unwrap();
    let line = terminal.shows(" clinician ").await.unwrap();
    let line = line.rsplit("requests/s").next().unwrap();
    // Somebody may ask for what read models have not folded yet: how many errors there are depends on the machine.
    for part in ["p50 ", "p99 ", "errors ", "backlog ", "freshness ", "parked 0"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let (code, all) = terminal.interrupt().await.unwrap();
    // A busy machine may be too late for a run that says something; then that is said.
    assert!(matches!(code, Some(0 | 6)), "{all}");
    assert!(all.contains("lost 0, duplicated 0") && all.contains("audit      verified"), "{all}");
    assert!(!all.contains("\"event\""), "no log lines bury the page: {all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_pipe() {
    let (code, out, err) = ends(&[&SMALL[..], &["--traffic", "off", "--for", "1s"]].concat(), &[]).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(err.lines().any(|line| line == "seeding 300/300 patients on 4 shards"), "plain lines: {err}");
    assert!(out.contains("ready after") && out.contains("verdict    ok"), "{out}");
    assert!(!out.contains('\x1b') && !out.contains('\r') && !out.contains("backlog 0  "), "no status line: {out}");
}

/// Every field that is promised, whatever the traffic.
fn check_lines(out: &str, has_traffic: bool) {
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let (ready, summary) = (lines.first().expect("a line"), lines.last().expect("a line"));
    assert_eq!((&ready["event"], &summary["event"]), (&"ready".into(), &"summary".into()));
    for member in ["gateway", "admin", "ready_ms", "backlog", "rss_mib"] {
        assert!(!ready[member].is_null(), "{member}: {ready}");
    }
    assert!(ready["tokens"].as_object().is_some_and(|tokens| tokens.len() == 4), "{ready}");
    for member in ["requests", "errors", "backlog", "lost", "duplicated"] {
        assert!(summary[member].is_u64(), "{member}: {summary}");
    }
    assert!(summary["latency"].is_object() && summary["audit_verified"].is_boolean(), "{summary}");
    for member in ["freshness_p50_ms", "freshness_p99_ms"] {
        assert_eq!(summary.get(member).map(Value::is_f64), Some(has_traffic), "{member}: {summary}");
    }
    assert_eq!(summary["requests"].as_u64().unwrap() > 0, has_traffic, "{summary}");
    let sum: u64 = summary["latency"].as_object().unwrap().values().map(|it| it["requests"].as_u64().unwrap()).sum();
    assert_eq!(sum, summary["requests"], "{summary}");
    let expected = if summary["traffic"]["valid"] == true { "ok" } else { "invalid" };
    assert_eq!(summary["verdict"], expected, "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn as_json_lines() {
    let with = [&SMALL[..], &["--json", "--for", "3s", "--traffic", "20"]].concat();
    let (code, out, err) = ends(&with, &[]).await;
    assert!(matches!(code, Some(0 | 6)), "{err}");
    check_lines(&out, true);
    let without = [&SMALL[..], &["--json", "--for", "100ms", "--traffic", "off"]].concat();
    let (code, out, err) = ends(&without, &[]).await;
    assert_eq!(code, Some(0), "{err}");
    check_lines(&out, false);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_flags_and_settings() {
    let folder = Folder::new("rules").unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (unknown, tabs) = (file("unknown.yaml", "shard: 4\n"), file("tabs.yaml", "shards:\n\t- 4\n"));
    let (value, bound) = (file("value.yaml", "traffic: lots\n"), file("bound.yaml", "in_flight_max: 0\n"));
    // Arguments, a variable, and what the error must hold: the key, and what to do.
    type Row<'a> = (&'a [&'a str], (&'a str, &'a str), &'a [&'a str]);
    let rows: &[Row<'_>] = &[
        (&["--shard", "4"], ("A", ""), &["--shard", "--shards"]),
        (&["--shards", "0"], ("A", ""), &["--shards", "1..=1024"]),
        (&["--patients=-1"], ("A", ""), &["--patients", "0..="]),
        (&["--seed", "x"], ("A", ""), &["--seed", "a whole number"]),
        (&["--listen", "here"], ("A", ""), &["--listen", "127.0.0.1:8080"]),
        (&["--traffic", "lots"], ("A", ""), &["--traffic", "`off` or sessions a second"]),
        (&["--for", "ever"], ("A", ""), &["--for", "30s"]),
        (&["--ephemeral", "--data-dir", "x"], ("A", ""), &["--ephemeral", "--data-dir"]),
        (&["--config", "/nowhere.yaml"], ("A", ""), &["/nowhere.yaml", "--config"]),
        (&["--config", &unknown], ("A", ""), &["`shard`", "unknown.yaml", "did you mean `shards`?"]),
        (&["--config", &tabs], ("A", ""), &["tabs.yaml", "line 2"]),
        (&["--config", &value], ("A", ""), &["`traffic`", "value.yaml", "`off` or sessions a second"]),
        (&["--config", &bound], ("A", ""), &["`in_flight_max`", "from 1 to"]),
        (&[], ("PIM_SHARD", "4"), &["`shard`", "environment", "did you mean `shards`?"]),
        (&[], ("PIM_SHARDS", "9999"), &["`shards`", "from 1 to 1024"]),
    ];
    for (arguments, variable, named) in rows {
        let (code, out, err) = ends(arguments, &[*variable]).await;
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?} {variable:?}: {err}");
        assert!(named.iter().all(|part| err.contains(part)), "{arguments:?} must name {named:?}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_directory() {
    let folder = Folder::new("newer").unwrap();
    let data_dir = folder.path().display().to_string();
    let common = ["--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--patients", "20", "--traffic", "off", "--json"];
    let first = Program::start("services", &common).await.unwrap();
    assert_eq!(first.stop().await.unwrap().0, Some(0));
    let layout = folder.path().join("layout.toml");
    let text = std::fs::read_to_string(&layout).unwrap();
    std::fs::write(&layout, text.replace("format = ", "format = 9")).unwrap();
    let refused = async |named: &str| {
        let (code, _, err) = ends(&common, &[]).await;
        assert_eq!(code, Some(3), "{err}");
        assert!(err.contains("use a newer program") && err.contains(named), "{named}: {err}");
    };
    refused(&data_dir).await;
    std::fs::write(&layout, text).unwrap();
    // A migration of a newer program: in a shard, in the control database, and one of a library between those that are known.
    for (database, version) in [("shards/shard-1.db", 90_000), ("control.db", 90_000), ("shards/shard-3.db", 999)] {
        let file = folder.path().join(database);
        migration(&file, &format!("INSERT INTO pim_migration VALUES ({version}, 'later', zeroblob(32), 0)")).await;
        refused(database).await;
        migration(&file, &format!("DELETE FROM pim_migration WHERE version = {version}")).await;
    }
    let whole = Program::start("services", &common).await.unwrap();
    assert_eq!(whole.stop().await.unwrap().0, Some(0), "nothing was changed by whoever was refused");
}

/// Writes into the list of applied migrations by hand.
async fn migration(file: &std::path::Path, text: &str) {
    let db = Db::open(file, DbSettings::default()).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    tx.script(text).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_stops_it_while_it_seeds_need_not_wait() {
    let folder = Folder::new("stopped").unwrap();
    let data_dir = folder.path().join("data").display().to_string();
    let arguments = ["--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--patients", "2000000", "--traffic", "off"];
    let mut command = Command::new(program::built("services").unwrap());
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let services = command.spawn().unwrap();
    let pid = services.id().unwrap().to_string();
    // Seeding has begun when a shard has rows to write.
    while !folder.path().join("data/layout.toml").exists() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Command::new("kill").args(["-INT", &pid]).status().await.unwrap();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(60), services.wait_with_output()).await;
    let err =
        String::from_utf8_lossy(&ended.expect("it ends long before everybody is there").unwrap().stderr).into_owned();
    assert!(err.contains("stopped while seeding"), "{err}");
}
