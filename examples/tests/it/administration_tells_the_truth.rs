//! Reference data is made once, the trail names who did what, lineage agrees with it, and a bad map is refused with findings.

use http::StatusCode;
use pim_core::id::Id;
use pim_lab::ids::OperationId;
use pim_lab::operations::Turn;
use serde_json::json;

use crate::world::World;

#[tokio::test]
async fn reference_data_is_made_once_and_by_admins_alone() {
    let world = World::new().await;
    let admin = world.session("admin", &[], None);
    let body = json!({"name": "North Clinic", "state_code": "OR"});
    let made = world.post(&admin, "/v1/admin/facilities", "k", &body).await;
    let again = world.post(&admin, "/v1/admin/facilities", "k", &body).await;
    assert_eq!((made.status, &made.body), (StatusCode::CREATED, &again.body), "{:?}", made.body);
    let listed = world.get(&admin, "/v1/admin/facilities").await;
    assert_eq!(listed.body["items"].as_array().map(Vec::len), Some(2), "{:?}", listed.body);
    assert!(listed.body["items"].as_array().unwrap().contains(&made.body));
    let shown = world.get(&admin, &format!("/v1/admin/facilities/{}", made.id())).await;
    assert_eq!(shown.body, made.body);
    let refused = world.post(&world.clinician(), "/v1/admin/facilities", "k", &body).await;
    assert_eq!((refused.status, refused.problem()), (StatusCode::FORBIDDEN, "forbidden"));
    for (path, body) in [
        ("accounts", json!({"subject": "dev-a", "role": "service", "patient": null})),
        ("accounts", json!({"subject": "dev-a", "role": "janitor", "patient": null})),
        ("facilities", json!({"name": "x", "state_code": "oregon"})),
    ] {
        let refused = world.post(&admin, &format!("/v1/admin/{path}"), "bad", &body).await;
        assert_eq!((refused.status.as_u16(), refused.problem()), (422, "invalid-body"), "{body}");
    }
    let account = json!({"subject": "dev-a", "role": "clinician", "facilities": [], "patient": null});
    assert_eq!(world.post(&admin, "/v1/admin/accounts", "1", &account).await.status, StatusCode::CREATED);
    let twice = world.post(&admin, "/v1/admin/accounts", "2", &account).await;
    assert_eq!((twice.status, twice.problem()), (StatusCode::CONFLICT, "already-exists"));
}

#[tokio::test]
async fn the_trail_and_the_lineage_agree() {
    let world = World::new().await;
    let (clinician, sre) = (world.clinician(), world.session("sre", &[], None));
    let patient = world.registered("a").await;
    let between = world.clock.now();
    world.pass(std::time::Duration::from_secs(1));
    let path = format!("/v1/patients/{}/transitions", patient.id());
    let moved = world.post(&clinician, &path, "move", &json!({"to": "active"})).await;
    let request = moved.headers["x-pim-request-id"].to_str().unwrap();
    let trail = world.get(&sre, &format!("/v1/admin/audit?request_id={request}")).await;
    assert_eq!(trail.body["items"][0]["body"]["after"], json!({"state": "active"}), "{:?}", trail.body);
    let lineage = format!("/v1/admin/lineage/patient/{}?verify=true", patient.id());
    let now = world.get(&sre, &lineage).await;
    assert_eq!(now.body["state"], json!({"state": "active", "version": 2}), "{:?}", now.body);
    assert_eq!(now.body["verify"], json!({"audit_verified": true, "agrees": true, "deviations": []}));
    let then = world.get(&sre, &format!("{lineage}&as_of={between}")).await;
    assert_eq!(then.body["state"], json!({"state": "registered", "version": 1}));
    assert_eq!(then.body["changes"].as_array().map(Vec::len), Some(1));
    for personal in ["Ada", "1980-02-29", "SYN-0000"] {
        assert!(!now.body.to_string().contains(personal) && !trail.body.to_string().contains(personal));
    }
    let verified = world.post(&sre, "/v1/admin/audit/verify", "v", &json!({})).await;
    assert_eq!(verified.body["verified"], true, "{:?}", verified.body);
    let outbox = world.get(&sre, "/v1/admin/outbox").await;
    // Facility and provider, two changes of the patient, and the beginning and the end of the verification.
    assert_eq!(outbox.body["backlog"], 6, "{:?}", outbox.body);
}

