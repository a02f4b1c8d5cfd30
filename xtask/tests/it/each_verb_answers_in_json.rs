//! Every verb against a running lab: exit code 0, and one document with the verb's schema.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::xtask::{Ended, Folder, xtask};

/// A lab in the background that is stopped whatever happens to the test.
struct Background {
    folder: String,
    is_up: bool,
}

impl Background {
    fn up(folder: &Folder) -> (Self, Value) {
        let lab = Self { folder: folder.join("lab"), is_up: true };
        let up = lab.ask(&[
            "up",
            "--data-dir",
            &folder.join("data"),
            "--listen",
            "127.0.0.1:0",
            "--patients",
            "60",
            "--shards",
            "2",
            "--traffic",
            "off",
        ]);
        (lab, up.document("up"))
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        xtask(&[&["lab", "--folder", &self.folder, "--json"], arguments].concat())
    }

    fn ask(&self, arguments: &[&str]) -> Ended {
        let ended = self.run(arguments);
        assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
        ended
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.is_up {
            self.run(&["down"]);
        }
    }
}

#[test]
fn of_a_running_lab() {
    let folder = Folder::new("verbs");
    let (mut lab, up) = Background::up(&folder);
    assert_eq!((&up["mode"], &up["lab"]["seeded_patients"]), (&"embedded".into(), &60.into()));
    assert!(lab.run(&["up"]).err.contains("is running already"));

    let token = lab.ask(&["token", "clinician", "clinician-3"]).document("token");
    assert_eq!((&token["role"], &token["subject"]), (&"clinician".into(), &"clinician-3".into()));
    let unknown = lab.run(&["token", "clinician", "nobody-3"]);
    assert_eq!((unknown.code, unknown.err.contains("nobody-3")), (Some(2), true), "{unknown:?}");

    let map = lab.ask(&["shard", "map"]).document("shard-map");
    let file = folder.join("map.toml");
    std::fs::write(&file, map["toml"].as_str().expect("the map's text")).unwrap();
    let nonsense = folder.join("nonsense.toml");
    std::fs::write(&nonsense, "version = 0").unwrap();
    let patient = token["facility_id"].as_str().expect("a facility").to_owned();
    let rows: &[(&[&str], &str)] = &[
        (&["status"], "status"),
        (&["logs", "--lines", "3"], "logs"),
        (&["shard", "list"], "shards"),
        (&["shard", "publish", &file, "--dry-run"], "shard-publish"),
        (&["shard", "publish", &file], "shard-publish"),
        (&["outbox"], "outbox"),
        (&["projection", "rebuild", "patient_search"], "rebuild"),
        (&["dlq", "list"], "dead-letters"),
        (&["projection", "list"], "projections"),
        (&["audit", "verify"], "audit-verify"),
        (&["retention", "plan", "--audit-days", "365"], "retention-plan"),
        (&["retention", "run", "--history-days", "30"], "retention-run"),
        (&["backup", "create", "--name", "one"], "backup-create"),
        (&["backup", "list"], "backups"),
        (&["audit", "show", "--user", "00000000-0000-8000-8000-000000000000"], "audit"),
    ];
    for (arguments, name) in rows {
        let document = lab.ask(arguments).document(name);
        assert!(!document.is_null(), "{arguments:?}");
    }
    let load = lab.run(&["load", "--for", "1s", "--rate", "3"]);
    // A busy machine may be too late for a run that says something; then that is said.
    let code = if load.document("load")["valid"] == true { 0 } else { 6 };
    assert_eq!(load.code, Some(code), "{load:?}");
    assert_eq!(lab.run(&["retention", "run", "--audit-days", "89"]).code, Some(2), "too short");
    assert_eq!(lab.run(&["backup", "create", "--name", "one"]).code, Some(7), "the name is taken");
    assert_eq!(lab.run(&["shard", "degrade", "0", "--reason", "drill"]).code, Some(7), "a file has no standby");
    assert_eq!(lab.run(&["shard", "degrade", "0", "--reason", "no word"]).code, Some(2));
    let place = lab.ask(&["backup", "list"]).document("backups")["items"][0]["place"].as_str().unwrap().to_owned();
    assert_eq!(lab.ask(&["backup", "verify", &place]).document("backup-verify")["whole"], true);
    let restored = folder.join("restored");
    let report = lab.ask(&["restore", &place, "--data-dir", &restored]).document("restore");
    assert!(report["recovery_point_ms"].is_u64() && report["recovery_time_ms"].is_u64(), "{report}");
    assert_eq!(lab.run(&["restore", &place, "--data-dir", &restored]).code, Some(7), "never over something");
    assert_eq!(lab.run(&["restore", &folder.join("none"), "--data-dir", &folder.join("else")]).code, Some(3));
    let patient_id = lab.ask(&["token", "patient"]).document("token")["patient_id"].as_str().unwrap().to_owned();
    let lineage = ["lineage", "patient", &patient_id, "--as-of", "2100-01-01T00:00:00Z", "--verify"];
    let lineage = lab.ask(&lineage).document("lineage");
    let request = lineage["changes"][0]["request_id"].as_str().expect("the request that made it").to_owned();
    let journey = lab.ask(&["journey", &request]).document("journey");
    assert!(journey["hops"].as_array().is_some_and(|hops| !hops.is_empty()), "{journey}");
    // What nobody has is named, and is no defect of the lab.
    assert_eq!(lab.run(&["lineage", "facility", &patient]).code, Some(2));
    assert_eq!(lab.run(&["shard", "publish", &nonsense]).code, Some(2));

    shards_change(&lab, &file);
    follow_to_the_end(&lab);
    let down = xtask(&["lab", "--folder", &lab.folder, "--json", "down"]);
    lab.is_up = false;
    assert_eq!(down.code, Some(0), "{down:?}");
    assert_eq!(down.document("down")["verdict"], "ok");
}

