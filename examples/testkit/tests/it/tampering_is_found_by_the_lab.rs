//! Whoever changes the audit trail of a running lab is found out by `cargo xtask lab audit verify`: by lane and number, with the
//! exit code of a broken invariant, and retention then removes nothing.

use std::path::Path;
use std::process::Stdio;

use pim_data::backend::{Db, DbSettings, Statement};
use pim_testkit::folder::Folder;
use pim_testkit::program::Program;
use serde_json::Value;
use tokio::process::Command;

/// A verb of the lab on the one behind this gateway: exit code and document.
async fn lab(gateway: &str, verb: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--package", "xtask", "--", "lab", "--gateway", gateway, "--json"]).args(verb);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace's root"));
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().await.expect("cargo runs");
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), serde_json::from_str(&line).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_its_lane_and_number() {
    let folder = Folder::new("tamper").unwrap();
    let data_dir = folder.path().display().to_string();
    let arguments = ["--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--patients", "50", "--shards", "1"];
    let services =
        Program::start("services", &[&arguments[..], &["--traffic", "off", "--json"]].concat()).await.unwrap();
    let gateway = services.told("gateway").to_owned();
    let (code, told) = lab(&gateway, &["audit", "verify"]).await;
    let told = &told["audit-verify"];
    assert_eq!((code, &told["verified"], &told["agrees"]), (Some(0), &true.into(), &true.into()), "{told:#}");
    assert!(told["changes"].as_u64().is_some_and(|changes| changes >= 50), "{told:#}");

    let shard = std::fs::read_dir(folder.path().join("shards")).unwrap().flatten().map(|it| it.path());
    let shard = shard.into_iter().find(|path| path.extension().is_some_and(|it| it == "db")).expect("a shard");
    let db = Db::open(&shard, DbSettings::default()).await.unwrap();
    let (mut tx, found) = db
        .begin_with(&[
            Statement::sqlite("DROP TRIGGER audit_no_update"),
            Statement::sqlite(
                "UPDATE audit SET body = body || ' ' WHERE seq = 1 AND lane = (SELECT MIN(lane) FROM audit)",
            ),
            Statement::sqlite("SELECT MIN(lane) FROM audit"),
            // And the newest record of another lane, of which no checkpoint tells yet.
            Statement::sqlite("DROP TRIGGER audit_no_delete"),
            Statement::sqlite(
                "DELETE FROM audit WHERE (lane, seq) IN (SELECT lane, MAX(seq) FROM audit WHERE lane = \
                 (SELECT MAX(lane) FROM audit) GROUP BY lane) RETURNING lane, entity",
            ),
        ])
        .await
        .unwrap();
    let lane = found[2][0].count(0).unwrap();
    let (cut, entity) = (found[4][0].count(0).unwrap(), found[4][0].text(1).unwrap().to_owned());
    tx.query(Statement::sqlite("SELECT 1")).await.unwrap();
    tx.commit().await.unwrap();

    let (code, told) = lab(&gateway, &["audit", "verify"]).await;
    assert_eq!(code, Some(4), "a broken invariant: {told:#}");
    let finding = &told["audit-verify"]["findings"][0];
    let place = (&finding["shard"], &finding["lane"], &finding["seq"], &finding["kind"]);
    assert_eq!(place, (&0.into(), &lane.into(), &1.into(), &"changed".into()), "{told:#}");
    let findings = told["audit-verify"]["findings"].as_array().expect("findings");
    let cut_off = findings.iter().find(|finding| finding["kind"] == "unrecorded").expect("what was cut off");
    assert_eq!((&cut_off["lane"], &cut_off["row"]["entity"]), (&cut.into(), &entity.into()), "{told:#}");
    assert_eq!(told["audit-verify"]["agrees"], false);
    let (code, _) = lab(&gateway, &["retention", "run"]).await;
    assert_eq!(code, Some(7), "a trail that does not verify is not purged");
    services.kill().await.unwrap();
}
