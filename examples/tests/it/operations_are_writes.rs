//! An operation is a write like any other: a key of its own, one effect for each, and a trail of who asked for what.

use std::time::Duration;

use axum::body::Body;
use http::{Request, StatusCode};
use pim_core::role::{Access as ActionAccess, Action as _};
use pim_data::backend::{Db, DbSettings, Statement};
use pim_data::cluster::CONTROL;
use pim_data::idempotency::KEPT_FOR;
use pim_lab::operations::LEASE;
use pim_lab::routes::{Access, ROUTES, Upstream};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::world::{Answered, World};

/// Callers who go while their operation is at work.
const CALLERS_GONE: u32 = 3;

async fn send(world: &World, token: &str, method: &str, path: &str, key: Option<&str>, body: &Value) -> Answered {
    let mut request = Request::builder().method(method).uri(path).header("txn-token", token);
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let request = request.header("content-type", "application/json");
    world.send(request.body(Body::from(body.to_string())).unwrap()).await
}

/// Every operation of an sre that can be done on a fresh directory, with a body, and with another one.
fn operations(map: &str) -> [(&'static str, &'static str, Value, Value); 6] {
    let fault = |seconds: u64| json!({"fault": "error", "percent": 10, "seconds": seconds});
    let selection = |kind: &str| json!({"selection": {"event_type": kind}});
    [
        ("PUT", "/v1/admin/chaos/flags/billing-service", fault(600), fault(601)),
        ("POST", "/v1/admin/audit/verify", json!({}), Value::Null),
        ("POST", "/v1/admin/retention", json!({}), json!({"audit_days": 91})),
        ("POST", "/v1/admin/projections/patient_search/rebuild", json!({}), Value::Null),
        ("POST", "/v1/admin/dead-letters/replay", selection("patient.registered"), selection("patient.moved")),
        ("POST", "/v1/admin/shards/map", json!({"map": map}), json!({"map": format!("{map}\n")})),
    ]
}

#[tokio::test]
async fn every_write_of_the_table_asks_for_a_key_at_the_service_itself() {
    let world = World::new().await;
    for route in ROUTES {
        let Access::Granted(action, _) = route.access else { continue };
        if action.access() != ActionAccess::Write || route.upstream == Upstream::Broker {
            continue;
        }
        let id = world.registered("a").await.id();
        let parts = route.template.split('/').map(|part| if part.starts_with('{') { id.as_str() } else { part });
        let path = parts.collect::<Vec<_>>().join("/");
        let granted = ["admin", "sre", "clinician"].map(|role| world.session(role, &[world.facility], None));
        let mut answers = Vec::new();
        for token in &granted {
            answers.push(send(&world, token, route.method, &path, None, &json!({})).await);
        }
        let asked = answers.iter().filter(|answer| answer.status != StatusCode::FORBIDDEN).collect::<Vec<_>>();
        assert!(!asked.is_empty(), "nobody may use {}", route.label);
        for answer in asked {
            let told = (answer.status.as_u16(), answer.problem());
            assert_eq!(told, (400, "idempotency-key-missing"), "{}", route.label);
        }
    }
}

#[tokio::test]
async fn the_same_key_is_the_same_operation_and_its_trail_names_request_and_user() {
    let world = World::new().await;
    let sre = world.session("sre", &[], None);
    let map = world.get(&sre, "/v1/admin/shards/map").await.body["toml"].as_str().unwrap().to_owned();
    for (method, path, body, other) in operations(&map) {
        let first = send(&world, &sre, method, path, Some("k"), &body).await;
        assert_eq!(first.status, StatusCode::OK, "{path}: {:?}", first.body);
        let again = send(&world, &sre, method, path, Some("k"), &body).await;
        assert_eq!((again.status, &again.body), (first.status, &first.body), "{path}");
        if !other.is_null() {
            let refused = send(&world, &sre, method, path, Some("k"), &other).await;
            assert_eq!((refused.status.as_u16(), refused.problem()), (422, "idempotency-mismatch"), "{path}");
        }
        let request = first.headers["x-pim-request-id"].to_str().unwrap();
        let trail = world.get(&sre, &format!("/v1/admin/audit?request_id={request}")).await;
        let entries = trail.body["items"].as_array().unwrap();
        assert!(!entries.is_empty(), "{path} left no trail");
        assert!(entries.iter().all(|entry| entry["body"]["user"] == "dev-sre"), "{path}: {entries:?}");
        let refused = send(&world, &world.clinician(), method, path, Some("c"), &body).await;
        assert_eq!((refused.status, refused.problem()), (StatusCode::FORBIDDEN, "forbidden"), "{path}");
    }
    let by_user = world.get(&sre, "/v1/admin/audit?user_id=dev-sre").await;
    // Five operations that begin and end, and one fault.
    assert_eq!(by_user.body["items"].as_array().map(Vec::len), Some(11), "{:?}", by_user.body);
    let done = world.get(&sre, "/v1/admin/operations").await;
    let states: Vec<_> = done.body["items"].as_array().unwrap().iter().map(|row| row["state"].clone()).collect();
    assert_eq!(states, vec![json!("done"); 5]);
}