/// Maps are looked at, buckets move and come back, and a shard is emptied to its last bucket.
fn shards_change(lab: &Background, map: &str) {
    // The one in force cannot be published again, and a look at it says so.
    let validated = lab.run(&["shard", "validate", map]);
    let found = validated.document("shard-validate");
    assert_eq!((validated.code, found["findings"][0]["severity"].as_str()), (Some(4), Some("error")), "{found}");
    assert_eq!(lab.run(&["shard", "diff", map]).document("shard-diff")["handovers"], 0);
    let in_force = || lab.ask(&["shard", "map"]).document("shard-map")["toml"].clone();
    let before = in_force();
    assert!(!lab.ask(&["shard", "move", "7", "--to", "1", "--dry-run"]).document("shard-move").is_null());
    assert_eq!(in_force(), before, "nothing has moved");
    lab.ask(&["shard", "move", "7", "--to", "1"]).document("shard-move");
    let moves = lab.ask(&["shard", "moves"]).document("shard-moves");
    let (id, step) = (moves["items"][0]["id"].as_str().expect("a move").to_owned(), moves["items"][0]["step"].as_str());
    assert_eq!(step, Some("done"), "{moves}");
    assert_eq!(lab.run(&["shard", "cancel", &id]).code, Some(7), "it has changed the map");
    lab.ask(&["shard", "reverse", &id]).document("shard-reverse");
    let moves = lab.ask(&["shard", "moves"]).document("shard-moves");
    assert_eq!(
        (&moves["items"][0]["reverses"], &moves["items"][0]["target"]),
        (&id.as_str().into(), &0.into()),
        "{moves}"
    );
    let drained = lab.ask(&["shard", "drain", "1", "--to", "0"]).document("shard-drain");
    assert_eq!(drained["moves"].as_array().map(Vec::len), Some(2048 / 64), "{drained}");
    assert_eq!(lab.ask(&["shard", "drain", "1", "--to", "0"]).document("shard-drain")["moves"], serde_json::json!([]));
    a_shard_joins(lab, map);
    // Nothing was lost, so nothing is given up; the epochs rise all the same.
    let before = in_force();
    assert!(!lab.ask(&["shard", "accept-loss", "0", "--reason", "drill"]).document("shard-accept-loss").is_null());
    assert_ne!(in_force(), before);
}

