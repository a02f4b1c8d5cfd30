//! A lab of which some programs have ended is none that runs, and none that is not there: the others go on writing.

use std::fs;

use serde_json::{Value, json};

use super::led::{Led, Running};
use super::stand_in;
use super::xtask::{Ended, Folder, xtask};

const AWAY: &str = r#"{"title": "upstream away", "detail": "admin-service does not answer", "type": "urn:a-type"}"#;

/// Notes a lab whose programs are this test, or have ended.
fn note(lab: &str, gateway: &str, programs: &[(&str, bool)]) {
    let stat = fs::read_to_string("/proc/self/stat").expect("this process");
    let birth = stat.rsplit(')').next().and_then(|fields| fields.split_whitespace().nth(19)).expect("its birth");
    let pid = std::process::id();
    let programs: Vec<_> = programs
        .iter()
        .map(|(name, runs)| json!({"name": name, "pid": pid, "birth": if *runs { birth } else { "long ago" }}))
        .collect();
    let state = json!({
        "pid": pid, "birth": "long ago", "gateway": gateway, "broker": "", "ready": {}, "programs": programs,
    });
    fs::write(format!("{lab}/state.json"), state.to_string()).expect("writes");
}

fn ask(folder: &Folder, verb: &[&str]) -> Ended {
    xtask(&[&["lab", "--json", "--folder", &folder.join("")], verb].concat())
}

/// Guard: it is named also when nobody else can tell of it.
#[test]
fn which_one_is_told_by_its_status() {
    let (folder, gateway) = (Folder::new("ended"), format!("http://{}", stand_in::gateway(503, AWAY)));
    let rows: [(&[(&str, bool)], Value); 2] = [
        (&[("gateway", true), ("admin-service", false), ("patient-service", true)], json!(["admin-service"])),
        (&[("gateway", false), ("patient-service", true)], json!(["gateway"])),
    ];
    for (programs, ended) in rows {
        note(&folder.join(""), &gateway, programs);
        let told = ask(&folder, &["status"]);
        let document = told.document("status");
        assert_eq!((told.code, &document["running"], &document["ended"]), (Some(4), &true.into(), &ended), "{told:?}");
        assert!(told.err.contains(ended[0].as_str().expect("a name")), "{told:?}");
    }
    note(&folder.join(""), &gateway, &[("gateway", true), ("patient-service", true)]);
    let told = ask(&folder, &["status"]);
    assert_eq!((told.code, &told.document("status")["running"]), (Some(3), &true.into()), "it is busy: {told:?}");
    note(&folder.join(""), &gateway, &[("gateway", false), ("patient-service", false)]);
    let told = ask(&folder, &["status"]);
    assert_eq!((told.code, &told.document("status")["running"]), (Some(3), &false.into()), "{told:?}");
}

/// Guard: whoever looks for the process finds one that runs, and not the command that ended long ago.
#[test]
fn the_process_that_is_named_is_the_gateway() {
    let (folder, gateway) = (Folder::new("pid"), format!("http://{}", stand_in::gateway(503, AWAY)));
    note(&folder.join(""), &gateway, &[("gateway", true)]);
    let state = folder.path().join("state.json");
    let mut noted: Value = serde_json::from_str(&fs::read_to_string(&state).unwrap()).unwrap();
    noted["pid"] = 4_194_305_u32.into();
    fs::write(&state, noted.to_string()).unwrap();
    assert_eq!(ask(&folder, &["status"]).document("status")["pid"], std::process::id());
    let refused = ask(&folder, &["up"]);
    let named = format!("(process {})", std::process::id());
    assert_eq!((refused.code, refused.err.contains(&named)), (Some(3), true), "{refused:?}");
}

/// Guard: servers alone are looked at alone only where no lab was started.
#[test]
fn and_the_doctor_does_not_find_the_rest_well() {
    let led = Led::new("exit 0");
    let silent = |told: &Ended| {
        let findings = told.document("shard-doctor")["findings"].as_array().cloned().expect("findings");
        findings.into_iter().find(|it| it["code"] == "lab-silent")
    };
    assert_eq!(silent(&led.run(&["shard", "doctor"])), None, "there is no lab");
    let gateway = format!("http://{}", stand_in::gateway(503, AWAY));
    note(&led.folder.join("lab"), &gateway, &[("gateway", true), ("admin-service", false)]);
    let told = led.run(&["shard", "doctor"]);
    let finding = silent(&told).expect("the lab does not answer");
    let text = finding["finding"].as_str().expect("a sentence");
    assert!(text.contains("upstream away") && text.contains("told to: admin-service"), "{text}");
    assert_eq!((told.code, &finding["severity"]), (Some(4), &"error".into()), "{told:?}");
}

/// Guard: whoever reads the document finds all that the lab told of a finding.
#[test]
fn and_what_the_doctor_finds_is_told_with_code_and_severity() {
    const FOUND: &str = r#"{"items": [{"shard": 1, "schema_version": 1, "schema_version_known": 1, "findings": [
        {"code": "endpoint", "severity": "warning", "endpoint": "shard-1-standby", "message": "m", "fix": "f"}]}]}"#;
    let folder = Folder::new("findings");
    let gateway = format!("http://{}", stand_in::gateway(200, FOUND));
    let told = ask(&folder, &["--gateway", &gateway, "shard", "doctor"]);
    let finding = json!({
        "shard": 1, "code": "endpoint", "severity": "warning", "endpoint": "shard-1-standby", "finding": "m", "fix": "f",
    });
    assert_eq!((told.code, &told.document("shard-doctor")["findings"]), (Some(4), &json!([finding])), "{told:?}");
}

/// Guard: the lab that is named is asked whether it uses servers, also where nobody has noted that it is one of processes.
#[test]
fn and_servers_that_the_map_of_a_named_gateway_leads_to_stay() {
    const MAP: &str = r#"{"version": 1, "digest": "d",
        "toml": "[[shards]]\nid = 0\n[[shards.endpoints]]\nrole = \"primary\"\n"}"#;
    let led = Led::new("exit 0");
    let gateway = format!("http://{}", stand_in::gateway(200, MAP));
    note(&led.folder.join("lab"), &gateway, &[("gateway", true)]);
    let refused = led.run(&["--gateway", &gateway, "servers", "remove"]);
    assert_eq!(
        (refused.code, refused.err.contains("map leads to the servers of shard 0")),
        (Some(7), true),
        "{refused:?}"
    );
}

/// Guards: what a promotion loses is given up by somebody, or said not to be; whoever cannot be asked is not taken for nobody.
#[test]
fn and_a_promotion_says_that_nothing_is_given_up() {
    let led = Led::new("exit 0");
    led.program("psql", "echo t");
    let _standby = Running::on(&led.servers().join("shard_0_a/data"));
    note(&led.folder.join("lab"), "http://127.0.0.1:1", &[("gateway", false), ("patient-service", true)]);
    let refused = led.run(&["shard", "promote", "0"]);
    assert_eq!((refused.code, refused.err.contains("the lab does not answer")), (Some(7), true), "{refused:?}");
    let promoted = led.run(&["shard", "promote", "0", "--accept-loss", "drill"]);
    assert_eq!(promoted.code, Some(4), "{promoted:?}");
    for said in ["is not given up yet", "no gateway leads to them", "shard accept-loss 0 --reason drill"] {
        assert!(promoted.err.contains(said), "{said}: {promoted:?}");
    }
}