#[tokio::test]
async fn what_is_past_its_time_goes_by_an_operators_word_and_lineage_says_so() {
    const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
    let world = World::new().await;
    let patient = world.registered("a").await;
    let path = format!("/v1/patients/{}/transitions", patient.id());
    world.post(&world.clinician(), &path, "move", &json!({"to": "active"})).await;
    world.pass(100 * DAY);
    let sre = world.session("sre", &[], None);
    world.post(&world.clinician(), &path, "suspend", &json!({"to": "suspended"})).await;
    let retain = async |key: &str, body: serde_json::Value| world.post(&sre, "/v1/admin/retention", key, &body).await;
    let rows = |answer: &serde_json::Value| {
        answer["items"].as_array().unwrap().iter().map(|item| item["rows"].as_u64().unwrap()).sum::<u64>()
    };
    let short = json!({"history_days": 30, "dry_run": true});
    let plan = retain("p", short).await;
    // Of the trail: the patient's two old records, and all but the newest of the two that made facility and provider, if
    // they share a lane. Of the history: the first period of the patient.
    assert_eq!((plan.status, &plan.body["dry_run"]), (StatusCode::OK, &json!(true)), "{:?}", plan.body);
    let planned = rows(&plan.body);
    assert!((3..=4).contains(&planned), "{:?}", plan.body);
    let ran = retain("r", json!({"history_days": 30})).await;
    assert_eq!((ran.status, rows(&ran.body)), (StatusCode::OK, planned), "{:?}", ran.body);
    let again = retain("r2", json!({"history_days": 30})).await;
    assert_eq!((rows(&again.body), &again.body["tombstone"]), (0, &json!(null)), "{:?}", again.body);

    let lineage = world.get(&sre, &format!("/v1/admin/lineage/patient/{}?verify=true", patient.id())).await;
    assert_eq!(lineage.body["verify"], json!({"audit_verified": true, "agrees": true, "deviations": []}));
    assert_eq!(lineage.body["changes"].as_array().map(Vec::len), Some(1), "{:?}", lineage.body);
    assert_eq!(lineage.body["retained"]["audit_since"], ran.body["audit_before"]);

    let soon = retain("s", json!({"audit_days": 89})).await;
    assert_eq!((soon.status.as_u16(), soon.problem()), (422, "invalid-body"), "{:?}", soon.body);
    for session in [world.clinician(), world.session("admin", &[], None)] {
        let refused = world.post(&session, "/v1/admin/retention", "x", &json!({})).await;
        assert_eq!((refused.status, refused.problem()), (StatusCode::FORBIDDEN, "forbidden"));
    }
}

#[tokio::test]
async fn a_map_with_findings_is_not_published() {
    let world = World::new().await;
    let sre = world.session("sre", &[], None);
    let map = world.get(&sre, "/v1/admin/shards/map").await;
    let toml = map.body["toml"].as_str().unwrap().to_owned();
    let publish = async |query: &str, text: String| {
        world.post(&sre, &format!("/v1/admin/shards/map{query}"), "m", &json!({"map": text})).await
    };
    let broken = publish("", "format = 9".to_owned()).await;
    assert_eq!((broken.status.as_u16(), broken.problem()), (422, "invalid-shard-map"), "{:?}", broken.body);
    let dry = publish("?dry_run=true", toml).await;
    assert_eq!((dry.status, dry.body["handovers"].as_u64()), (StatusCode::OK, Some(0)), "{:?}", dry.body);
    assert_eq!(world.get(&sre, "/v1/admin/shards/map").await.body, map.body);
    let refused = world.get(&world.clinician(), "/v1/admin/shards").await;
    assert_eq!(refused.problem(), "forbidden");
}

