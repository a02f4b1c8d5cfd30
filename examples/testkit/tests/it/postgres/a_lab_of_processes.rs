//! `cargo xtask lab up --mode process`: the README's walk, a promotion while all serve, and nothing is left behind.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use pim_lab::ids::PatientId;
use pim_servers::fleet::Fleet;
use pim_testkit::folder::Folder;
use serde_json::Value;
use tokio::process::Command;

use crate::narrative_works_as_written::{check, check_journey, walk};
use crate::workload::{Workload, settled};

/// A lab in the background, which is stopped whatever happens to the test.
pub(super) struct Background {
    pub(super) folder: PathBuf,
    pub(super) is_up: bool,
}

impl Background {
    pub(super) async fn run(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let Output { status, stdout, stderr } = self.command(arguments).output().await.expect("cargo runs");
        let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        let document: Value =
            serde_json::from_str(out.trim()).unwrap_or_else(|_| panic!("{arguments:?}: {out}\n{err}"));
        (status.code(), document)
    }

    pub(super) async fn ask(&self, arguments: &[&str], name: &str) -> Value {
        let (code, document) = self.run(arguments).await;
        assert_eq!(code, Some(0), "{arguments:?}: {document:#}");
        assert_eq!(document["schema"], format!("pim.lab.{name}/v1"));
        document[name].clone()
    }

    /// How a verb ends that is to be refused.
    pub(super) async fn code(&self, arguments: &[&str]) -> Option<i32> {
        self.command(arguments).output().await.expect("cargo runs").status.code()
    }

    /// How a verb ends, and what it says to people.
    pub(super) async fn said(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let ended = self.command(arguments).output().await.expect("cargo runs");
        (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("cargo");
        command.args(["xtask", "lab", "--json", "--folder"]).arg(&self.folder).args(arguments).stdin(Stdio::null());
        command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace's root"));
        command
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.is_up {
            let _best_effort = self.command(&["down"]).into_std().output();
        }
    }
}

/// Moves buckets of which at least one is written to. The admin service alone has the owner's secrets.
async fn move_there_and_back(lab: &Background, patient: &str, workload: &Workload) {
    let bucket = patient.parse::<PatientId>().expect("an id").bucket().get();
    let run = format!("{}-{}", bucket.saturating_sub(31), bucket.max(31));
    for to in ["0", "1", "0"] {
        let moved = lab.ask(&["shard", "move", &run, "--to", to], "shard-move").await;
        let moves = moved["moves"].as_array().unwrap();
        assert!(moves.iter().all(|it| it["step"] == "done"), "{moved:#}");
        for it in moves {
            println!(
                "moved {} rows to shard {to}, fence to map {} µs",
                it["report"]["rows"], it["report"]["paused_us"]
            );
        }
        workload.acknowledgement().await;
    }
    assert_eq!(workload.failed().await, 0, "a write failed while its bucket moved");
}

/// A map without a standby, and the way back: every program follows, and no write notices.
async fn leave_a_standby_out_and_go_back(lab: &Background, workload: &Workload) {
    let endpoints = async || {
        let shards = lab.ask(&["shard", "list"], "shards").await;
        shards["items"][0]["endpoints"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(endpoints().await, 2);
    let told = lab.ask(&["shard", "map"], "shard-map").await;
    let version = told["version"].as_u64().expect("a version");
    let mut map: toml::Table = told["toml"].as_str().expect("a map").parse().expect("a map is TOML");
    map.insert("version".to_owned(), i64::try_from(version + 1).expect("a small number").into());
    map.insert("parent".to_owned(), told["digest"].as_str().expect("a digest").into());
    let named = map["shards"][0]["endpoints"].as_array_mut().expect("servers");
    named.retain(|endpoint| endpoint["role"].as_str() == Some("primary"));
    let file = lab.folder.with_extension("toml");
    std::fs::write(&file, map.to_string()).expect("writes");
    lab.ask(&["shard", "publish", file.to_str().expect("a name")], "shard-publish").await;
    assert_eq!(endpoints().await, 1);
    for _ in 0..10 {
        workload.acknowledgement().await;
    }
    lab.ask(&["shard", "rollback", "--to", &version.to_string()], "shard-rollback").await;
    assert_eq!(endpoints().await, 2);
    for _ in 0..10 {
        workload.acknowledgement().await;
    }
    assert_eq!(workload.failed().await, 0, "a write failed while servers were exchanged");
}

/// A third shard, on servers of its own, while everybody writes: a bucket that is written to goes there and comes back.
async fn add_a_shard(lab: &Background, patient: &str, workload: &Workload) {
    let added = lab.ask(&["servers", "add"], "servers-add").await;
    assert_eq!(added["shard"], 2, "{added:#}");
    lab.ask(&["shard", "publish", added["next_map"].as_str().expect("a map")], "shard-publish").await;
    let bucket = patient.parse::<PatientId>().expect("an id").bucket().to_string();
    for to in ["2", "0"] {
        let moved = lab.ask(&["shard", "move", &bucket, "--to", to], "shard-move").await;
        assert_eq!(moved["moves"][0]["step"], "done", "{moved:#}");
        for _ in 0..10 {
            workload.acknowledgement().await;
        }
    }
    assert_eq!(lab.code(&["servers", "remove"]).await, Some(7), "the map leads there");
    assert_eq!(workload.failed().await, 0, "a write failed while a shard came");
}

/// Processes that were told of a folder.
fn processes_of(folder: &Path) -> Vec<String> {
    let told = |entry: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&text).replace('\0', " "))
    };
    let all = std::fs::read_dir("/proc").expect("processes").filter_map(told);
    all.filter(|line| line.contains(&*folder.to_string_lossy())).collect()
}

