//! The same key and body at the gateway have one effect and one answer: again, sixteen at once, and after a kill of the program.

use std::time::Duration;

use futures_util::future::join_all;
use pim_core::clock::Clock;
use pim_core::context::{RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::rbac::{Permit, Read, SystemScope};
use pim_data::backend::{SqlPair, Statement};
use pim_data::cluster::{Access, CONTROL};
use pim_lab::patient::Patient;
use pim_lab::policy::{LabAction, LabResource};
use pim_lab::rig::PostgresSettings;
use pim_lab::signals::Hub;
use pim_lab::workers::{Place, Stores, service_actor};
use pim_testkit::caller::Caller;
use pim_testkit::folder::Folder;
use pim_testkit::program::Program;
use pim_testkit::raw::{RawAnswer, exchange};
use serde_json::{Value, json};

const AT_ONCE: usize = 16;
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the lab of this test keeps its rows.
pub(crate) struct Ground {
    pub(crate) folder: Folder,
    pub(crate) postgres: PostgresSettings,
}

async fn start(ground: &Ground) -> Program {
    let data_dir = ground.folder.path().display().to_string();
    let config = ground.folder.path().join("services.yaml");
    std::fs::write(&config, json!({"postgres": ground.postgres}).to_string()).expect("a settings file");
    let config = config.display().to_string();
    let common = ["--config", &config, "--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--json"];
    let arguments = [&common[..], &["--patients", "5", "--traffic", "off"]].concat();
    Program::start("services", &arguments).await.expect("services starts")
}

/// A write as it is sent, and sent again.
struct Submission {
    role: &'static str,
    path: String,
    key: Option<&'static str>,
    body: Value,
}

/// Status, version and consistency token, body.
type Told = (u16, [Option<String>; 2], Value);

/// What an answer says of the write: not of the request that carried it.
fn told(answer: &RawAnswer) -> Told {
    (answer.status, ["etag", "x-pim-token"].map(|name| answer.header(name).map(str::to_owned)), answer.body.clone())
}

struct Lab {
    program: Program,
    clinician: Caller,
    admin: Caller,
}

impl Lab {
    async fn of(program: Program) -> Self {
        let clinician = Caller::sign_in(program.told("gateway"), "clinician").await.unwrap();
        let admin = Caller::sign_in(program.told("gateway"), "admin").await.unwrap();
        Self { program, clinician, admin }
    }

    async fn send(&self, submission: &Submission) -> RawAnswer {
        let token = if submission.role == "admin" { self.admin.token() } else { self.clinician.token() };
        let body = submission.body.to_string();
        let key = submission.key.map(|key| format!("idempotency-key: {key}\r\n")).unwrap_or_default();
        let text = format!(
            "POST {} HTTP/1.1\r\nhost: lab\r\nconnection: close\r\nauthorization: Bearer {token}\r\n{key}\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            submission.path,
            body.len(),
        );
        exchange(self.program.told("gateway"), text.as_bytes()).await.expect("an answer")
    }
}

/// Sends a write that nobody has sent before sixteen times at once, and once more.
async fn sent_at_once(lab: &Lab, submission: &Submission, status: u16) -> Told {
    let answers = join_all((0..AT_ONCE).map(|_| lab.send(submission))).await;
    let first = told(&answers[0]);
    assert_eq!(first.0, status, "{}: {:#}", submission.path, first.2);
    for other in &answers {
        assert_eq!(told(other), first, "{}", submission.path);
    }
    assert_eq!(told(&lab.send(submission).await), first, "{} again", submission.path);
    first
}

/// Rows of what the writes below make.
async fn counted(ground: &Ground) -> Vec<(&'static str, u64)> {
    let place = Place { data_dir: ground.folder.path(), shards: None, postgres: &ground.postgres };
    let hub = Hub::new(None).unwrap();
    let stores = Stores::open_at(place, Access::Exclusive, Clock::system(), &hub).await.unwrap();
    let permit = Permit::<Read>::system(SystemScope::new("count"), LabAction::Read, LabResource::Patient);
    let cx = RequestContext::new(RequestId::mint(), service_actor("test").unwrap(), Deadline::after(PATIENCE));
    let mut counts = Vec::new();
    for table in ["patient", "patient_past", "encounter", "encounter_past", "claim", "outbox_event"] {
        let mut total = 0;
        for source in stores.cluster.sources().filter(|source| *source != CONTROL) {
            let count = Statement::of(SqlPair::generated(format!("SELECT count(*) FROM {table}")));
            let rows = stores.cluster.select::<Patient>(&cx, &permit, source, count).await.unwrap();
            total += rows[0].count(0).unwrap();
        }
        counts.push((table, total));
    }
    counts
}

/// The writes of this test; the same for the same people, whoever sends them.
struct Story<'a> {
    clinician: &'a Caller,
}

