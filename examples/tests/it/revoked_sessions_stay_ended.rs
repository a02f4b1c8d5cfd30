//! People sign in by code and go on by refresh tokens, each of which is good once; what has been revoked ends, and stays ended.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use pim_core::clock::{Clock, Timestamp};
use pim_lab::broker::{Broker, BrokerSettings, KEY_ROTATION, Profile, gateway_secret};
use pim_lab::rig::{Drain, Peer};
use pim_lab::signals::Hub;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tower::ServiceExt as _;
use uuid::Uuid;

const VERIFIER: &str = "a-verifier-of-forty-three-characters-or-more";
const CALLBACK: &str = "http://127.0.0.1:9/callback";
/// Whom the development identity provider makes up where nobody has been seeded.
const CLINICIAN: &str = "dev-clinician";

/// A broker, and a clock that stands still until it is told to go on.
struct Place {
    router: Router,
    clock: Clock,
    basic: String,
    folder: PathBuf,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _leftover = std::fs::remove_dir_all(&self.folder);
    }
}

/// What somebody got who signed in or refreshed.
struct Tokens {
    access: String,
    refresh: String,
}

fn encoded(fields: &[(&str, &str)]) -> String {
    let pair = |(name, value): &(&str, &str)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
    fields.iter().map(pair).collect::<Vec<_>>().join("&")
}

impl Place {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("pim-broker-{}", Uuid::new_v4()));
        Self::over(folder, Clock::manual(Timestamp::from_micros(1_800_000_000_000_000)))
    }

    /// Another broker, which knows what lies in the folder.
    fn again(&self) -> Self {
        Self::over(self.folder.clone(), self.clock.clone())
    }

    fn over(folder: PathBuf, clock: Clock) -> Self {
        let settings = BrokerSettings {
            url: "http://127.0.0.1:8081".to_owned(),
            data_dir: folder.clone(),
            profile: Profile::Lab,
            key_rotation: KEY_ROTATION,
            clock: clock.clone(),
        };
        let router = Broker::new(settings).unwrap().into_router(Drain::new(), Hub::new(None).unwrap());
        let basic = format!("Basic {}", STANDARD.encode(format!("gateway:{}", gateway_secret(&folder).unwrap())));
        Self { router, clock, basic, folder }
    }

    fn a_second_passes(&self) {
        self.clock.advance(Duration::from_secs(1));
    }

    async fn code(&self) -> String {
        let response = self.authorized(CALLBACK, None).await;
        assert_eq!(response.status(), StatusCode::FOUND);
        let location = response.headers()[LOCATION].to_str().unwrap();
        let code = location.strip_prefix(&format!("{CALLBACK}?code=")).and_then(|rest| rest.strip_suffix("&state=s"));
        code.expect("a code and the state").to_owned()
    }

    /// What a browser is told that comes with a place for its code.
    async fn authorized(&self, redirect_uri: &str, from: Option<SocketAddr>) -> Response {
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER));
        let query = encoded(&[
            ("response_type", "code"),
            ("client_id", "pim-lab"),
            ("redirect_uri", redirect_uri),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
            ("state", "s"),
            ("login_hint", "clinician"),
        ]);
        let mut request = Request::get(format!("/authorize?{query}")).body(Body::empty()).unwrap();
        if let Some(from) = from {
            request.extensions_mut().insert(Peer(from));
        }
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn asked(&self, path: &str, media_type: &str, by: Option<&str>, body: String) -> (StatusCode, Value) {
        let mut request = Request::post(path).header(CONTENT_TYPE, media_type);
        if let Some(by) = by {
            request = request.header(AUTHORIZATION, by);
        }
        let response = self.router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let (status, body) = (response.status(), response.into_body().collect().await.unwrap().to_bytes());
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    async fn token(&self, fields: &[(&str, &str)], by: Option<&str>) -> (StatusCode, Value) {
        self.asked("/oauth/token", "application/x-www-form-urlencoded", by, encoded(fields)).await
    }

    async fn granted(&self, fields: &[(&str, &str)]) -> Result<Tokens, StatusCode> {
        let (status, told) = self.token(fields, None).await;
        let text = |member: &str| told[member].as_str().unwrap().to_owned();
        if status != StatusCode::OK {
            assert_eq!(told["access_token"], Value::Null);
            assert_eq!(told["error"].as_str(), (status == StatusCode::BAD_REQUEST).then_some("invalid_grant"));
            return Err(status);
        }
        Ok(Tokens { access: text("access_token"), refresh: text("refresh_token") })
    }

    async fn redeemed(&self, code: &str, verifier: &str) -> Result<Tokens, StatusCode> {
        self.granted(&[
            ("grant_type", "authorization_code"),
            ("code", code),
            ("code_verifier", verifier),
            ("client_id", "pim-lab"),
            ("redirect_uri", CALLBACK),
        ])
        .await
    }

    async fn signed_in(&self) -> Tokens {
        let code = self.code().await;
        self.redeemed(&code, VERIFIER).await.expect("a code that is good")
    }

    async fn refreshed(&self, token: &str) -> Result<Tokens, StatusCode> {
        self.granted(&[("grant_type", "refresh_token"), ("refresh_token", token)]).await
    }

    /// What the gateway is told of an access token.
    async fn exchanged(&self, access: &str, by: Option<&str>) -> StatusCode {
        let fields = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:access_token"),
            ("subject_token", access),
        ];
        self.token(&fields, by).await.0
    }

    async fn context_of(&self, access: &str) -> StatusCode {
        self.exchanged(access, Some(&self.basic)).await
    }

    async fn revoked(&self, what: &Value) {
        let (status, _) = self.asked("/sessions/revoke", "application/json", Some(&self.basic), what.to_string()).await;
        assert_eq!(status, StatusCode::NO_CONTENT);
    }
}