/// The servers below a lab.
pub(super) async fn fleet_of(lab: &Background) -> Fleet {
    let servers = lab.ask(&["servers", "status"], "servers").await;
    let secrets = PathBuf::from(servers["files"]["secrets"].as_str().unwrap());
    Fleet::open(secrets.parent().expect("the servers' folder")).expect("is there")
}

/// The standby of a shard is lost: its writes go on when an operator says so, and a promotion that may lose them is refused.
async fn do_without_a_standby(lab: &Background, workload: &Workload) {
    let (_, standby) = fleet_of(lab).await.servers_of(0).expect("a shard");
    standby.kill().expect("is lost");
    let degrade = ["shard", "degrade", "0", "--reason", "standby-lost"];
    let told = lab.ask(&degrade, "shard-degrade").await;
    assert_eq!((&told["shard"], &told["degraded"]["stage"]), (&0.into(), &"on".into()), "{told:#}");
    for _ in 0..10 {
        workload.acknowledgement().await;
    }
    let shards = lab.ask(&["shard", "list"], "shards").await;
    let stages: Vec<_> =
        shards["items"].as_array().unwrap().iter().map(|it| it["degraded"]["stage"].as_str()).collect();
    assert_eq!(stages, [Some("on"), None, None, None], "{shards:#}");
    let (code, found) = lab.run(&["shard", "doctor"]).await;
    let findings = found["shard-doctor"]["findings"].as_array().unwrap();
    assert!(
        code == Some(4) && findings.iter().any(|it| it["finding"].as_str().unwrap().contains("acknowledges")),
        "{found:#}"
    );

    standby.start().expect("is back");
    assert_eq!(lab.code(&["shard", "promote", "0"]).await, Some(7), "the standby may not have everything");
    let off = [&degrade[..], &["--off"]].concat();
    let give_up = std::time::Instant::now() + std::time::Duration::from_secs(60);
    // It fails until the standby has confirmed.
    while lab.run(&off).await.1["shard-degrade"]["degraded"] != Value::Null {
        assert!(std::time::Instant::now() < give_up, "the standby never confirmed");
    }
    assert_eq!(lab.ask(&["audit", "verify"], "audit-verify").await["verified"], true);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn is_walked_through_survives_a_promotion_and_goes_without_a_trace() {
    let folder = Folder::new("processes").unwrap();
    let mut lab = Background { folder: folder.path().join("lab"), is_up: true };
    let up = ["up", "--mode", "process", "--shards", "2", "--patients", "60", "--listen", "127.0.0.1:0"];
    let up = lab.ask(&up, "up").await;
    assert_eq!(
        (&up["mode"], &up["lab"]["seeded_patients"], &up["lab"]["shards"]),
        (&"process".into(), &60.into(), &2.into())
    );
    assert_eq!(up["lab"]["programs"].as_object().map(serde_json::Map::len), Some(9), "{up:#}");
    let gateway = up["lab"]["gateway"].as_str().unwrap().to_owned();

    let told = walk(&gateway).await;
    check(&told);
    check_journey(&gateway, &told).await;
    let shards = lab.ask(&["shard", "list"], "shards").await;
    assert!(shards["items"].as_array().unwrap().iter().all(|shard| shard["reachable"] == true), "{shards:#}");
    assert_eq!(lab.ask(&["audit", "verify"], "audit-verify").await["verified"], true);

    let workload = Workload::default();
    let before = settled(&gateway).await;
    // Personas write too, and these are counted: from here on only the workload does.
    let patients = workload.regulars(&gateway, 2).await;
    let writers = workload.begin(&gateway).await;
    workload.acknowledgement().await;
    move_there_and_back(&lab, &patients[0], &workload).await;
    leave_a_standby_out_and_go_back(&lab, &workload).await;
    add_a_shard(&lab, &patients[0], &workload).await;
    do_without_a_standby(&lab, &workload).await;
    for shard in ["0", "1"] {
        lab.ask(&["shard", "promote", shard], "shard-promote").await;
        workload.acknowledgement().await;
    }
    workload.rest(writers).await;
    let (unknown, answered) = workload.retry(&gateway).await;
    // A server that was the primary a moment ago has no known lag until it follows, and the doctor says so.
    let give_up = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let told = loop {
        let (code, told) = lab.run(&["shard", "doctor"]).await;
        if code == Some(0) || std::time::Instant::now() > give_up {
            break told["shard-doctor"].clone();
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    };
    assert_eq!(told["findings"], Value::Array(Vec::new()), "{told:#}");
    let examined = told["shards"].as_array().expect("shards");
    assert!(
        examined.len() > 1 && examined.iter().all(|it| it["schema_version"] == it["schema_version_known"]),
        "{told}"
    );
    let after = settled(&gateway).await;
    workload.check(&gateway).await;
    workload.check_lineage(&gateway).await;
    assert!(after["facts"].as_u64() > before["facts"].as_u64());
    println!("{} records, {unknown} sent again without an answer, {answered} with one", workload.records().await);
    assert!(lab.ask(&["status"], "status").await["ended"].is_null());

    let server = fleet_of(&lab).await.servers_of(1).expect("a shard").0.port();
    let before = processes_of(&lab.folder);
    assert!(before.len() > 4, "programs and servers run: {before:#?}");
    let (code, down) = lab.run(&["down"]).await;
    lab.is_up = false;
    assert_eq!(processes_of(&lab.folder), Vec::<String>::new(), "nobody is left behind");
    for place in [gateway.trim_start_matches("http://").to_owned(), format!("127.0.0.1:{server}")] {
        let answered = tokio::net::TcpStream::connect(&place).await;
        assert!(answered.is_err(), "somebody still listens at {place}");
    }
    // On a machine that could not keep the personas' pace they say so, with 6; what the stores say holds all the same.
    assert!(matches!(code, Some(0 | 6)), "{code:?} {down:#}");
    assert_eq!((&down["down"]["holds"], &down["down"]["lost"]), (&true.into(), &0.into()), "{down:#}");
    for left in ["process", "servers", "state.json"] {
        assert!(!lab.folder.join(left).exists(), "{left} is left behind");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn remembers_that_a_primary_that_is_gone_was_degraded() {
    let folder = Folder::new("degraded").unwrap();
    let lab = Background { folder: folder.path().join("lab"), is_up: true };
    let up = ["--shards", "1", "--patients", "10", "--traffic", "off", "--listen", "127.0.0.1:0"];
    lab.ask(&[&["up", "--mode", "process"][..], &up].concat(), "up").await;
    let (primary, standby) = fleet_of(&lab).await.servers_of(0).expect("a shard");
    standby.kill().expect("is lost first");
    lab.ask(&["shard", "degrade", "0", "--reason", "standby-lost"], "shard-degrade").await;
    primary.kill().expect("is lost too");
    standby.start().expect("is back, without what came after it was lost");
    assert_eq!(standby.sql("shard-0", "SELECT count(*) FROM pim_degraded").expect("answers"), "0");
    assert_eq!(
        lab.code(&["shard", "promote", "0"]).await,
        Some(7),
        "it could lose what the primary acknowledged alone"
    );
    let promoted = lab.ask(&["shard", "promote", "0", "--accept-loss", "standby-lost"], "shard-promote").await;
    assert_eq!(promoted["primary"], standby.name());
    let line = &promoted["given_up"]["checkpoint"];
    let told = lab.ask(&["audit", "verify"], "audit-verify").await;
    assert_eq!((&told["verified"], &told["losses"][0]["checkpoint"]), (&true.into(), line), "{promoted:#}{told:#}");
    assert_eq!(told["losses"][0]["reason"], "standby-lost");
}
