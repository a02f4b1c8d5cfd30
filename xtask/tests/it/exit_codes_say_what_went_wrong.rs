//! 2 usage · 3 precondition · 4 threshold · 6 run invalid · 7 refused: one row a way to fail.

use std::net::TcpListener;

use super::stand_in;
use super::xtask::{Folder, xtask, xtask_without_postgres};

/// Arguments after `lab`, the code, and what the error must name.
type Row<'a> = (&'a [&'a str], i32, &'a str);

fn check(common: &[&str], rows: &[Row<'_>]) {
    for (arguments, code, named) in rows {
        let ended = xtask(&[&["lab"], common, *arguments].concat());
        assert_eq!(ended.code, Some(*code), "{common:?} {arguments:?}: {ended:?}");
        assert!(ended.err.contains(named), "{arguments:?} must name {named}: {}", ended.err);
    }
}

#[test]
fn of_bad_arguments() {
    let folder = Folder::new("usage");
    let file = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.join(name)
    };
    let unknown = file("unknown.yaml", "personas: {shape: {knid: burst}}\n");
    let course = file("course.yaml", "personas: {shape: {kind: zigzag}}\n");
    let bound = file("bound.yaml", "personas: {shape: {low: 9.5}}\n");
    check(
        &["--folder", &folder.join("lab"), "--json"],
        &[
            (&[], 2, "Usage"),
            (&["fly"], 2, "fly"),
            (&["token", "wizard"], 2, "wizard"),
            (&["up", "--mode", "dreams"], 2, "embedded"),
            (&["up", "--wait", "soon"], 2, "--wait"),
            (&["up", "--mode", "process", "--data-dir", "/nowhere"], 2, "--data-dir"),
            (&["up", "--shards", "many"], 2, "--shards"),
            (&["up", "--traffic", "lots"], 2, "--traffic"),
            (&["up", "--mode", "process", "--traffic", "lots"], 2, "--traffic"),
            (&["up", "--mode", "process", "--traffic", "NaN"], 2, "--traffic"),
            (&["up", "--profile", "/nowhere/lab.yaml"], 2, "/nowhere/lab.yaml"),
            (&["plan", "--rate=-1"], 2, "--rate"),
            (&["plan", "--rate=0"], 2, "--rate"),
            (&["plan", "--profile", &unknown], 2, "did you mean `kind`?"),
            (&["plan", "--profile", &course], 2, "`personas.shape.kind`"),
            (&["plan", "--profile", &bound], 2, "`personas.shape.low`"),
            (&["up", "--profile", &unknown], 2, "`personas.shape.knid`"),
            (&["load", "--gateway", "http://127.0.0.1:1", "--profile", &unknown], 2, "`personas.shape.knid`"),
            (&["seed", "--patients", "some"], 2, "--patients"),
            (&["seed", "--history", "some"], 2, "--history"),
            (&["shard", "publish", "/nowhere/map.toml"], 2, "/nowhere/map.toml"),
            (&["audit", "show"], 2, "--request"),
            (&["shard", "drain", "1", "--to", "0", "--to", "1"], 2, "shard 1 is emptied to others"),
            (&["servers", "up", "--shards", "0"], 2, "1 to 16"),
            (&["status", "--gateway", "ftp://nowhere"], 2, "ftp://nowhere"),
            (&["load", "--gateway", "http://127.0.0.1:1", "--for", "ever"], 2, "--for"),
        ],
    );
}

#[test]
fn of_a_lab_that_is_not_there() {
    let folder = Folder::new("absent");
    let rows: &[&[&str]] = &[
        &["status"],
        &["down"],
        &["token", "sre"],
        &["journey", "x"],
        &["lineage", "patient", "x"],
        &["shard", "list"],
        &["shard", "doctor"],
        &["outbox"],
        &["dlq", "list"],
        &["projection", "list"],
        &["audit", "verify"],
        &["load"],
    ];
    let mut rows: Vec<Row<'_>> = rows.iter().map(|arguments| (*arguments, 3, "lab up")).collect();
    let servers: &[&[&str]] = &[&["servers", "status"], &["servers", "down"], &["shard", "promote", "0"]];
    rows.extend(servers.iter().map(|arguments| (*arguments, 3, "lab servers up")));
    check(&["--folder", &folder.join("lab")], &rows);
    check(&["--folder", &folder.join("lab")], &[(&["logs"], 3, "no lab has been started")]);
}

