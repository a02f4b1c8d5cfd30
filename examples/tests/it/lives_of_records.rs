//! Each record moves along its own edges, raises its version, and refuses every other step by name.

use axum::body::Body;
use http::{Request, StatusCode};
use pim_core::id::Id;
use pim_lab::ids::{FacilityId, PatientId};
use serde_json::{Value, json};

use crate::cycles_miss_no_claim::draft;
use crate::world::{World, furnish};

#[tokio::test]
async fn a_patient_is_registered_activated_suspended_reactivated_and_retired() {
    let world = World::new().await;
    let token = world.clinician();
    let patient = world.registered("a").await;
    assert_eq!((patient.body["state"].as_str(), patient.etag()), (Some("registered"), "\"1\""));
    let path = format!("/v1/patients/{}/transitions", patient.id());
    for (step, to) in ["active", "suspended", "active", "retired"].into_iter().enumerate() {
        let moved = world.post(&token, &path, &format!("step-{step}"), &json!({"to": to})).await;
        assert_eq!((moved.status, moved.body["state"].as_str()), (StatusCode::OK, Some(to)), "{:?}", moved.body);
        assert_eq!(moved.body["version"], step + 2);
    }
    let refused = world.post(&token, &path, "back", &json!({"to": "active"})).await;
    assert_eq!((refused.status, refused.problem()), (StatusCode::CONFLICT, "illegal-transition"));
    assert_eq!((refused.body["from"].as_str(), refused.body["to"].as_str()), (Some("retired"), Some("active")));
    let shown = world.get(&token, &format!("/v1/patients/{}", patient.id())).await;
    assert_eq!((shown.body["version"].as_u64(), shown.etag()), (Some(5), "\"5\""));
}

