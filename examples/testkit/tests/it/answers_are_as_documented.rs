//! What a running lab answers to every read is what its own document says: required members are there, kinds fit, and there
//! are no others.

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;
use pim_testkit::caller::{Caller, fresh_key};
use pim_testkit::program::Program;
use serde_json::{Value, json};

use crate::workload::settled;

/// Reads of operators whose answers the documents call objects and no more.
const OF_THEIR_OWN_FORM: [&str; 11] = [
    "/v1/admin/audit",
    "/v1/admin/backups",
    "/v1/admin/chaos/flags",
    "/v1/admin/dead-letters",
    "/v1/admin/lineage/{entity}/{id}",
    "/v1/admin/outbox",
    "/v1/admin/projections",
    "/v1/admin/runs/summary",
    "/v1/admin/shards",
    "/v1/admin/shards/map",
    "/v1/admin/shards/moves",
];

/// Lists that are empty while a lab is well: an item of theirs cannot be compared here.
const EMPTY_WHILE_ALL_IS_WELL: [&str; 1] = ["/v1/admin/shards/findings/items/*/findings"];

/// Compares an answer with a schema of a document.
struct Reader<'a> {
    document: &'a Value,
    wrong: Vec<String>,
    /// Lists whose items are described, and whether one has been compared.
    lists: BTreeMap<String, bool>,
}

impl Reader<'_> {
    fn resolved(&self, schema: &Value) -> Value {
        match schema["$ref"].as_str() {
            Some(reference) => {
                self.document.pointer(reference.trim_start_matches('#')).expect("leads somewhere").clone()
            }
            None => schema.clone(),
        }
    }

    fn compare(&mut self, place: &str, schema: &Value, answer: &Value) {
        let schema = self.resolved(schema);
        for alternatives in ["oneOf", "anyOf", "allOf"] {
            let Some(some) = schema[alternatives].as_array() else { continue };
            // Only "this or null" is made of alternatives here.
            let fitting = some.iter().find(|it| (it["type"] == "null") == answer.is_null());
            return self.compare(place, fitting.unwrap_or(&some[0]), answer);
        }
        if !fits(&schema["type"], answer) {
            self.wrong.push(format!("{place} is {answer}, not {}", schema["type"]));
        }
        if schema["enum"].as_array().is_some_and(|known| !known.contains(answer)) {
            self.wrong.push(format!("{place} is {answer}, none of {}", schema["enum"]));
        }
        if let Some(items) = answer.as_array().filter(|_| schema["items"].is_object()) {
            *self.lists.entry(place.to_owned()).or_default() |= !items.is_empty();
            for item in items {
                self.compare(&format!("{place}/*"), &schema["items"], item);
            }
        }
        let Some(members) = schema["properties"].as_object() else { return };
        let Some(answer) = answer.as_object() else { return };
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !answer.contains_key(name) {
                self.wrong.push(format!("{place} has no {name}"));
            }
        }
        for (name, value) in answer {
            match members.get(name) {
                Some(member) => self.compare(&format!("{place}/{name}"), member, value),
                None => self.wrong.push(format!("{place} has {name}, which nobody describes")),
            }
        }
    }
}

fn fits(kinds: &Value, answer: &Value) -> bool {
    let is = |kind: &str| match kind {
        "object" => answer.is_object(),
        "array" => answer.is_array(),
        "string" => answer.is_string(),
        "boolean" => answer.is_boolean(),
        "integer" => answer.is_i64() || answer.is_u64(),
        "number" => answer.is_number(),
        "null" => answer.is_null(),
        _ => false,
    };
    match kinds {
        Value::String(kind) => is(kind),
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).any(is),
        _ => true,
    }
}

/// One of each thing that a path may name.
async fn names(patient: &Caller, admin: &Caller) -> BTreeMap<&'static str, String> {
    let own = &patient.patient;
    let mut names = BTreeMap::from([("patient_id", own.clone())]);
    let at = |caller: &Caller, path: String| {
        let caller = caller.clone();
        async move { caller.get(&path).await.expect("answers").1["items"][0]["id"].as_str().expect("is there").to_owned() }
    };
    names.insert("claim_id", at(patient, format!("/v1/patients/{own}/claims")).await);
    names.insert("facility", at(admin, "/v1/admin/facilities".to_owned()).await);
    names.insert("provider", at(admin, "/v1/admin/providers".to_owned()).await);
    names
}

/// The path that is asked for a template.
fn path_of(template: &str, names: &BTreeMap<&str, String>) -> String {
    let query = match template {
        "/v1/patients" => format!("?facility={}", names["clinic"]),
        "/v1/revenue" => "?from=2020-01-01&to=2100-01-01".to_owned(),
        "/v1/admin/audit" => "?user_id=nobody".to_owned(),
        _ => String::new(),
    };
    let lineage = format!("/v1/admin/lineage/encounter/{}", names["encounter_id"]);
    let path = match template {
        "/v1/admin/lineage/{entity}/{id}" => lineage,
        "/v1/admin/providers/{id}" => format!("/v1/admin/providers/{}", names["provider"]),
        other => other.replace("{id}", &names["facility"]),
    };
    names.iter().fold(path, |path, (name, value)| path.replace(&format!("{{{name}}}"), value)) + &query
}

