//! A lab of processes is backed up while clinicians write, is lost, and is restored to an instant in between: what was
//! acknowledged before is there, what came after is not, and the restored one serves.

use std::collections::BTreeMap;
use std::path::Path;

use http::StatusCode;
use pim_servers::fleet::Fleet;
use pim_testkit::caller::{Caller, fresh_key};
use pim_testkit::folder::Folder;
use serde_json::{Value, json};

use super::a_lab_of_processes::Background;
use crate::workload::{Workload, look, settled};

type Acknowledged = BTreeMap<String, (u64, String)>;

/// Now, as `--to` takes it.
fn now() -> String {
    pim_core::clock::Clock::system().now().to_string()
}

async fn some(workload: &Workload) -> Acknowledged {
    for _ in 0..10 {
        workload.acknowledgement().await;
    }
    workload.acknowledged().await
}

/// What is there of what was acknowledged, by path: the version, or nothing.
async fn found(gateway: &str, all: &Acknowledged) -> BTreeMap<String, Option<u64>> {
    let clinician = Caller::sign_in(gateway, "clinician").await.unwrap();
    let mut found = BTreeMap::new();
    for path in all.keys() {
        let (status, record) = look(&clinician, path).await;
        assert!(matches!(status, StatusCode::OK | StatusCode::NOT_FOUND), "{path}: {status} {record:#}");
        found.insert(path.clone(), record["version"].as_u64());
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL's programs: `cargo xtask test` runs it where they are"]
async fn is_of_the_instant_that_was_asked_for_and_serves() {
    let folder = Folder::new("restored").unwrap();
    let mut lab = Background { folder: folder.path().join("lab"), is_up: true };
    let up = ["--shards", "2", "--patients", "40", "--traffic", "off", "--listen", "127.0.0.1:0"];
    let up = lab.ask(&[&["up", "--mode", "process"][..], &up].concat(), "up").await;
    let gateway = up["lab"]["gateway"].as_str().unwrap().to_owned();
    let workload = Workload::default();
    let writers = workload.begin(&gateway).await;
    some(&workload).await;
    let made = lab.ask(&["backup", "create", "--name", "one"], "backup-create").await;
    let place = made["place"].as_str().unwrap().to_owned();
    assert_eq!(lab.code(&["backup", "create", "--name", "one"]).await, Some(7), "the name is taken");
    let listed = lab.ask(&["backup", "list"], "backups").await;
    assert_eq!((&listed["items"][0]["name"], &listed["items"][1]), (&json!("one"), &Value::Null), "{listed:#}");
    let before = some(&workload).await;
    let target = now();
    for _ in 0..3 {
        some(&workload).await;
    }
    workload.rest(writers).await;
    let all = workload.acknowledged().await;
    assert!(all.len() > before.len(), "nobody wrote meanwhile: the test shows nothing");
    let too_late = a_day_later(&lab.folder);
    // It is lost with all that it had, but for backup and archive.
    lab.run(&["down"]).await;
    lab.is_up = false;

    assert_eq!(lab.ask(&["backup", "verify", &place], "backup-verify").await["whole"], true);
    let into = folder.path().join("new");
    let into = into.to_str().unwrap();
    let early = made["report"]["taken_at"].as_str().unwrap();
    assert_eq!(lab.code(&["restore", &place, "--data-dir", into, "--to", early]).await, Some(2), "before the backup");
    assert_eq!(lab.code(&["restore", &place, "--data-dir", into, "--to", &now()]).await, Some(2), "beyond the archive");
    assert_eq!(
        lab.code(&["restore", &place, "--data-dir", into, "--to", &too_late]).await,
        Some(2),
        "a gap in the log"
    );
    let restored = lab.ask(&["restore", &place, "--data-dir", into, "--to", &target], "restore").await;
    assert_eq!(restored["audit"]["verified"], true, "{restored:#}");
    assert_eq!(restored["outboxes_rebased"], 3, "two shards and the control database");
    // Whoever stopped signed where the trail stood, with what came after the instant.
    let later = &restored["checkpoints"];
    assert!(later["given_up"].as_u64() >= Some(1) && later["records_given_up"].as_u64() >= Some(1), "{later:#}");
    let (point, time) = within_the_floors(&restored);
    println!(
        "RPO {point} ms, RTO {time} ms, {} records of audit, {} of {} records were acknowledged before the instant",
        restored["audit"]["records"],
        before.len(),
        all.len()
    );
    assert_eq!(lab.code(&["restore", &place, "--data-dir", into]).await, Some(7), "never over something");

    let mut second = Background { folder: folder.path().join("second"), is_up: true };
    let up = ["up", "--mode", "process", "--data-dir", into, "--traffic", "off", "--listen", "127.0.0.1:0"];
    let up = second.ask(&up, "up").await;
    let gateway = up["lab"]["gateway"].as_str().unwrap().to_owned();
    let summary = settled(&gateway).await;
    assert_eq!((&summary["lost"], &summary["duplicated"]), (&json!(0), &json!(0)), "{summary:#}");
    let found = found(&gateway, &all).await;
    for (path, (version, _)) in &before {
        assert!(found[path] >= Some(*version), "{path} was acknowledged before the instant: {:?}", found[path]);
    }
    // Eight were being written at the instant, and as many when it was asked for; what was begun later is not there.
    let late = all.keys().filter(|path| !before.contains_key(*path) && found[*path].is_some()).count();
    assert!(late <= 16, "{late} records are there that came after the instant");
    assert!(found.values().any(Option::is_none), "nothing came after the instant: the test shows nothing");
    serves(&gateway).await;
    let verified = second.ask(&["audit", "verify"], "audit-verify").await;
    assert_eq!((&verified["verified"], &verified["restores"][0]["to"]), (&json!(true), &json!(target)), "{verified:#}");
    assert_eq!(verified["restores"][0]["given_up"], later["given_up"]);
    let (code, down) = second.run(&["down"]).await;
    second.is_up = false;
    assert_eq!((code, &down["down"]["holds"], &down["down"]["lost"]), (Some(0), &json!(true), &json!(0)), "{down:#}");
    assert!(folder.path().join("new").join("data").exists(), "what was restored stays");
}

/// Recovery point and time in milliseconds, which docs/backup.md bounds.
fn within_the_floors(restored: &Value) -> (u64, u64) {
    const POINT_MIN_MAX: u64 = 15;
    const TIME_MIN_MAX: u64 = 30;
    let [point, time] = ["recovery_point_ms", "recovery_time_ms"].map(|member| {
        restored[member].as_u64().unwrap_or_else(|| panic!("{member} is no number that is not negative: {restored:#}"))
    });
    assert!(point <= POINT_MIN_MAX * 60_000, "{point} ms before the instant may be lost");
    assert!((1..=TIME_MIN_MAX * 60_000).contains(&time), "{time} ms until it was restored");
    (point, time)
}

/// An outbox forgets what is a day old, and then has not any more what the log in the backup lacks. The instant behind that.
fn a_day_later(folder: &Path) -> String {
    let fleet = Fleet::open(&folder.join("servers")).unwrap();
    let forgets = "UPDATE outbox_pruned SET youngest_at = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    fleet.servers_of(0).unwrap().0.sql("shard-0", forgets).unwrap();
    now()
}

/// A new write, and the read models that follow it.
async fn serves(gateway: &str) {
    let clinician = Caller::sign_in(gateway, "clinician").await.unwrap();
    let (status, patient) = clinician.post("/v1/patients", &fresh_key(), &clinician.registration(4_000)).await.unwrap();
    assert_eq!(status, StatusCode::CREATED, "{patient:#}");
    settled(gateway).await;
    let path = format!("/v1/patients/{}/summary", patient["id"].as_str().unwrap());
    let (status, summary) = look(&clinician, &path).await;
    assert_eq!(status, StatusCode::OK, "{summary:#}");
}