#[tokio::test]
async fn an_encounter_is_started_extended_and_completed() {
    let world = World::new().await;
    let token = world.clinician();
    let patient = world.registered("a").await.id();
    let base = format!("/v1/patients/{patient}/encounters");
    let encounter = world.post(&token, &base, "schedule", &world.scheduling()).await;
    assert_eq!(encounter.status, StatusCode::CREATED, "{:?}", encounter.body);
    let one = format!("{base}/{}", encounter.id());
    let early = world.post(&token, &format!("{one}/diagnoses"), "early", &json!({"code": "E11.9"})).await;
    assert_eq!((early.status, early.problem()), (StatusCode::CONFLICT, "illegal-transition"));
    let started = world.post(&token, &format!("{one}/transitions"), "start", &json!({"to": "in_progress"})).await;
    assert_eq!(started.status, StatusCode::OK, "{:?}", started.body);
    for (part, body) in [
        ("diagnoses", json!({"code": "E11.9"})),
        ("procedures", json!({"code": "G0402"})),
        ("orders", json!({"kind": "laboratory", "code": "G0103"})),
        ("observations", json!({"kind": "heart_rate_per_minute", "value": 72})),
        ("notes", json!({"text": "resting"})),
    ] {
        let added = world.post(&token, &format!("{one}/{part}"), part, &body).await;
        assert_eq!(added.status, StatusCode::CREATED, "{part}: {:?}", added.body);
        assert_eq!(added.body[part].as_array().map(Vec::len), Some(1));
    }
    let completed = world.post(&token, &format!("{one}/transitions"), "end", &json!({"to": "completed"})).await;
    assert_eq!((completed.status, completed.body["state"].as_str()), (StatusCode::OK, Some("completed")));
    let again = world.post(&token, &format!("{one}/transitions"), "end-2", &json!({"to": "completed"})).await;
    assert_eq!((again.status, again.problem()), (StatusCode::CONFLICT, "illegal-transition"));
    let listed = world.get(&token, &base).await;
    assert_eq!(listed.body["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn what_is_corrected_with_null_is_removed() {
    let world = World::new().await;
    let patient = format!("/v1/patients/{}", world.registered("a").await.id());
    let corrected = async |key: &str, body: Value| {
        let request = Request::patch(&patient).header("txn-token", world.clinician()).header("idempotency-key", key);
        let request = request.header("content-type", "application/json");
        world.send(request.body(Body::from(body.to_string())).unwrap()).await
    };
    let address = corrected("address", json!({"address": "12 Sample Street"})).await;
    assert_eq!(address.body["telephone"], "202-555-0142", "what is absent stays: {:?}", address.body);
    let removed = corrected("null", json!({"address": null, "telephone": null, "mail": null})).await;
    assert_eq!(removed.status, StatusCode::OK, "{:?}", removed.body);
    let shown = world.get(&world.clinician(), &patient).await;
    for member in ["address", "telephone", "mail"] {
        assert!(shown.body[member].is_null(), "{member}: {:?}", shown.body);
    }
    let refused = corrected("nobody", json!({"given_name": null})).await;
    assert_eq!((refused.status.as_u16(), refused.problem()), (422, "invalid-body"), "{:?}", refused.body);
}

/// Guard: nothing is planned or begun with whom care is paused or over; what has begun is completed.
#[tokio::test]
async fn care_that_is_paused_or_over_begins_nothing() {
    let world = World::new().await;
    let token = world.clinician();
    let patient = format!("/v1/patients/{}", world.registered("a").await.id());
    let encounters = format!("{patient}/encounters");
    let booking = json!({"facility_id": world.facility, "provider_id": world.provider,
        "scheduled_at": "2027-01-15T09:00:00Z"});
    let moved = async |of: &str, key: &str, to: &str| {
        world.post(&token, &format!("{of}/transitions"), key, &json!({"to": to})).await
    };
    let mut planned = Vec::new();
    for key in ["going-on", "planned"] {
        planned.push(format!("{encounters}/{}", world.post(&token, &encounters, key, &world.scheduling()).await.id()));
    }
    assert_eq!(moved(&planned[0], "start", "in_progress").await.status, StatusCode::OK);
    assert_eq!(moved(&patient, "activate", "active").await.status, StatusCode::OK);
    for state in ["suspended", "retired"] {
        let moved_on = moved(&patient, state, state).await;
        assert_eq!(moved_on.status, StatusCode::OK, "{:?}", moved_on.body);
        for (what, refused) in [
            ("begun", moved(&planned[1], &format!("begin-{state}"), "in_progress").await),
            ("planned", world.post(&token, &encounters, &format!("plan-{state}"), &world.scheduling()).await),
            (
                "booked",
                world.post(&token, &format!("{patient}/appointments"), &format!("book-{state}"), &booking).await,
            ),
        ] {
            let told = (refused.status.as_u16(), refused.problem(), refused.body["from"].as_str());
            assert_eq!(told, (409, "illegal-transition", Some(state)), "{what}: {:?}", refused.body);
        }
    }
    let note = world.post(&token, &format!("{}/notes", planned[0]), "note", &json!({"text": "done"})).await;
    assert_eq!(note.status, StatusCode::CREATED, "{:?}", note.body);
    assert_eq!(moved(&planned[0], "end", "completed").await.status, StatusCode::OK);
}

/// Where a claim over 120.00 that waits to be paid is moved, and where it is paid.
async fn adjudicated(world: &World, admin: &str) -> (String, String) {
    let patient: PatientId = world.registered("a").await.id().parse().unwrap();
    let claim = format!("/v1/patients/{patient}/claims/{}", draft(world, patient, "visit").await);
    let (moves, payments) = (format!("{claim}/transitions"), format!("{claim}/payments"));
    for to in ["submitted", "adjudicated"] {
        let moved = world.post(admin, &moves, to, &json!({"to": to})).await;
        assert_eq!((moved.status, moved.body["state"].as_str()), (StatusCode::OK, Some(to)), "{:?}", moved.body);
    }
    (moves, payments)
}

fn paying(amount: &str) -> Value {
    json!({"amount": {"value": amount, "currency": "USD"}, "method": "card"})
}

#[tokio::test]
async fn a_claim_is_paid_before_it_is_closed() {
    let world = World::new().await;
    let admin = world.session("admin", &[], None);
    let (moves, payments) = adjudicated(&world, &admin).await;
    let nothing = world.post(&admin, &payments, "nothing", &paying("0.00")).await;
    assert_eq!((nothing.status.as_u16(), nothing.problem()), (422, "invalid-body"), "{:?}", nothing.body);
    let unpaid = world.post(&admin, &moves, "unpaid", &json!({"to": "closed"})).await;
    assert_eq!((unpaid.status, unpaid.problem()), (StatusCode::CONFLICT, "illegal-transition"), "{:?}", unpaid.body);
    assert_eq!(unpaid.body["owed"], json!({"value": "120.00", "currency": "USD"}));
    let part = world.post(&admin, &payments, "part", &paying("119.99")).await;
    assert_eq!(part.status, StatusCode::CREATED, "{:?}", part.body);
    let owing = world.post(&admin, &moves, "owing", &json!({"to": "closed"})).await;
    assert_eq!((owing.status.as_u16(), owing.body["owed"]["value"].as_str()), (409, Some("0.01")), "{:?}", owing.body);
    let rest = world.post(&admin, &payments, "rest", &paying("0.01")).await;
    assert_eq!(rest.status, StatusCode::CREATED, "{:?}", rest.body);
    let closed = world.post(&admin, &moves, "closed", &json!({"to": "closed"})).await;
    assert_eq!((closed.status, closed.body["state"].as_str()), (StatusCode::OK, Some("closed")), "{:?}", closed.body);
}

/// Guard: `pay` keeps a place for what settles a claim. One that is full could be neither paid nor closed.
#[tokio::test]
async fn a_claim_of_many_payments_is_settled_all_the_same() {
    let world = World::new().await;
    let admin = world.session("admin", &[], None);
    let (moves, payments) = adjudicated(&world, &admin).await;
    for number in 0..199 {
        let paid = world.post(&admin, &payments, &number.to_string(), &paying("0.01")).await;
        assert_eq!(paid.status, StatusCode::CREATED, "{number}: {:?}", paid.body);
    }
    let one_more = world.post(&admin, &payments, "more", &paying("0.01")).await;
    assert_eq!((one_more.status.as_u16(), one_more.body["entries_max"].as_u64()), (422, Some(200)));
    let rest = world.post(&admin, &payments, "rest", &paying("118.01")).await;
    assert_eq!(rest.status, StatusCode::CREATED, "{:?}", rest.body);
    assert_eq!(world.post(&admin, &moves, "closed", &json!({"to": "closed"})).await.status, StatusCode::OK);
}

/// Guard: `transition` asks for the patient as the service. A visit is its clinician's wherever its patient belongs by now.
#[tokio::test]
async fn a_visit_begins_where_its_patient_belongs_no_more() {
    let world = World::new().await;
    let (clinician, other): (_, FacilityId) = (world.clinician(), Id::derive(b"facility", 2));
    let of_both = world.session("clinician", &[world.facility, other], None);
    let patient = format!("/v1/patients/{}", world.registered("a").await.id());
    let planned = world.post(&clinician, &format!("{patient}/encounters"), "plan", &world.scheduling()).await;
    assert_eq!(planned.status, StatusCode::CREATED, "{:?}", planned.body);
    furnish(&world.cluster, other, Id::derive(b"provider", 2)).await;
    let elsewhere = json!({"facility_id": other});
    let request = World::writing(&of_both, &patient, "moves").method("PATCH").header("if-match", "\"1\"");
    let moved = world.send(request.body(Body::from(elsewhere.to_string())).unwrap()).await;
    assert_eq!(moved.status, StatusCode::OK, "{:?}", moved.body);
    let path = format!("{patient}/encounters/{}/transitions", planned.id());
    let begun = world.post(&clinician, &path, "begin", &json!({"to": "in_progress"})).await;
    assert_eq!((begun.status, begun.body["state"].as_str()), (StatusCode::OK, Some("in_progress")), "{:?}", begun.body);
}

#[tokio::test]
async fn a_version_that_was_overtaken_is_412() {
    let world = World::new().await;
    let token = world.clinician();
    let path = format!("/v1/patients/{}/transitions", world.registered("a").await.id());
    let send = |key: &'static str, to: &'static str, seen: &'static str| {
        let request = World::writing(&token, &path, key).header("if-match", seen);
        world.send(request.body(Body::from(json!({"to": to}).to_string())).unwrap())
    };
    assert_eq!(send("1", "active", "\"1\"").await.status, StatusCode::OK);
    let stale = send("2", "suspended", "\"1\"").await;
    assert_eq!((stale.status, stale.problem()), (StatusCode::PRECONDITION_FAILED, "stale-version"));
    assert_eq!(stale.body["current_version"], 2);
}

#[tokio::test]
async fn a_page_ends_where_the_next_begins() {
    let world = World::new().await;
    let token = world.clinician();
    let base = format!("/v1/patients/{}/encounters", world.registered("a").await.id());
    for key in ["1", "2", "3"] {
        assert_eq!(world.post(&token, &base, key, &world.scheduling()).await.status, StatusCode::CREATED);
    }
    let first = world.get(&token, &format!("{base}?limit=2")).await;
    let cursor = first.body["next_cursor"].as_str().unwrap();
    let second = world.get(&token, &format!("{base}?limit=2&cursor={cursor}")).await;
    assert_eq!(second.body["items"].as_array().map(Vec::len), Some(1));
    assert!(second.body["next_cursor"].is_null());
}