/// Guard: what reads all of something may take longer than a request may; it is brought to its end all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_reads_everything_goes_on_when_its_caller_has_gone() {
    let world = World::new().await;
    let sre = world.session("sre", &[], None);
    // Whichever it is: a page of the list ends before the newest.
    let is_one_at_work = async || {
        let begun = Statement::same("SELECT id FROM operation_row WHERE state = 'begun'");
        !world.cluster.database(CONTROL).unwrap().query(begun).await.unwrap().is_empty()
    };
    let until = async |is_begun: bool| {
        while is_one_at_work().await != is_begun {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let kept = json!({});
    for (path, body) in [
        ("/v1/admin/projections/patient_search/rebuild", &kept),
        ("/v1/admin/audit/verify", &kept),
        ("/v1/admin/retention", &kept),
        ("/v1/admin/shards/1/accept-loss", &json!({"reason": "test"})),
    ] {
        let (mut broken_off, mut tries) = (0, 0_u32);
        // One that is done before it was seen to have begun says nothing.
        while broken_off < CALLERS_GONE {
            tries += 1;
            assert!(tries < 500, "nobody has seen {path} at work");
            let key = tries.to_string();
            tokio::select! {
                answered = world.post(&sre, path, &key, body) => {
                    assert_eq!(answered.status, StatusCode::OK, "{path}: {:?}", answered.body);
                    continue;
                }
                () = until(true) => broken_off += 1,
            }
            let ended = tokio::time::timeout(Duration::from_secs(20), until(false)).await;
            assert!(ended.is_ok(), "{path} was broken off");
            let told = world.post(&sre, path, &key, body).await;
            assert_eq!(told.status, StatusCode::OK, "{path}: {:?}", told.body);
        }
    }
}

/// Guard: the row knows longer than the answer that it was done, and a key is good for one operation.
#[tokio::test]
async fn one_that_was_done_is_not_done_again_when_its_answer_is_kept_no_more() {
    let world = World::new().await;
    let post =
        async |key: &str| world.post(&world.session("sre", &[], None), "/v1/admin/audit/verify", key, &json!({})).await;
    assert_eq!(post("k").await.status, StatusCode::OK);
    world.pass(KEPT_FOR + Duration::from_secs(3600));
    assert!(world.cluster.sweep_idempotency().await.unwrap() > 0);
    let late = post("k").await;
    assert_eq!((late.status, late.problem()), (StatusCode::CONFLICT, "already-exists"), "{:?}", late.body);
    let kept = world.get(&world.session("sre", &[], None), "/v1/admin/operations").await;
    let row = &kept.body["items"][0];
    assert_eq!((&row["id"], &row["state"], &row["version"]), (&late.body["id"], &json!("done"), &json!(2)));
    assert_eq!(post("another").await.status, StatusCode::OK);
}

#[tokio::test]
async fn one_that_could_not_be_done_is_kept_as_refused_and_may_be_tried_again() {
    let world = World::new().await;
    let sre = world.session("sre", &[], None);
    let path = format!("/v1/admin/dead-letters/patient_search/{}/unpark", Uuid::nil());
    for _ in 0..2 {
        let refused = send(&world, &sre, "POST", &path, Some("k"), &json!({})).await;
        assert_eq!((refused.status, refused.problem()), (StatusCode::NOT_FOUND, "key-not-held"), "{:?}", refused.body);
    }
    let kept = world.get(&sre, "/v1/admin/operations").await;
    assert_eq!(kept.body["items"][0]["state"], "refused", "{:?}", kept.body);
    assert_eq!(kept.body["items"][0]["version"], 4);
}

#[tokio::test]
async fn why_a_key_cannot_be_unparked_is_said_and_leaves_a_trail() {
    let world = World::new().await;
    let sre = world.session("sre", &[], None);
    let held = |key: u128, reason: &'static str| {
        let hold = "INSERT INTO held_key (consumer, home_key, part, reason, code, tries, since, last_epoch, last_n) \
                    VALUES ('patient_search', ?, 0, ?, 'test', 1, 0, 1, 2)";
        Statement::sqlite(hold).bind(Uuid::from_u128(key)).bind(reason)
    };
    let read_store = Db::open(&world.cluster.data_dir().join("read.db"), DbSettings::default()).await.unwrap();
    for (key, reason) in [(1, "gap"), (2, "rewound"), (3, "poison")] {
        read_store.begin().await.unwrap().commit_with(vec![held(key, reason)]).await.unwrap();
    }
    let cases = [
        ("patient_search", 1, 409, "key-waits-for-event"),
        ("patient_search", 2, 409, "key-rewound"),
        ("patient_search", 3, 200, ""),
        ("patient_search", 4, 404, "key-not-held"),
        ("encounter_timeline", 3, 404, "key-not-held"),
        ("draft-claim", 3, 404, "key-not-held"),
        ("horoscope", 3, 404, "unknown-consumer"),
    ];
    for (consumer, key, status, problem) in cases {
        let path = format!("/v1/admin/dead-letters/{consumer}/{}/unpark", Uuid::from_u128(key));
        let answer = send(&world, &sre, "POST", &path, Some("k"), &json!({})).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (status, problem), "{path}: {:?}", answer.body);
        let request = answer.headers["x-pim-request-id"].to_str().unwrap();
        let trail = world.get(&sre, &format!("/v1/admin/audit?request_id={request}")).await;
        // That it begins, and what came of it; what names no consumer is no operation.
        let expected = if problem == "unknown-consumer" { 0 } else { 2 };
        assert_eq!(trail.body["items"].as_array().map(Vec::len), Some(expected), "{path}: {:?}", trail.body);
    }
    let fault = json!({"fault": "error", "percent": 10, "seconds": 600});
    let path = "/v1/admin/chaos/flags/billing-service";
    for (method, body) in [("PUT", &fault), ("DELETE", &json!({}))] {
        let answer = send(&world, &sre, method, path, Some("f"), body).await;
        let request = answer.headers["x-pim-request-id"].to_str().unwrap();
        let trail = world.get(&sre, &format!("/v1/admin/audit?request_id={request}")).await;
        assert_eq!(trail.body["items"][0]["body"]["user"], "dev-sre", "{method}: {:?}", trail.body);
    }
}

