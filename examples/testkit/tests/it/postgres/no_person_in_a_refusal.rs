//! A server that refuses a row quotes it in the detail of its error, and whoever casts a text has it in the message: neither a
//! problem nor a log line repeats that.

use std::path::Path;
use std::process::Stdio;

use http::StatusCode;
use pim_testkit::caller::{Caller, fresh_key};
use pim_testkit::folder::Folder;
use pim_testkit::program::Program;
use serde_json::{Value, json};

use super::databases::Databases;
use crate::workload::no_chores;

/// Of people who do not exist.
const PARTICULARS: [&str; 6] =
    ["Zoraide", "Quillington", "Refusedname", "SYN-99770011", "Quillroad", "zoraide@example.org"];

/// A unique constraint, a check, and an expression that fails on what it is given.
const RULES: &str = "ALTER TABLE patient_row ADD CONSTRAINT lone_number UNIQUE (syn_number), \
                     ADD CONSTRAINT no_such_name CHECK (family_name <> 'Refusedname'), \
                     ADD CONSTRAINT numbered CHECK (address IS NULL OR address NOT LIKE 'Quillroad%' OR address::int > 0)";

async fn start(folder: &Path, databases: &Databases) -> Program {
    let config = folder.join("services.yaml");
    let settings = json!({"postgres": databases.settings, "upkeep": no_chores()});
    std::fs::write(&config, settings.to_string()).expect("a settings file");
    let (config, data_dir) = (config.display().to_string(), folder.join("data").display().to_string());
    let common = ["--config", &config, "--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--json"];
    let arguments = [&common[..], &["--patients", "20", "--traffic", "off"]].concat();
    let log = std::fs::File::create(folder.join("log")).expect("a log");
    Program::start_logging("services", &arguments, Stdio::from(log)).await.expect("services starts")
}

fn person(clinician: &Caller, number: u64) -> Value {
    let mut person = clinician.registration(number);
    let particulars = json!({"given_name": "Zoraide", "family_name": "Quillington", "mail": "zoraide@example.org"});
    person.as_object_mut().expect("an object").extend(particulars.as_object().expect("an object").clone());
    person
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_server_is_in_a_problem_or_a_log_line() {
    let folder = Folder::new("refusal").expect("a folder");
    let databases = Databases::new(folder.path(), 2);
    let services = start(folder.path(), &databases).await;
    for shard in ["shard-0", "shard-1"] {
        let mut tx = databases.superuser(shard).await.begin().await.expect("begins");
        tx.script(RULES).await.expect("alters");
        tx.commit().await.expect("commits");
    }
    let clinician = Caller::sign_in(services.told("gateway"), "clinician").await.expect("signs in");
    let post = async |body: &Value| clinician.post("/v1/patients", &fresh_key(), body).await.expect("answers");
    let taken = person(&clinician, 99_770_011);
    let mut told = Vec::new();
    // On either shard one of the number is let in.
    let mut conflicts = 0;
    for _ in 0..8 {
        let (status, answer) = post(&taken).await;
        if status == StatusCode::CREATED {
            continue;
        }
        assert_eq!(status, StatusCode::CONFLICT, "{answer}");
        conflicts += 1;
        told.push(answer);
    }
    assert!(conflicts >= 6, "{conflicts} were refused");
    let (mut named, mut lives) = (person(&clinician, 99_770_012), person(&clinician, 99_770_013));
    named["family_name"] = "Refusedname".into();
    lives["address"] = "Quillroad 7".into();
    for body in [&named, &lives] {
        let (status, answer) = post(body).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{answer}");
        told.push(answer);
    }
    let (status, made) = post(&person(&clinician, 99_770_014)).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let path = format!("/v1/patients/{}", made["id"].as_str().expect("an id"));
    for change in [json!({"family_name": "Refusedname"}), json!({"address": "Quillroad 7"})] {
        let (status, answer) = clinician.patch(&path, &change).await.expect("answers");
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{answer}");
        told.push(answer);
    }
    assert_eq!(services.stop().await.expect("stops").0, Some(0));
    let log = std::fs::read_to_string(folder.path().join("log")).expect("a log");
    assert!(log.contains("shard.call_failed"), "what was refused is told: {log}");
    for particular in PARTICULARS {
        assert!(!log.contains(particular), "the log tells {particular}");
        let problem = told.iter().find(|problem| problem.to_string().contains(particular));
        assert_eq!(problem, None, "a problem tells {particular}");
    }
}