/// Goes through a visit of the patient's, so that an encounter has one of everything. Which.
async fn encounter_of_everything(patient: &Caller, clinician: &Caller) -> String {
    let base = format!("/v1/patients/{}/encounters", patient.patient);
    let write = async |path: &str, body: &Value| {
        let (status, answer) = clinician.post(path, &fresh_key(), body).await.unwrap();
        assert!(status.is_success(), "{path}: {status} {answer}");
        answer
    };
    let scheduling = json!({"facility_id": clinician.facility, "provider_id": clinician.provider,
        "kind": "telehealth", "scheduled_at": "2026-01-01T00:00:00Z"});
    let encounter = write(&base, &scheduling).await["id"].as_str().unwrap().to_owned();
    for (part, body) in [
        ("transitions", json!({"to": "in_progress"})),
        ("diagnoses", json!({"code": "E11.9"})),
        ("procedures", json!({"code": "G0402"})),
        ("orders", json!({"kind": "laboratory", "code": "G0103"})),
        ("observations", json!({"kind": "heart_rate_per_minute", "value": 72})),
        ("notes", json!({"text": "resting"})),
    ] {
        write(&format!("{base}/{encounter}/{part}"), &body).await;
    }
    encounter
}

async fn something_of_everything(gateway: &str, patient: &Caller, admin: &Caller) {
    let own = &patient.patient;
    let sre = Caller::sign_in(gateway, "sre").await.unwrap();
    let fault = json!({"fault": "latency", "latency_ms": 1, "percent": 1, "seconds": 600});
    let armed = sre.put("/v1/admin/chaos/flags/outbox-relay", &fault).await.unwrap();
    assert_eq!(armed.0, StatusCode::OK, "{}", armed.1);
    let verified = sre.post("/v1/admin/audit/verify", &fresh_key(), &json!({})).await.unwrap();
    assert_eq!(verified.0, StatusCode::OK, "{}", verified.1);
    let flag = json!({"name": "a-switch", "enabled": true});
    let period = json!({"from": "1990-01-01T00:00:00Z", "to": "1990-02-01T00:00:00Z"});
    for (path, body) in [("/v1/admin/flags", flag), ("/v1/billing-cycles", period)] {
        let made = admin.post(path, &fresh_key(), &body).await.unwrap();
        assert_eq!(made.0, StatusCode::CREATED, "{path}: {}", made.1);
    }
    // The read models have caught up when the timeline shows what the past ends with.
    for _ in 0..400 {
        let (_, summary) = patient.get(&format!("/v1/patients/{own}/summary")).await.unwrap();
        if summary["claims"] == 1 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the read models did not catch up");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_every_read() {
    let arguments = ["--ephemeral", "--listen", "127.0.0.1:0", "--patients", "200", "--history", "30"];
    let services =
        Program::start("services", &[&arguments[..], &["--traffic", "off", "--json"]].concat()).await.unwrap();
    let gateway = services.told("gateway").to_owned();
    let mut callers = Vec::new();
    for role in ["patient", "clinician", "admin", "sre"] {
        callers.push(Caller::sign_in(&gateway, role).await.unwrap());
    }
    something_of_everything(&gateway, &callers[0], &callers[2]).await;
    let mut names = names(&callers[0], &callers[2]).await;
    names.insert("clinic", callers[1].facility.clone());
    names.insert("encounter_id", encounter_of_everything(&callers[0], &callers[1]).await);
    let made = callers[1].post("/v1/patients", &fresh_key(), &callers[1].registration(77)).await.unwrap();
    assert_eq!(made.0, StatusCode::CREATED, "{}", made.1);
    settled(&gateway).await;
    let (_, document) = callers[0].get("/openapi.json").await.unwrap();
    let mut reader = Reader { document: &document, wrong: Vec::new(), lists: BTreeMap::new() };
    let (mut asked, mut own_form) = (0, Vec::new());
    for (template, operations) in document["paths"].as_object().expect("paths") {
        let Some(operation) = operations.get("get") else { continue };
        let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        if template.contains("{request_id}") {
            // The walk of the README asks for a journey.
            continue;
        }
        let path = path_of(template, &names);
        let mut answered = None;
        for caller in &callers {
            let (status, answer) = caller.get(&path).await.unwrap();
            match status {
                StatusCode::FORBIDDEN => {}
                StatusCode::OK => answered = Some(answer),
                status => panic!("{path}: {status} {answer}"),
            }
            if answered.is_some() {
                break;
            }
        }
        let answer = answered.unwrap_or_else(|| panic!("nobody may read {path}"));
        asked += 1;
        let is_described = schema["type"] != "object" || schema["properties"].is_object();
        if !is_described {
            own_form.push(template.as_str());
        }
        reader.compare(template, schema, &answer);
    }
    assert!(asked > 25, "{asked} asked");
    assert_eq!(own_form, OF_THEIR_OWN_FORM, "describe what it answers");
    assert!(reader.wrong.is_empty(), "{:#?}", reader.wrong);
    let empty: BTreeSet<_> =
        reader.lists.iter().filter(|(_, is_filled)| !**is_filled).map(|(at, _)| at.as_str()).collect();
    let uncompared: Vec<_> = empty.difference(&BTreeSet::from(EMPTY_WHILE_ALL_IS_WELL)).copied().collect();
    assert!(uncompared.is_empty(), "nothing of these has been compared: {uncompared:?}");
    services.kill().await.unwrap();
}
