//! From a request to a read model, past everybody who may not.

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use pim_core::id::Id;
use pim_core::signal::SignalRegistry;
use pim_data::backend::Secrets;
use pim_lending::desk::{self, SEEN};
use pim_lending::house::{House, Signals};
use pim_lending::loan::{Member, Role, policy};
use pim_lending::sign_in::SignIn;
use pim_telemetry::trace::TraceStore;
use serde_json::{Value, json};
use tower::ServiceExt as _;
use uuid::Uuid;

pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(std::env::temp_dir().join(format!("pim-lending-{}", Uuid::new_v4().simple())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) async fn call(
    desk: &Router,
    token: &str,
    (method, path): (&str, &str),
    key: &str,
    body: &Value,
) -> Response<Body> {
    let request = Request::builder().method(method).uri(path).header("host", "library");
    let request = request.header("authorization", format!("Bearer {token}")).header("idempotency-key", key);
    let request = request.header("content-type", "application/json").body(Body::from(body.to_string())).unwrap();
    desk.clone().oneshot(request).await.unwrap()
}

pub(crate) async fn json_of(response: Response<Body>) -> Value {
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

/// Of somebody who has seen as much as this answer tells.
async fn books(desk: &Router, token: &str, path: &str, seen: &HeaderValue) -> Value {
    let request = Request::builder().uri(path).header("host", "library").header(SEEN, seen);
    let request = request.header("authorization", format!("Bearer {token}")).body(Body::empty()).unwrap();
    json_of(desk.clone().oneshot(request).await.unwrap()).await["books"].clone()
}

#[tokio::test]
async fn from_a_request_to_a_read_model() {
    lends(&Folder::new(), None).await;
}

/// Guard: `IdempotencyKey`. With no key at all two writes would be one, and the second be answered as if it had been made.
#[tokio::test]
async fn a_write_without_a_key_is_not_made() {
    let (folder, mut registry) = (Folder::new(), SignalRegistry::new());
    let signals = Signals::bind(&mut registry, &TraceStore::new(1)).unwrap();
    let (house, _works) = House::open(&folder.0, None, &signals).await.unwrap();
    let sign_in = SignIn::new().unwrap();
    let desk = desk::routes(house, &policy().unwrap().into(), sign_in.verifier());
    let librarian = sign_in.token("u-1", Role::Librarian, None).unwrap();
    let loans = format!("/members/{}/loans", Id::<Member>::random());
    for key in ["", "two words"] {
        let refused = call(&desk, &librarian, ("POST", &loans), key, &json!({"title": "Emma"})).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        assert_eq!(json_of(refused).await["type"], "urn:pim:problem:idempotency-key-invalid");
    }
}

/// On files, or on the servers of these secrets.
pub(crate) async fn lends(folder: &Folder, secrets: Option<Arc<dyn Secrets>>) {
    let (mut registry, traces) = (SignalRegistry::new(), TraceStore::new(100));
    let signals = Signals::bind(&mut registry, &traces).unwrap();
    let (house, works) = House::open(&folder.0, secrets, &signals).await.unwrap();
    let working = tokio::spawn(works.run(pending(), pending()));
    let sign_in = SignIn::new().unwrap();
    let desk = desk::routes(house.clone(), &policy().unwrap().into(), sign_in.verifier());

    let (member, other) = (Id::<Member>::random(), Id::<Member>::random());
    let librarian = sign_in.token("u-1", Role::Librarian, None).unwrap();
    let (reader, stranger) =
        (sign_in.token("u-2", Role::Reader, Some(member)), sign_in.token("u-3", Role::Reader, Some(other)));
    let (reader, stranger) = (reader.unwrap(), stranger.unwrap());
    let (loans, at_home) = (format!("/members/{member}/loans"), format!("/members/{member}/at-home"));
    let none_yet = call(&desk, &reader, ("GET", &at_home), "", &Value::Null).await;
    assert_eq!(json_of(none_yet).await, json!({"books": 0}), "who has never borrowed has nothing at home");
    let order = json!({"title": "Middlemarch"});

    // Nobody, somebody who may not, and a librarian, twice with one key.
    let refused = call(&desk, "nonsense", ("POST", &loans), "k-1", &order).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(json_of(refused).await["type"], "urn:pim:problem:token-malformed");
    let refused = call(&desk, &reader, ("POST", &loans), "k-1", &order).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let lent = call(&desk, &librarian, ("POST", &loans), "k-1", &order).await;
    assert_eq!(lent.status(), StatusCode::OK);
    assert_eq!(lent.headers()["cache-control"], "no-store", "nobody on the way keeps who reads what");
    let seen = lent.headers()[SEEN].clone();
    let lent = json_of(lent).await;
    let again = json_of(call(&desk, &librarian, ("POST", &loans), "k-1", &order).await).await;
    assert_eq!(lent, again, "one effect, one answer");
    let other_body = call(&desk, &librarian, ("POST", &loans), "k-1", &json!({"title": "Emma"})).await;
    assert_eq!(other_body.status(), StatusCode::UNPROCESSABLE_ENTITY);

    // The member sees it at once, another one never.
    let request = Request::builder().uri(&loans).header("host", "library").header(SEEN, &seen);
    let request = request.header("authorization", format!("Bearer {reader}")).body(Body::empty()).unwrap();
    assert_eq!(
        json_of(desk.clone().oneshot(request).await.unwrap()).await,
        json!({"items": [lent], "next_cursor": null})
    );
    let hidden = call(&desk, &stranger, ("GET", &loans), "", &Value::Null).await;
    assert_eq!(json_of(hidden).await, json!({"items": [], "next_cursor": null}));

    // The fact reaches the read model, and what comes back leaves it.
    assert_eq!(books(&desk, &reader, &at_home, &seen).await, 1);
    assert_eq!(call(&desk, &stranger, ("GET", &at_home), "", &Value::Null).await.status(), StatusCode::NOT_FOUND);
    let back = format!("{loans}/{}/back", lent["id"].as_str().unwrap());
    let came_back = call(&desk, &librarian, ("PUT", &back), "k-2", &Value::Null).await;
    assert_eq!(came_back.status(), StatusCode::OK);
    assert_eq!(call(&desk, &librarian, ("PUT", &back), "k-3", &Value::Null).await.status(), StatusCode::CONFLICT);
    assert_eq!(books(&desk, &reader, &at_home, &came_back.headers()[SEEN]).await, 0);

    // The trail verifies, and what was measured is there.
    assert!(house.cluster.verify_audit().await.unwrap().verified);
    assert!(registry.encode().contains("pim_data_units_total"));
    working.abort();
}