/// The session that an access token is of.
fn sid(access: &str) -> Value {
    let claims = URL_SAFE_NO_PAD.decode(access.split('.').nth(1).unwrap()).unwrap();
    serde_json::from_slice::<Value>(&claims).unwrap()["tctx"]["sid"].clone()
}

#[tokio::test]
async fn a_revoked_subject_refreshes_no_session_that_began_before() {
    let place = Place::new();
    let first = place.signed_in().await;
    place.a_second_passes();
    let second = place.refreshed(&first.refresh).await.expect("nothing is revoked");
    assert_eq!(place.context_of(&second.access).await, StatusCode::OK);
    place.a_second_passes();
    place.revoked(&json!({"subject": CLINICIAN})).await;
    place.a_second_passes();
    assert_eq!(place.refreshed(&second.refresh).await.err(), Some(StatusCode::BAD_REQUEST));
    for access in [&first.access, &second.access] {
        assert_eq!(place.context_of(access).await, StatusCode::UNAUTHORIZED);
    }
    let later = place.signed_in().await;
    assert_eq!(place.context_of(&later.access).await, StatusCode::OK, "began afterwards");
    let later = place.refreshed(&later.refresh).await.expect("it goes on");
    assert_eq!(place.context_of(&later.access).await, StatusCode::OK);
}

#[tokio::test]
async fn nor_redeems_a_code_of_before() {
    let place = Place::new();
    let code = place.code().await;
    place.a_second_passes();
    place.revoked(&json!({"subject": CLINICIAN})).await;
    place.a_second_passes();
    assert_eq!(place.redeemed(&code, VERIFIER).await.err(), Some(StatusCode::BAD_REQUEST));
    place.signed_in().await;
}

#[tokio::test]
async fn nobody_but_the_gateway_exchanges_or_revokes() {
    let place = Place::new();
    let tokens = place.signed_in().await;
    let other = format!("Basic {}", STANDARD.encode("gateway:another"));
    for by in [None, Some(other.as_str())] {
        // Not 401, which is said of the token.
        assert_eq!(place.exchanged(&tokens.access, by).await, StatusCode::FORBIDDEN);
        let what = json!({"subject": CLINICIAN}).to_string();
        let (status, _) = place.asked("/sessions/revoke", "application/json", by, what).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
    }
    assert!(place.refreshed(&tokens.refresh).await.is_ok());
}

