//! The same key and body have one effect and one answer: in sequence, at once, after a restart, and after the sweep.

use std::time::Duration;

use http::StatusCode;
use pim_data::idempotency::KEPT_FOR;
use serde_json::json;

use crate::world::World;

#[tokio::test]
async fn a_repeated_registration_is_the_same_answer() {
    let world = World::new().await;
    let first = world.registered("same").await;
    let second = world.registered("same").await;
    assert_eq!((first.status, &first.body, first.etag()), (second.status, &second.body, second.etag()));
    assert!(first.headers.contains_key("x-pim-token"));
    assert_eq!(first.headers["x-pim-token"], second.headers["x-pim-token"], "who repeats reads their write too");
    let other_key = world.registered("another").await;
    assert_ne!(first.id(), other_key.id());
}

#[tokio::test]
async fn registrations_at_once_make_one_patient() {
    let world = World::new().await;
    let (a, b, c, d) = tokio::join!(
        world.registered("same"),
        world.registered("same"),
        world.registered("same"),
        world.registered("same")
    );
    for other in [&b, &c, &d] {
        assert_eq!((a.status, &a.body, a.etag()), (other.status, &other.body, other.etag()));
    }
}

#[tokio::test]
async fn a_restart_forgets_no_answer() {
    let world = World::new().await;
    let registered = world.registered("same").await;
    let path = format!("/v1/patients/{}/transitions", registered.id());
    let moved = world.post(&world.clinician(), &path, "move", &json!({"to": "active"})).await;
    let world = world.restarted().await;
    assert_eq!(world.registered("same").await.body, registered.body);
    let again = world.post(&world.clinician(), &path, "move", &json!({"to": "active"})).await;
    assert_eq!((again.status, &again.body, again.etag()), (StatusCode::OK, &moved.body, "\"2\""));
}

#[tokio::test]
async fn a_retried_transition_is_answered_not_refused() {
    let world = World::new().await;
    let token = world.clinician();
    let path = format!("/v1/patients/{}/transitions", world.registered("a").await.id());
    let first = world.post(&token, &path, "move", &json!({"to": "active"})).await;
    let second = world.post(&token, &path, "move", &json!({"to": "active"})).await;
    assert_eq!((first.status, &first.body), (second.status, &second.body));
    let fresh = world.post(&token, &path, "move-2", &json!({"to": "active"})).await;
    assert_eq!(fresh.problem(), "illegal-transition");
}

#[tokio::test]
async fn another_body_under_the_same_key_is_422() {
    let world = World::new().await;
    let _registered = world.registered("same").await;
    let mut body = world.registration();
    body["given_name"] = json!("Grace");
    let refused = world.post(&world.clinician(), "/v1/patients", "same", &body).await;
    assert_eq!((refused.status, refused.problem()), (StatusCode::UNPROCESSABLE_ENTITY, "idempotency-mismatch"));
}

#[tokio::test]
async fn members_in_another_order_are_the_same_body() {
    let world = World::new().await;
    let first = world.registered("same").await;
    let body = world.registration();
    let members: Vec<_> = body.as_object().unwrap().iter().rev().map(|(k, v)| format!("\"{k}\": {v}")).collect();
    let request = World::writing(&world.clinician(), "/v1/patients", "same");
    let second = world.send(request.body(format!("{{{}}}", members.join(", ")).into()).unwrap()).await;
    assert_eq!((second.status, second.body), (first.status, first.body));
}

#[tokio::test]
async fn a_registration_older_than_its_record_names_the_patient() {
    let world = World::new().await;
    let first = world.registered("same").await;
    world.pass(KEPT_FOR + Duration::from_secs(1));
    assert!(world.cluster.sweep_idempotency().await.unwrap() > 0);
    let late = world.post(&world.clinician(), "/v1/patients", "same", &world.registration()).await;
    assert_eq!((late.status, late.problem()), (StatusCode::CONFLICT, "already-exists"));
    assert_eq!(late.body["id"], first.body["id"]);
}