/// Guard: what is asked for is kept in the trail for months, where no text of anybody's own belongs.
#[tokio::test]
async fn what_names_nothing_that_there_is_is_not_written_down() {
    const PASTED: &str = "ada@example.org";
    let world = World::new().await;
    let (sre, admin) = (world.session("sre", &[], None), world.session("admin", &[], None));
    let replay = "/v1/admin/dead-letters/replay";
    for (member, problem) in [("consumer", "unknown-consumer"), ("event_type", "unknown-event-type")] {
        for dry_run in [false, true] {
            for name in ["horoscope", PASTED] {
                let body = json!({"selection": {member: name}, "dry_run": dry_run});
                let refused = world.post(&sre, replay, "k", &body).await;
                assert_eq!((refused.status.as_u16(), refused.problem()), (404, problem), "{body}");
                assert!(!refused.body.to_string().contains(name), "{:?}", refused.body);
            }
        }
    }
    for subject in [PASTED, "Ada Example", "", &"a".repeat(65)] {
        let body = json!({"subject": subject, "role": "clinician", "facilities": [], "patient": null});
        let refused = world.post(&admin, "/v1/admin/accounts", "k", &body).await;
        assert_eq!((refused.status.as_u16(), refused.problem()), (422, "invalid-body"), "{subject}");
    }
    for user in ["dev-sre", "dev-admin"] {
        let trail = world.get(&sre, &format!("/v1/admin/audit?user_id={user}")).await;
        assert_eq!(trail.body["items"], json!([]), "{:?}", trail.body);
    }
    let known = world.post(&sre, replay, "k", &json!({"selection": {"consumer": "patient_search"}})).await;
    assert_eq!(known.status, StatusCode::OK, "{:?}", known.body);
}

#[tokio::test]
async fn one_that_was_broken_off_is_in_progress_for_its_lease_and_then_done_again() {
    use pim_core::rbac::Write;
    use pim_lab::policy::{LabAction, LabResource, LabRole, lab_policy};

    let world = World::new().await;
    let (cx, actor) = world.context("sre", "POST", "/v1/admin/audit/verify", "k", &json!({}));
    assert_eq!(actor.role(), pim_core::role::RoleCode::of(LabRole::Sre));
    let permit = lab_policy().authorize::<Write>(&actor, LabAction::Operate, LabResource::Audit).unwrap();
    let intent = || pim_lab::operations::Intent::new("audit.verify", "", json!({}));
    // As when the process is killed while it works: begun, and never ended.
    let never = std::future::pending();
    let work = pim_lab::operations::operate(&world.cluster, &permit, &cx, intent(), never);
    assert!(tokio::time::timeout(Duration::from_millis(500), work).await.is_err());
    let other = pim_lab::operations::Intent::new("audit.verify", "", json!({"another": true}));
    let other = pim_lab::operations::operate(&world.cluster, &permit, &cx, other, std::future::pending()).await;
    assert_eq!(other.unwrap_err().into_problem().kind(), pim_core::problem::IDEMPOTENCY_MISMATCH);
    let sre = world.session("sre", &[], None);
    let early = world.post(&sre, "/v1/admin/audit/verify", "k", &json!({})).await;
    assert_eq!((early.status, early.problem()), (StatusCode::CONFLICT, "operation-in-progress"), "{:?}", early.body);
    let later = LEASE - Duration::from_secs(1);
    world.pass(later);
    let sre = world.session("sre", &[], None);
    let early = world.post(&sre, "/v1/admin/audit/verify", "k", &json!({})).await;
    assert_eq!((early.status, early.problem()), (StatusCode::CONFLICT, "operation-in-progress"), "{:?}", early.body);
    world.pass(LEASE - later);
    let sre = world.session("sre", &[], None);
    let done = world.post(&sre, "/v1/admin/audit/verify", "k", &json!({})).await;
    assert_eq!((done.status, &done.body["verified"]), (StatusCode::OK, &json!(true)), "{:?}", done.body);
}