#[tokio::test]
async fn a_session_ends_alone() {
    let place = Place::new();
    let (ended, other) = (place.signed_in().await, place.signed_in().await);
    let ended = place.refreshed(&ended.refresh).await.expect("nothing is revoked");
    place.revoked(&json!({"sid": sid(&ended.access)})).await;
    place.a_second_passes();
    assert_eq!(place.context_of(&ended.access).await, StatusCode::UNAUTHORIZED);
    assert_eq!(place.refreshed(&ended.refresh).await.err(), Some(StatusCode::BAD_REQUEST));
    assert_eq!(place.context_of(&other.access).await, StatusCode::OK);
    assert!(place.refreshed(&other.refresh).await.is_ok());
}

#[tokio::test]
async fn codes_and_refresh_tokens_are_good_once_and_codes_for_whoever_asked() {
    let place = Place::new();
    let code = place.code().await;
    let other = VERIFIER.to_uppercase();
    assert_eq!(place.redeemed(&code, &other).await.err(), Some(StatusCode::BAD_REQUEST));
    assert_eq!(place.redeemed(&code, VERIFIER).await.err(), Some(StatusCode::BAD_REQUEST), "it was tried");
    let code = place.code().await;
    let tokens = place.redeemed(&code, VERIFIER).await.expect("a code that is good");
    let refreshed = place.refreshed(&tokens.refresh).await.expect("a token that is good");
    assert_eq!(sid(&refreshed.access), sid(&tokens.access), "the session goes on");
    assert_eq!(place.redeemed(&code, VERIFIER).await.err(), Some(StatusCode::BAD_REQUEST));
    assert_eq!(place.refreshed(&tokens.refresh).await.err(), Some(StatusCode::BAD_REQUEST));
    assert_eq!(place.refreshed("none").await.err(), Some(StatusCode::BAD_REQUEST));
}

/// Whoever stole it and whoever it was made for look the same: neither goes on.
#[tokio::test]
async fn whoever_shows_a_used_one_again_ends_its_session() {
    let place = Place::new();
    let (stolen, other) = (place.signed_in().await, place.signed_in().await);
    let thief = place.refreshed(&stolen.refresh).await.expect("the first to come");
    assert_eq!(place.refreshed(&stolen.refresh).await.err(), Some(StatusCode::BAD_REQUEST));
    assert_eq!(place.refreshed(&thief.refresh).await.err(), Some(StatusCode::BAD_REQUEST));
    for access in [&stolen.access, &thief.access] {
        assert_eq!(place.context_of(access).await, StatusCode::UNAUTHORIZED);
    }
    assert!(place.refreshed(&other.refresh).await.is_ok(), "another session of the same subject");
    let log = place.folder.join("keys/revoked.log");
    let written = std::fs::metadata(&log).unwrap().len();
    assert_eq!(place.refreshed(&stolen.refresh).await.err(), Some(StatusCode::BAD_REQUEST));
    assert_eq!(std::fs::metadata(&log).unwrap().len(), written, "who shows it again and again writes nothing more");
    let code = place.code().await;
    let tokens = place.redeemed(&code, VERIFIER).await.expect("the first to come");
    assert_eq!(place.redeemed(&code, VERIFIER).await.err(), Some(StatusCode::BAD_REQUEST));
    assert_eq!(place.context_of(&tokens.access).await, StatusCode::UNAUTHORIZED, "by its code");
}

#[tokio::test]
async fn what_is_asked_for_otherwise_is_named_as_clients_expect() {
    let place = Place::new();
    let (status, told) = place.token(&[("grant_type", "password")], None).await;
    assert_eq!((status, &told["error"]), (StatusCode::BAD_REQUEST, &json!("unsupported_grant_type")));
    let (status, told) = place.asked("/oauth/token", "application/json", None, "{}".to_owned()).await;
    assert_eq!((status, &told["error"]), (StatusCode::BAD_REQUEST, &json!("invalid_request")));
}