#[test]
fn of_a_gateway_that_does_not_answer() {
    let closed = TcpListener::bind(("127.0.0.1", 0)).and_then(|it| it.local_addr()).expect("a port that was free");
    let gateway = format!("http://{closed}");
    for arguments in [&["outbox"][..], &["status"], &["token", "sre"], &["load", "--for", "1s"]] {
        check(&["--gateway", &gateway], &[(arguments, 3, "does not answer")]);
    }
}

/// Guard: nothing of this folder is changed by what the gateway of another lab says.
#[test]
fn of_a_gateway_that_is_another_lab_s() {
    let folder = Folder::new("other");
    std::fs::create_dir_all(folder.path().join("process/data")).unwrap();
    let verbs: [&[&str]; 5] = [&["up"], &["down"], &["backup", "create"], &["servers", "add"], &["servers", "remove"]];
    let rows = verbs.map(|verb| (verb, 2, "name its --folder"));
    check(&["--folder", &folder.join(""), "--gateway", "http://127.0.0.1:1"], &rows);
    let degrade = ["shard", "degrade", "0", "--reason", "drill"];
    // A copy asks no gateway.
    let rows: [Row<'_>; 3] = [
        (&["shard", "promote", "0"], 2, "name its --folder"),
        (&degrade, 2, "name its --folder"),
        (&["shard", "rejoin", "0"], 3, "lab servers up"),
    ];
    check(&["--folder", &folder.join(""), "--gateway", "http://127.0.0.1:1"], &rows);
    assert!(folder.path().join("process/data").exists(), "something was taken away");
    // Where nothing is, no other lab can be meant.
    let rows: [Row<'_>; 1] = [(&degrade, 3, "does not answer")];
    check(&["--folder", &folder.join("none"), "--gateway", "http://127.0.0.1:1"], &rows);
}

#[test]
fn of_what_a_gateway_answers() {
    for (status, code) in
        [(400, 2), (404, 2), (422, 2), (401, 7), (403, 7), (409, 7), (429, 7), (500, 4), (502, 3), (503, 3), (504, 3)]
    {
        let problem = r#"{"title": "a title", "detail": "a detail", "type": "urn:a-type"}"#;
        let gateway = format!("http://{}", stand_in::gateway(status, problem));
        check(&["--gateway", &gateway], &[(&["outbox"], code, "a title. a detail (urn:a-type)")]);
    }
    let gateway = format!("http://{}", stand_in::gateway(200, "<html>"));
    check(&["--gateway", &gateway], &[(&["outbox"], 4, "no JSON"), (&["token", "patient"], 2, "not a patient")]);
    let gateway = format!("http://{}", stand_in::gateway(200, r#"{"verified": false, "verify": {"agrees": false}}"#));
    check(
        &["--gateway", &gateway],
        &[(&["audit", "verify"], 4, "does not verify"), (&["lineage", "patient", "x", "--verify"], 4, "do not agree")],
    );
}

#[test]
fn of_another_process_that_has_the_lab_s_old_id() {
    let folder = Folder::new("reused");
    let state = format!(
        r#"{{"pid": {}, "birth": "long ago", "gateway": "http://127.0.0.1:1", "broker": "", "ready": {{}}}}"#,
        std::process::id()
    );
    std::fs::write(folder.path().join("state.json"), state).unwrap();
    // Had it been taken for the lab, `down` would have stopped this test.
    check(&["--folder", &folder.join("")], &[(&["down"], 3, "lab up"), (&["status"], 3, "lab up")]);
}

#[test]
fn of_a_lab_that_is_not_ready_in_time() {
    let folder = Folder::new("late");
    let (lab, data) = (folder.join("lab"), folder.join("data"));
    let late = ["up", "--data-dir", &data, "--listen", "127.0.0.1:0", "--patients", "200000", "--wait", "300ms"];
    check(&["--folder", &lab], &[(&late, 3, "was not ready within 300ms"), (&["status"], 3, "lab up")]);
}

#[test]
fn of_a_bench_that_has_no_server() {
    let ended = xtask_without_postgres(&["bench", "data", "--only", "server", "--json"]);
    assert_eq!((ended.code, ended.out.as_str()), (Some(3), ""), "{ended:?}");
    for named in ["/nowhere", "apt-get install postgresql", "LAB_TEST_POSTGRES_DSN"] {
        assert!(ended.err.contains(named), "{named}: {}", ended.err);
    }
    let ended = xtask(&["bench", "core", "--only", "files"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.err.contains("bench data --only"), "{}", ended.err);
    for ignores in [&["core"][..], &["data", "--only", "files"]] {
        let ended = xtask(&[&["bench"], ignores, &["--rows", "5000"]].concat());
        assert_eq!((ended.code, ended.err.contains("--only files-growth --rows")), (Some(2), true), "{ended:?}");
    }
}