#[tokio::test]
async fn there_is_a_way_back_from_a_map() {
    let world = World::new().await;
    let sre = world.session("sre", &[], None);
    let first = world.stores.cluster.map();
    let head = format!("version = 2\nparent = \"{}\"", first.digest());
    let next = first.to_toml().replacen("version = 1", &head, 1);
    let next = next.replacen("dsn_ref = \"shard-0\"", "dsn_ref = \"elsewhere\"", 1);
    let published = world.post(&sre, "/v1/admin/shards/map", "m", &json!({"map": next})).await;
    assert_eq!(published.status, StatusCode::OK, "{:?}", published.body);
    let back = async |session: &str, query: &str, key: &str, to: u64| {
        world.post(session, &format!("/v1/admin/shards/map/rollback{query}"), key, &json!({"to": to})).await
    };
    let dry = back(&sre, "?dry_run=true", "d", 1).await;
    assert_eq!((dry.status, dry.body["handovers"].as_u64()), (StatusCode::OK, Some(0)), "{:?}", dry.body);
    assert_eq!(world.stores.cluster.map().version().0, 2, "nothing was done");
    for to in [0, 2, 3, 99] {
        let refused = back(&sre, "", "r", to).await;
        assert_eq!(
            (refused.status.as_u16(), refused.problem()),
            (422, "invalid-shard-map"),
            "{to}: {:?}",
            refused.body
        );
    }
    let refused = back(&world.clinician(), "", "c", 1).await;
    assert_eq!(refused.problem(), "forbidden");
    let done = back(&sre, "", "b", 1).await;
    assert_eq!((done.status, done.body["version"].as_u64()), (StatusCode::OK, Some(3)), "{:?}", done.body);
    let again = back(&sre, "", "b", 1).await;
    assert_eq!((again.status, again.body), (StatusCode::OK, done.body));
    let request = done.headers["x-pim-request-id"].to_str().unwrap();
    let trail = world.get(&sre, &format!("/v1/admin/audit?request_id={request}")).await;
    assert_ne!(trail.body["items"].as_array().map_or(0, Vec::len), 0, "it leaves a trail");
}

/// Guard: what was done is told again, whether or not it could be done by now.
#[tokio::test]
async fn a_way_back_that_was_taken_is_told_again_when_there_is_none_any_more() {
    let world = World::new().await;
    let sre = world.session("sre", &[], None);
    let map = world.cluster.map();
    let text = map.to_toml().replacen("dsn_ref = \"shard-0\"", "dsn_ref = \"elsewhere\"", 1);
    let is_kept = |line: &&str| !line.starts_with("version =") && !line.starts_with("parent =");
    let rest: Vec<&str> = text.lines().filter(is_kept).collect();
    let next = format!("version = 2\nparent = \"{}\"\n{}\n", map.digest(), rest.join("\n"));
    let published = world.post(&sre, "/v1/admin/shards/map", "a", &json!({"map": next})).await;
    assert_eq!(published.status, StatusCode::OK, "{:?}", published.body);
    let back = async |key: &str| world.post(&sre, "/v1/admin/shards/map/rollback", key, &json!({"to": 1})).await;
    let done = back("b").await;
    assert_eq!((done.status, done.body["version"].as_u64()), (StatusCode::OK, Some(3)), "{:?}", done.body);
    // Whoever tidies up the data directory takes it away.
    std::fs::remove_file(world.cluster.data_dir().join("maps").join("1.toml")).unwrap();
    let refused = back("c").await;
    assert_eq!((refused.status.as_u16(), refused.problem()), (422, "invalid-shard-map"), "{:?}", refused.body);
    let again = back("b").await;
    assert_eq!((again.status, again.body), (StatusCode::OK, done.body));
    let other = world.post(&sre, "/v1/admin/shards/map/rollback", "b", &json!({"to": 2})).await;
    assert_eq!((other.status.as_u16(), other.problem()), (422, "idempotency-mismatch"), "{:?}", other.body);
}

