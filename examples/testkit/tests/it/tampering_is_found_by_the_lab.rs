//! Whoever changes the audit trail of a running lab is found out by `cargo xtask lab audit verify`: by lane and number, with the
//! exit code of a broken invariant, and retention then removes nothing.

use std::path::Path;
use std::process::Stdio;

use pim_data::backend::{Db, DbSettings, Engine, Row, Statement, Transaction};
use pim_lab::rig::PostgresSettings;
use pim_testkit::folder::Folder;
use pim_testkit::program::Program;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

/// Records that a chain has at least, so that each kind has its place in it.
const CHAIN_MIN: u64 = 4;
/// Of two, so that it is no default.
const SHARD: u16 = 1;

/// What somebody whom nothing binds does to a chain.
#[derive(Clone, Copy, Debug)]
enum Tampering {
    /// The second record says something else.
    Changed,
    /// The second record goes.
    Removed,
    /// The second and the third record change places.
    Reordered,
    /// A record that continues the chain as it should tells of what never happened.
    Appended,
    /// The newest record goes, of which no checkpoint tells yet.
    CutOff,
}

impl Tampering {
    const ALL: [Self; 5] = [Self::Changed, Self::Removed, Self::Reordered, Self::Appended, Self::CutOff];

    /// Does it to a lane's chain: the number and the kind that are to be told of it, and of which entity where trail and data
    /// disagree.
    async fn done_to(self, tx: &mut Transaction, lane: u64) -> (u64, &'static str, Option<String>) {
        let of_lane = |text| Statement::same(text).bind(lane);
        let (statements, (seq, kind)) = match self {
            Self::Changed => {
                (vec![of_lane("UPDATE audit SET body = body || ' ' WHERE lane = ? AND seq = 2")], (2, "changed"))
            }
            Self::Removed => (vec![of_lane("DELETE FROM audit WHERE lane = ? AND seq = 2")], (3, "gap")),
            Self::Reordered => {
                let away = of_lane("UPDATE audit SET seq = seq + 1000000 WHERE lane = ? AND seq IN (2, 3)");
                let back = of_lane("UPDATE audit SET seq = 1000005 - seq WHERE lane = ? AND seq > 1000000");
                (vec![away, back], (2, "broken"))
            }
            Self::Appended => {
                let newest = of_lane(
                    "SELECT seq, hash, body, at, request_id, user_id, home_key, entity, entity_id FROM audit \
                     WHERE lane = ? ORDER BY seq DESC LIMIT 1",
                );
                let newest = tx.query(newest).await.expect("reads").remove(0);
                (vec![next(lane, &newest)], (newest.count(0).expect("a number") + 1, "not-in-history"))
            }
            Self::CutOff => {
                let newest = "DELETE FROM audit WHERE lane = ? AND seq = (SELECT MAX(seq) FROM audit WHERE lane = ?) \
                              RETURNING entity";
                (vec![of_lane(newest).bind(lane)], (0, "unrecorded"))
            }
        };
        let mut touched = Vec::new();
        for statement in statements {
            touched.extend(tx.query(statement).await.expect("nothing binds a superuser"));
        }
        (seq, kind, touched.first().map(|row| row.text(0).expect("an entity").to_owned()))
    }
}

/// A record behind another one, of a version that its row never had.
fn next(lane: u64, newest: &Row) -> Statement {
    let mut told: Value = serde_json::from_str(newest.text(2).expect("text")).expect("a body is JSON");
    assert!(told["version"].is_u64(), "no record of a row: {told:#}");
    told["version"] = json!(1_000);
    let (body, previous) = (told.to_string(), newest.digest(1).expect("a hash"));
    let hash: [u8; 32] = Sha256::new().chain_update(previous).chain_update(&body).finalize().into();
    let insert = Statement::same(
        "INSERT INTO audit (lane, seq, previous, hash, body, at, request_id, user_id, home_key, entity, entity_id) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING entity",
    );
    let insert = insert.bind(lane).bind(newest.count(0).expect("a number") + 1).bind(&previous).bind(&hash);
    insert.bind(body.as_str()).bind_all((3..9).map(|column| newest.get(column).clone()))
}

/// Begins, with nothing that keeps a record from being changed.
async fn unbound(db: &Db) -> Transaction {
    let mut tx = db.begin().await.expect("begins");
    let guards = match db.engine() {
        Engine::Sqlite => "DROP TRIGGER audit_no_update; DROP TRIGGER audit_no_delete",
        Engine::Postgres => "ALTER TABLE audit DISABLE TRIGGER USER",
    };
    tx.script(guards).await.expect("nothing binds a superuser");
    tx
}