impl Story<'_> {
    fn register(&self) -> Submission {
        let body = self.clinician.registration(1);
        Submission { role: "clinician", path: "/v1/patients".to_owned(), key: Some("register"), body }
    }

    fn schedule(&self, patient: &str) -> Submission {
        let body = json!({"facility_id": self.clinician.facility, "provider_id": self.clinician.provider,
            "kind": "telehealth", "scheduled_at": "2026-03-02T09:00:00Z"});
        Submission { role: "clinician", path: format!("{patient}/encounters"), key: Some("schedule"), body }
    }

    fn begin(patient: &str, encounter: &str) -> Submission {
        let path = format!("{patient}/encounters/{encounter}/transitions");
        Submission { role: "clinician", path, key: Some("begin"), body: json!({"to": "in_progress"}) }
    }

    fn build() -> Submission {
        let body = json!({"name": "East Clinic", "state_code": "OR"});
        Submission { role: "admin", path: "/v1/admin/facilities".to_owned(), key: Some("build"), body }
    }
}

fn id_in(answer: &Told) -> &str {
    answer.2["id"].as_str().expect("an id")
}

#[tokio::test(flavor = "multi_thread")]
async fn again_at_once_and_after_a_kill() {
    let (folder, postgres) = (Folder::new("once").unwrap(), PostgresSettings::default());
    one_effect_on(&Ground { folder, postgres }).await;
}

pub(crate) async fn one_effect_on(ground: &Ground) {
    let (code, _) = start(ground).await.stop().await.unwrap();
    assert_eq!(code, Some(0));
    let before = counted(ground).await;

    let lab = Lab::of(start(ground).await).await;
    let story = Story { clinician: &lab.clinician };
    let registered = sent_at_once(&lab, &story.register(), 201).await;
    let patient = format!("/v1/patients/{}", id_in(&registered));
    let scheduled = sent_at_once(&lab, &story.schedule(&patient), 201).await;
    let begun = sent_at_once(&lab, &Story::begin(&patient, id_in(&scheduled)), 200).await;
    assert_eq!(begun.1[0].as_deref(), Some("\"2\""), "moved once");
    assert!(begun.1[1].is_some(), "the token comes with each of them");
    let built = sent_at_once(&lab, &Story::build(), 201).await;

    lab.program.kill().await.unwrap();
    let lab = Lab::of(start(ground).await).await;
    let story = Story { clinician: &lab.clinician };
    let (register, begin) = (story.register(), Story::begin(&patient, id_in(&scheduled)));
    let all = [
        (&register, &registered),
        (&story.schedule(&patient), &scheduled),
        (&begin, &begun),
        (&Story::build(), &built),
    ];
    for (submission, answer) in all {
        assert_eq!(&told(&lab.send(submission).await), answer, "{} after the kill", submission.path);
    }
    refused(&lab, register).await;
    refused(&lab, begin).await;
    let (code, summary) = lab.program.stop().await.unwrap();
    let summary = summary.expect("a summary");
    assert_eq!((code, &summary["duplicated"], &summary["lost"]), (Some(0), &json!(0), &json!(0)), "{summary:#}");

    let after = counted(ground).await;
    let made: Vec<_> = before.iter().zip(&after).map(|((table, was), (_, is))| (*table, is - was)).collect();
    let expected = [
        ("patient", 1),
        ("patient_past", 1),
        ("encounter", 1),
        ("encounter_past", 2),
        ("claim", 0),
        ("outbox_event", 3),
    ];
    assert_eq!(made, expected, "one effect of each");
}

/// The same key with another body, and the same body without a key.
async fn refused(lab: &Lab, submission: Submission) {
    let another = match submission.body["to"].as_str() {
        Some(_) => json!({"to": "completed"}),
        None => lab.clinician.registration(2),
    };
    let other = lab.send(&Submission { body: another, path: submission.path.clone(), ..submission }).await;
    assert_eq!((other.status, other.problem()), (422, "idempotency-mismatch"), "{:#}", other.body);
    let keyless = lab.send(&Submission { key: None, ..submission }).await;
    assert_eq!((keyless.status, keyless.problem()), (400, "idempotency-key-missing"), "{:#}", keyless.body);
}