/// A map brings a third shard, a bucket with its rows goes there and comes back, and the map goes back too.
fn a_shard_joins(lab: &Background, file: &str) {
    let told = lab.ask(&["shard", "map"]).document("shard-map");
    let (version, text) = (told["version"].as_u64().expect("a version"), told["toml"].as_str().expect("a map"));
    let mut map: toml::Table = text.parse().expect("a map is TOML");
    map.insert("version".to_owned(), i64::try_from(version + 1).expect("a small number").into());
    map.insert("parent".to_owned(), told["digest"].as_str().expect("a digest").into());
    let joins = "id = 2\nname = \"shard-2\"\nstate = \"live\"\n\
                 endpoints = [{ id = \"shard-2-primary\", role = \"primary\", dsn_ref = \"shard-2\" }]";
    let joins: toml::Table = joins.parse().expect("a shard");
    map["shards"].as_array_mut().expect("shards").push(joins.into());
    std::fs::write(file, map.to_string()).expect("writes");
    lab.ask(&["shard", "publish", file]).document("shard-publish");
    let listed = lab.ask(&["shard", "list"]).document("shards");
    assert!(listed["items"].as_array().is_some_and(|items| items.iter().any(|it| it["shard"] == 2)), "{listed}");
    // Its outbox is looked after, or the move would wait for it to run dry.
    lab.ask(&["shard", "move", "7", "--to", "2"]).document("shard-move");
    let moved = lab.ask(&["shard", "moves"]).document("shard-moves")["items"][0].clone();
    assert_eq!((&moved["target"], &moved["step"]), (&2.into(), &"done".into()), "{moved}");
    lab.ask(&["shard", "reverse", moved["id"].as_str().expect("a move")]).document("shard-reverse");
    let dry = lab.ask(&["shard", "rollback", "--to", &version.to_string(), "--dry-run"]).document("shard-rollback");
    assert_eq!((&dry["dry_run"], &dry["handovers"]), (&true.into(), &0.into()), "{dry}");
    lab.ask(&["shard", "rollback", "--to", &version.to_string()]).document("shard-rollback");
    let back = lab.ask(&["shard", "map"]).document("shard-map");
    assert!(back["toml"].as_str().is_some_and(|text| text.contains("retired")), "it is kept for what it still holds");
    let in_force = lab.ask(&["shard", "map"]).document("shard-map")["version"].clone();
    let again = lab.ask(&["shard", "rollback", "--to", &version.to_string()]).document("shard-rollback");
    assert_eq!(again["version"], in_force, "it has been gone already");
    assert_eq!(lab.run(&["shard", "rollback", "--to", "99"]).code, Some(2));
}

/// Each followed line is a document; following ends with the lab, or with whoever reads.
fn follow_to_the_end(lab: &Background) {
    let mut follow = Command::new(env!("CARGO_BIN_EXE_xtask"));
    follow.args(["lab", "--folder", &lab.folder, "--json", "logs", "--follow", "--lines", "1"]);
    let mut follow = follow.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut line = String::new();
    let out = follow.stdout.take().expect("a pipe");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("a line");
    let line: Value = serde_json::from_str(&line).expect("a document");
    assert_eq!(line["schema"], "pim.lab.log/v1");
    // The reader is gone now; one more request makes one more line, at which following must end.
    lab.ask(&["outbox"]);
    assert!(follow.wait().expect("it ends").success());
}

#[test]
fn without_a_lab() {
    let folder = Folder::new("alone");
    let lab = Background { folder: folder.join("lab"), is_up: false };
    let plan = lab.ask(&["plan", "--seed", "7"]).document("plan");
    assert_eq!((plan["digest"].as_str().map(str::len), &plan["seed"]), (Some(64), &7.into()));
    assert_eq!((plan["dataset"]["digest"].as_str().map(str::len), &plan["dataset"]["seed"]), (Some(64), &7.into()));
    let profile = folder.join("profile.yaml");
    std::fs::write(&profile, "seed: 7\nshards: 8\npersonas: {shape: {kind: burst, period_s: 60, burst_s: 5}}\n")
        .unwrap();
    let shaped = lab.ask(&["plan", "--profile", &profile]).document("plan");
    assert_eq!((&shaped["seed"], &shaped["dataset"]), (&7.into(), &plan["dataset"]), "8 shards have the same people");
    assert_ne!(shaped["digest"], plan["digest"], "another shape is another plan");
    std::fs::write(&profile, "seed: 7\nshards: 2\n").unwrap();
    assert_eq!(lab.ask(&["plan", "--profile", &profile]).document("plan")["digest"], plan["digest"]);
    let seed = ["seed", "--data-dir", &folder.join("data"), "--patients", "40", "--history", "50", "--shards", "2"];
    let first = lab.ask(&seed).document("seed");
    assert_eq!((&first["seeded_patients"], &first["audit_verified"]), (&40.into(), &true.into()), "{first}");
    assert!(first["facts"].as_u64().is_some_and(|facts| facts > 200), "they have a past: {first}");
    assert_eq!(lab.ask(&seed).document("seed")["seeded_patients"], 0, "it has been filled");
    let status = lab.run(&["status"]);
    assert_eq!((status.code, &status.document("status")["running"]), (Some(3), &false.into()));
}