#[tokio::test]
async fn a_restart_forgets_no_revocation() {
    let place = Place::new();
    let (ended, kept) = (place.signed_in().await, place.signed_in().await);
    place.revoked(&json!({"sid": sid(&ended.access)})).await;
    let again = place.again();
    assert_eq!(again.context_of(&ended.access).await, StatusCode::UNAUTHORIZED, "the session");
    assert_eq!(again.context_of(&kept.access).await, StatusCode::OK, "the keys are the same");
    place.a_second_passes();
    again.revoked(&json!({"subject": CLINICIAN})).await;
    place.a_second_passes();
    for broker in [&place, &again, &again.again()] {
        assert_eq!(broker.context_of(&kept.access).await, StatusCode::UNAUTHORIZED, "the subject");
        let later = broker.signed_in().await;
        assert_eq!(broker.context_of(&later.access).await, StatusCode::OK, "began afterwards");
    }
}

#[tokio::test]
async fn whoever_is_to_come_again_finds_code_and_token_unused() {
    let place = Place::new();
    let (tokens, code) = (place.signed_in().await, place.code().await);
    let unreadable = place.folder.join("keys/revoked.log");
    std::fs::create_dir(&unreadable).unwrap();
    assert_eq!(place.refreshed(&tokens.refresh).await.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(place.redeemed(&code, VERIFIER).await.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
    std::fs::remove_dir(&unreadable).unwrap();
    assert!(place.refreshed(&tokens.refresh).await.is_ok(), "the token");
    assert!(place.redeemed(&code, VERIFIER).await.is_ok(), "the code");
}

#[tokio::test]
async fn where_session_and_subject_are_named_both_end() {
    let place = Place::new();
    let (named, other) = (place.signed_in().await, place.signed_in().await);
    place.revoked(&json!({"sid": sid(&named.access), "subject": CLINICIAN})).await;
    place.a_second_passes();
    for access in [&named.access, &other.access] {
        assert_eq!(place.context_of(access).await, StatusCode::UNAUTHORIZED);
    }
    // A session ends whoever it is of.
    let later = place.signed_in().await;
    place.revoked(&json!({"sid": sid(&later.access), "subject": "another"})).await;
    assert_eq!(place.context_of(&later.access).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_code_is_sent_to_the_callers_own_machine_alone() {
    let place = Place::new();
    for good in ["http://127.0.0.1:9/cb", "http://localhost:9/cb", "http://[::1]:9/cb"] {
        assert_eq!(place.authorized(good, None).await.status(), StatusCode::FOUND, "{good}");
    }
    for elsewhere in ["http://127.0.0.1:x@evil.example/cb", "http://localhost:x@evil.example/cb"] {
        let told = place.authorized(elsewhere, None).await;
        assert_eq!((told.status(), told.headers().get(LOCATION)), (StatusCode::BAD_REQUEST, None), "{elsewhere}");
    }
}

/// Guard: codes are bounded in number, so whoever begins sign-ins without end would take everybody's.
#[tokio::test]
async fn nobody_crowds_out_the_codes_of_others() {
    let place = Place::new();
    let from = |address: &str| Some(SocketAddr::new(address.parse().unwrap(), 9));
    let code = place.code().await;
    let mut begun = 0;
    while place.authorized(CALLBACK, from("192.0.2.7")).await.status() == StatusCode::FOUND {
        begun += 1;
        assert!(begun < 1024, "without end");
    }
    let refused = place.authorized(CALLBACK, from("192.0.2.8")).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS, "of the same network");
    assert_eq!(place.authorized(CALLBACK, from("198.51.100.7")).await.status(), StatusCode::FOUND);
    assert!(place.redeemed(&code, VERIFIER).await.is_ok());
}

#[tokio::test]
async fn requests_that_begin_no_sign_in_keep_nobody_out() {
    let place = Place::new();
    let from = Some(SocketAddr::from(([192, 0, 2, 7], 9)));
    for _ in 0..200 {
        let refused = place.authorized("http://elsewhere.example/callback", from).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    }
    assert_eq!(place.authorized(CALLBACK, from).await.status(), StatusCode::FOUND);
}