#[tokio::test]
async fn a_shard_in_a_file_has_no_standby_to_do_without() {
    let world = World::new().await;
    let sre = world.session("sre", &[], None);
    let degrade = async |session: &str, shard: &str, key: &str, reason: &str| {
        let path = format!("/v1/admin/shards/{shard}/degrade");
        let told = world.post(session, &path, key, &json!({"reason": reason})).await;
        (told.status.as_u16(), told.problem().to_owned())
    };
    let told = |status, problem: &str| (status, problem.to_owned());
    assert_eq!(degrade(&sre, "0", "a", "standby-lost").await, told(409, "conflict"));
    assert_eq!(degrade(&sre, "77", "b", "standby-lost").await, told(404, "not-found"));
    assert_eq!(degrade(&sre, "first", "c", "standby-lost").await, told(400, "invalid-id"));
    assert_eq!(degrade(&sre, "0", "d", "they asked me to").await, told(422, "invalid-body"));
    assert_eq!(degrade(&world.clinician(), "0", "e", "standby-lost").await, told(403, "forbidden"));
    let shards = world.get(&sre, "/v1/admin/shards").await;
    assert!(shards.body["items"].as_array().unwrap().iter().all(|it| it["degraded"].is_null()), "{:?}", shards.body);
}

#[tokio::test]
async fn what_is_held_is_told_in_pages_and_a_stop_is_lifted() {
    let world = World::new().await;
    let sre = world.session("sre", &[], None);
    let mut tx = world.stores.reads.db().begin().await.unwrap();
    let hold = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 5)
        INSERT INTO held_key (consumer, home_key, part, reason, code, tries, since, last_epoch, last_n)
        SELECT 'patient_search', unhex(printf('%032x', x)), 0, 'poison', 'test', 0, x / 2, 1, 1 FROM c;
        INSERT INTO dead_record (consumer, topic, part, pos, home_key, code, digest, headers, payload, at)
        SELECT 'patient_search', 'domain.v1', 0, 7, unhex(printf('%032x', 1)), 'test', x'00', '{}', '{}', 1;
        INSERT INTO consumer_stop (consumer, reason, since) VALUES ('patient_search', 'held_keys', 0);";
    tx.script(hold).await.unwrap();
    tx.commit().await.unwrap();
    let (mut keys, mut path) = (Vec::new(), "/v1/admin/dead-letters?limit=2".to_owned());
    for _ in 0..3 {
        let page = world.get(&sre, &path).await;
        assert_eq!(page.status, StatusCode::OK, "{:?}", page.body);
        assert_eq!(page.body["unreadable"].as_array().map(Vec::len), Some(1));
        keys.extend(page.body["items"].as_array().unwrap().iter().map(|item| item["held"]["key"].to_string()));
        let Some(cursor) = page.body["next_cursor"].as_str() else { break };
        path = format!("/v1/admin/dead-letters?limit=2&cursor={cursor}");
    }
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 5, "each once: {keys:?}");
    let first = world.get(&sre, "/v1/admin/dead-letters?limit=1").await;
    let cursor = first.body["next_unreadable_cursor"].as_str().unwrap();
    let rest = world.get(&sre, &format!("/v1/admin/dead-letters?unreadable_cursor={cursor}")).await;
    assert_eq!((&rest.body["unreadable"], &rest.body["next_unreadable_cursor"]), (&json!([]), &json!(null)));
    for (query, problem) in [
        ("limit=0", "invalid-query"),
        ("limit=x", "invalid-query"),
        ("page=2", "invalid-query"),
        ("cursor=x", "invalid-cursor"),
        (&format!("cursor={cursor}"), "invalid-cursor"),
    ] {
        let refused = world.get(&sre, &format!("/v1/admin/dead-letters?{query}")).await;
        assert_eq!((refused.status, refused.problem()), (StatusCode::BAD_REQUEST, problem), "{query}");
    }
    let resume = "/v1/admin/projections/patient_search/resume";
    let resumed = world.post(&sre, resume, "r", &json!({})).await;
    assert_eq!((resumed.status, &resumed.body["resumed"]), (StatusCode::OK, &json!(true)), "{:?}", resumed.body);
    let again = world.post(&sre, resume, "s", &json!({})).await;
    assert_eq!((again.status, again.problem()), (StatusCode::CONFLICT, "consumer-not-stopped"));
    let strange = world.post(&sre, "/v1/admin/projections/nobody/resume", "t", &json!({})).await;
    assert_eq!((strange.status, strange.problem()), (StatusCode::NOT_FOUND, "unknown-consumer"));
}