/// Tampers in every way with chains of a shard, and with one of the control database: what is to be told, each by its place.
async fn tamper(shard: &Db, control: &Db) -> Vec<Value> {
    let mut tx = unbound(shard).await;
    let lanes = "SELECT lane FROM audit GROUP BY lane HAVING COUNT(*) >= ? ORDER BY lane";
    let lanes = tx.query(Statement::same(lanes).bind(CHAIN_MIN)).await.expect("reads");
    let lanes: Vec<u64> = lanes.iter().map(|row| row.count(0).expect("a lane")).collect();
    assert!(lanes.len() >= Tampering::ALL.len(), "too few chains: {lanes:?}");
    let mut due = Vec::new();
    for (tampering, lane) in Tampering::ALL.into_iter().zip(lanes) {
        let (seq, kind, entity) = tampering.done_to(&mut tx, lane).await;
        due.push(json!({"shard": SHARD, "lane": lane, "seq": seq, "kind": kind, "entity": entity}));
    }
    tx.commit().await.expect("commits");
    let mut tx = unbound(control).await;
    let changed =
        "UPDATE audit SET body = body || ' ' WHERE seq = 1 AND lane = (SELECT MIN(lane) FROM audit) RETURNING lane";
    let lane =
        tx.query(Statement::same(changed)).await.expect("nothing binds a superuser")[0].count(0).expect("a lane");
    due.push(json!({"shard": null, "lane": lane, "seq": 1, "kind": "changed", "entity": null}));
    tx.commit().await.expect("commits");
    due
}

/// A verb of the lab on the one behind this gateway: exit code and document.
async fn lab(gateway: &str, verb: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--package", "xtask", "--", "lab", "--gateway", gateway, "--json"]).args(verb);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace's root"));
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().await.expect("cargo runs");
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), serde_json::from_str(&line).unwrap_or_default())
}

/// A lab whose databases somebody opens whom nothing binds, by their names.
pub(crate) async fn found_on(folder: &Folder, postgres: &PostgresSettings, open: impl AsyncFn(&str) -> Db) {
    let (config, data_dir) = (folder.path().join("services.yaml"), folder.path().join("data"));
    std::fs::write(&config, json!({"postgres": postgres}).to_string()).expect("a settings file");
    let (config, data_dir) = (config.display().to_string(), data_dir.display().to_string());
    let common = ["--config", &config, "--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--json"];
    let shards: &[&str] = if postgres.shard_map.is_some() { &[] } else { &["--shards", "2"] };
    let arguments = [&common[..], &["--patients", "150", "--traffic", "off"], shards].concat();
    let services = Program::start("services", &arguments).await.expect("services starts");
    let gateway = services.told("gateway").to_owned();
    let (code, told) = lab(&gateway, &["audit", "verify"]).await;
    let told = &told["audit-verify"];
    assert_eq!((code, &told["verified"], &told["agrees"]), (Some(0), &true.into(), &true.into()), "{told:#}");
    assert!(told["changes"].as_u64().is_some_and(|changes| changes >= 150), "{told:#}");

    let due = tamper(&open(&format!("shard-{SHARD}")).await, &open("control").await).await;
    let (code, told) = lab(&gateway, &["audit", "verify"]).await;
    assert_eq!(code, Some(4), "a broken invariant: {told:#}");
    let findings = told["audit-verify"]["findings"].as_array().expect("findings");
    let place = |finding: &Value| {
        let [shard, lane, seq, kind] = ["shard", "lane", "seq", "kind"].map(|member| finding[member].clone());
        json!({"shard": shard, "lane": lane, "seq": seq, "kind": kind, "entity": finding["row"]["entity"]})
    };
    let found: Vec<Value> = findings.iter().map(place).collect();
    for one in due {
        assert!(found.contains(&one), "{one} is not told: {told:#}");
    }
    assert_eq!((&told["audit-verify"]["verified"], &told["audit-verify"]["agrees"]), (&json!(false), &json!(false)));
    let (code, _) = lab(&gateway, &["retention", "run"]).await;
    assert_eq!(code, Some(7), "a trail that does not verify is not purged");
    services.kill().await.expect("killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_its_lane_and_number() {
    let folder = Folder::new("tamper").expect("a folder");
    let data_dir = folder.path().join("data");
    let open = async |place: &str| {
        let folder = if place == "control" { data_dir.clone() } else { data_dir.join("shards") };
        Db::open(&folder.join(format!("{place}.db")), DbSettings::default()).await.expect("opens")
    };
    found_on(&folder, &PostgresSettings::default(), open).await;
}
