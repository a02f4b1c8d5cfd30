//! Bad input is a named problem with the request's id, never a 500, and nothing of the body comes back.

use axum::body::Body;
use http::{Request, StatusCode};
use pim_core::id::Id;
use pim_lab::ids::{EncounterId, PatientId};
use serde_json::{Value, json};

use crate::world::World;

async fn refusal(world: &World, change: impl FnOnce(&mut Value)) -> (u16, String, String) {
    let mut body = world.registration();
    change(&mut body);
    let answered = world.post(&world.clinician(), "/v1/patients", "key", &body).await;
    (answered.status.as_u16(), answered.problem().to_owned(), answered.body.to_string())
}

#[tokio::test]
async fn bodies_that_do_not_fit() {
    let world = World::new().await;
    type Change = fn(&mut Value);
    let cases: [(&str, Change, &str); 5] = [
        ("a value with our own word", |body| body["sex"] = json!("expected zzsecretzz"), "expected one of"),
        ("unknown enum value", |body| body["sex"] = json!("zzsecretzz"), "expected one of"),
        ("unknown field", |body| body["zzsecretzz"] = json!(1), "expected one of"),
        ("missing field", |body| drop(body.as_object_mut().unwrap().remove("sex")), "sex"),
        ("wrong type", |body| body["given_name"] = json!(["zzsecretzz"]), "expected a string"),
    ];
    for (name, change, hint) in cases {
        let (status, kind, text) = refusal(&world, change).await;
        assert_eq!((status, kind.as_str()), (422, "invalid-body"), "{name}: {text}");
        assert!(text.contains(hint), "{name}: {text}");
        assert!(!text.contains("zzsecretzz"), "{name} was repeated: {text}");
        assert!(text.contains("request_id"), "{name}");
    }
}

#[tokio::test]
async fn requests_that_do_not_fit() {
    let world = World::new().await;
    let token = world.clinician();
    let write = || Request::post("/v1/patients").header("txn-token", &token);
    let json_write = || write().header("content-type", "application/json");
    let body = || Body::from(world.registration().to_string());
    let patient: PatientId = Id::derive(b"nobody", 0);
    let get = |path: String| Request::get(path).header("txn-token", &token).body(Body::empty()).unwrap();
    let elsewhere = (0..).map(|n| Id::derive(b"child", n)).find(|id: &EncounterId| id.bucket() != patient.bucket());
    let wrong = format!("/v1/patients/{patient}/encounters/{}/transitions", elsewhere.unwrap());
    let cases = [
        ("no key", json_write().body(body()).unwrap(), 400, "idempotency-key-missing"),
        (
            "bad key",
            json_write().header("idempotency-key", "a b").body(body()).unwrap(),
            400,
            "idempotency-key-invalid",
        ),
        ("content type", write().header("idempotency-key", "a").body(body()).unwrap(), 415, "unsupported-media-type"),
        ("no json", json_write().header("idempotency-key", "a").body(Body::from("{")).unwrap(), 400, "malformed-json"),
        (
            "too large",
            json_write().header("idempotency-key", "a").body(Body::from(vec![b' '; 70_000])).unwrap(),
            413,
            "body-too-large",
        ),
        ("no id", get("/v1/patients/42".to_owned()), 400, "invalid-id"),
        ("nobody", get(format!("/v1/patients/{patient}")), 404, "not-found"),
        ("cursor", get(format!("/v1/patients/{patient}/claims?cursor=zz")), 400, "invalid-cursor"),
        ("limit", get(format!("/v1/patients/{patient}/claims?limit=0")), 400, "invalid-query"),
        ("query", get(format!("/v1/patients/{patient}/claims?limited=1")), 400, "invalid-query"),
        ("path", get("/v1/nothing".to_owned()), 404, "not-found"),
        (
            "wrong bucket",
            World::writing(&token, &wrong, "k").body(Body::from(r#"{"to":"completed"}"#)).unwrap(),
            404,
            "wrong-bucket",
        ),
    ];
    for (name, request, status, kind) in cases {
        let answered = world.send(request).await;
        assert_eq!((answered.status.as_u16(), answered.problem()), (status, kind), "{name}: {}", answered.body);
        assert!(answered.body["request_id"].is_string(), "{name}");
    }
}

#[tokio::test]
async fn sessions_that_do_not_hold() {
    let world = World::new().await;
    let other = World::new().await;
    let path = "/v1/patients/x";
    let none = world.send(Request::get(path).body(Body::empty()).unwrap()).await;
    assert_eq!((none.status, none.problem()), (StatusCode::UNAUTHORIZED, "unauthenticated"));
    assert_eq!(world.get("a.b", path).await.problem(), "token-malformed");
    assert_eq!(world.get(&other.clinician(), path).await.problem(), "token-untrusted");
    let old = world.clinician();
    world.pass(std::time::Duration::from_secs(120));
    assert_eq!(world.get(&old, path).await.problem(), "token-expired");
    let unknown = world.session("janitor", &[], None);
    assert_eq!(world.get(&unknown, path).await.problem(), "token-claims");
}