/// Guard: each verification reads all of the trail, and goes on when its caller has gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trail_is_verified_for_one_at_a_time() {
    let world = World::new().await;
    let sre = world.session("sre", &[], None);
    let verify = async |key: String| world.post(&sre, "/v1/admin/audit/verify", &key, &json!({})).await;
    let (mut refused, mut rounds) = (None, 0);
    while refused.is_none() {
        rounds += 1;
        assert!(rounds < 100, "eight at once were never refused");
        let all = futures_util::future::join_all((0..8).map(|number| verify(format!("{rounds}-{number}")))).await;
        assert!(all.iter().any(|answer| answer.status == StatusCode::OK), "one of them has the turn");
        for answer in all.into_iter().filter(|answer| answer.status != StatusCode::OK) {
            let told = (answer.status, answer.problem(), answer.headers.contains_key("retry-after"));
            assert_eq!(told, (StatusCode::CONFLICT, "trail-being-verified", true), "{:?}", answer.body);
            // One that has just begun is not named yet.
            refused = refused.or_else(|| answer.body["operation"].is_string().then_some(answer));
        }
    }
    let refused = refused.unwrap();
    let kept = world.get(&sre, "/v1/admin/operations?limit=200").await;
    let running = kept.body["items"].as_array().unwrap().iter().find(|row| row["id"] == refused.body["operation"]);
    assert_eq!(running.unwrap()["state"], "done", "{:?}", refused.body);
    // Also when it is another program that is at it.
    let id: OperationId = Id::derive(b"of another program", 0);
    let turn = Turn::take(world.cluster.data_dir(), "audit.verify", id).unwrap();
    let refused = verify("k".to_owned()).await;
    assert_eq!((refused.problem(), &refused.body["operation"]), ("trail-being-verified", &json!(id)));
    drop(turn);
    let verified = verify("k".to_owned()).await;
    assert_eq!((verified.status, &verified.body["verified"]), (StatusCode::OK, &json!(true)), "{:?}", verified.body);
}

/// Guard: each publishes a map and reads all of the trail, and goes on when its caller has gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_is_given_up_for_one_at_a_time() {
    let world = World::new().await;
    let sre = world.session("sre", &[], None);
    let body = json!({"reason": "test"});
    let give_up = async |shard: u16| {
        let path = format!("/v1/admin/shards/{shard}/accept-loss");
        world.post(&sre, &path, "k", &body).await
    };
    let version = async || world.get(&sre, "/v1/admin/shards/map").await.body["version"].clone();
    let before = version().await;
    // Another program is at it.
    let id: OperationId = Id::derive(b"of another program", 0);
    let turn = Turn::take(world.cluster.data_dir(), "shard.accept_loss.1", id).unwrap();
    let refused = give_up(1).await;
    let told = (refused.status, refused.problem(), refused.headers.contains_key("retry-after"));
    assert_eq!(told, (StatusCode::CONFLICT, "loss-being-given-up", true), "{:?}", refused.body);
    assert_eq!(refused.body["operation"], json!(id));
    assert_eq!(version().await, before, "it has published no map");
    let other = give_up(0).await;
    assert_eq!(other.status, StatusCode::OK, "that of another shard does not wait: {:?}", other.body);
    drop(turn);
    let given_up = give_up(1).await;
    assert_eq!((given_up.status, &given_up.body["shard"]), (StatusCode::OK, &json!(1)), "{:?}", given_up.body);
    let unknown = give_up(7).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND, "{:?}", unknown.body);
    assert!(!world.cluster.data_dir().join("shard.accept_loss.7.lock").exists());
}

/// Guard: each summary reads all of every store; many at once would keep everybody else from them.
#[tokio::test]
async fn a_run_is_summed_up_for_one_at_a_time() {
    let world = World::new().await;
    let sre = world.session("sre", &[], None);
    let turn = world.stores.summaries.begin().unwrap();
    let refused = world.get(&sre, "/v1/admin/runs/summary").await;
    assert_eq!(
        (refused.status, refused.problem()),
        (StatusCode::CONFLICT, "run-being-summed-up"),
        "{:?}",
        refused.body
    );
    assert!(refused.headers.contains_key("retry-after"));
    drop(turn);
    for _time in 0..2 {
        let told = world.get(&sre, "/v1/admin/runs/summary").await;
        assert_eq!((told.status, &told.body["audit_verified"]), (StatusCode::OK, &json!(true)), "{:?}", told.body);
    }
}
