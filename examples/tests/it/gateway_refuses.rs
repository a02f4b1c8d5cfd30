//! The gateway refuses what is ambiguous, unknown or not allowed, by name, before anything reaches an upstream.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::HeaderMap;
use pim_lab::chaos::ChaosPoint;
use pim_lab::gateway::{Gateway, GatewaySettings};
use pim_lab::rig::Drain;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::edge::{Edge, HEAD, Setup, serve};

async fn edge(calls_per_second: u32) -> Edge {
    narrow(calls_per_second, 64).await
}

async fn narrow(persona_calls_per_second: u32, in_flight_max: usize) -> Edge {
    Setup { persona_calls_per_second, in_flight_max, ..Setup::default() }.start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_two_readers_could_read_differently() {
    let edge = edge(1000).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\n{HEAD}\r\n");
    let with = |headers: &str| format!("GET /v1/patients HTTP/1.1\r\n{HEAD}{headers}\r\n");
    let many = "x-a: 1\r\n".repeat(70);
    let table = [
        (get("/v1/patients/%2e%2e/admin"), "bad-path"),
        (get("/v1/patients%2fx"), "bad-path"),
        (get("/v1/patients%5cx"), "bad-path"),
        (get("/v1/patients%00"), "bad-path"),
        (get("/v1/../v1/patients"), "bad-path"),
        (get("/v1//patients"), "bad-path"),
        (get("/v1/patients;a=b"), "bad-path"),
        (get("/v1/nothing"), "not-found"),
        (with("Host: other\r\n"), "bad-request"),
        (with("Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"), "bad-request"),
        (with("x_pim_user: root\r\n"), "bad-request"),
        (with("Upgrade: websocket\r\n"), "bad-request"),
        ("DELETE /v1/patients HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n".to_owned(), "method-not-allowed"),
        ("TRACE /v1/patients HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n".to_owned(), "method-not-allowed"),
        (with(""), "unauthenticated"),
    ];
    for (bytes, expected) in table {
        let (status, found) = edge.raw(&bytes).await;
        assert_eq!(found, expected, "{status} for {bytes:?}");
    }
    // These the HTTP parser itself already refuses: no problem document, but no way through either.
    for bytes in [
        format!("POST /v1/patients HTTP/1.1\r\n{HEAD}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        format!("POST /v1/patients HTTP/1.1\r\n{HEAD}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"),
        format!("GET /v1/patients HTTP/1.1\r\n{HEAD}{many}\r\n"),
    ] {
        let (status, _) = edge.raw(&bytes).await;
        assert!((400..500).contains(&status), "{status} for {bytes:?}");
    }
    assert_eq!(edge.reached.load(Ordering::SeqCst), 0, "nothing refused reached an upstream");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_not_good() {
    let edge = edge(1000).await;
    let good = edge.token("clinician").await;
    let (head, rest) = good.split_once('.').unwrap();
    let (claims, _) = rest.split_once('.').unwrap();
    let unsigned = "eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0Iiwia2lkIjoieCJ9";
    let table = [
        (format!("{head}.{claims}.AAAA"), "token-untrusted"),
        (format!("{unsigned}.{claims}.AAAA"), "token-untrusted"),
        ("garbage".to_owned(), "token-malformed"),
        (format!("{unsigned}.{claims}."), "token-malformed"),
    ];
    for (token, expected) in table {
        let bytes = format!("GET /v1/patients?name=a HTTP/1.1\r\n{HEAD}Authorization: Bearer {token}\r\n\r\n");
        assert_eq!(edge.raw(&bytes).await, (401, expected.to_owned()));
    }
    assert_eq!(edge.reached.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn to_blame_a_token_for_a_secret_of_its_own() {
    let mut edge = edge(1000).await;
    let token = edge.token("clinician").await;
    let bytes = format!("GET /v1/encounters/x HTTP/1.1\r\n{HEAD}Authorization: Bearer {token}\r\n\r\n");
    let settings = GatewaySettings { secret: "another broker's".to_owned(), ..edge.settings.clone() };
    let of_another = serve(Gateway::new(settings).unwrap().into_router(Drain::new())).await;
    let own = std::mem::replace(&mut edge.gateway, of_another);
    assert_eq!(edge.raw(&bytes).await, (503, "unavailable".to_owned()), "signing in again would not help");
    assert_eq!(edge.reached.load(Ordering::SeqCst), 0);
    edge.gateway = own;
    assert_eq!(edge.raw(&bytes).await.0, 200, "the token is good");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_does_not_grant_and_writes_without_a_key() {
    let edge = edge(1000).await;
    let patient = edge.token("patient").await;
    let bytes = format!("GET /v1/admin/outbox HTTP/1.1\r\n{HEAD}Authorization: Bearer {patient}\r\n\r\n");
    assert_eq!(edge.raw(&bytes).await, (403, "forbidden".to_owned()));
    let clinician = edge.token("clinician").await;
    let bytes = format!(
        "POST /v1/patients HTTP/1.1\r\n{HEAD}Authorization: Bearer {clinician}\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    assert_eq!(edge.raw(&bytes).await, (400, "idempotency-key-missing".to_owned()));
    assert_eq!(edge.reached.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_rate_allows() {
    for _ in 0..8 {
        let edge = edge(1).await;
        let token = edge.token("clinician").await;
        let bytes = format!("GET /v1/encounters/x HTTP/1.1\r\n{HEAD}Authorization: Bearer {token}\r\n\r\n");
        let (begun, mut answers) = (Instant::now(), Vec::new());
        for _ in 0..4 {
            answers.push(edge.raw(&bytes).await);
        }
        assert_eq!(answers[0].0, 200, "{answers:?}");
        // In a second they earn one more: who was that slow is asked again.
        if begun.elapsed() < Duration::from_secs(1) {
            assert_eq!(answers[3], (429, "rate-limited".to_owned()), "{answers:?}");
            return;
        }
    }
    panic!("four requests never went within a second");
}

#[tokio::test(flavor = "multi_thread")]
async fn to_keep_operators_from_a_fault_of_its_own() {
    let edge = narrow(1000, 1).await;
    edge.stall();
    let long = format!("POST /v1/billing-cycles HTTP/1.1\r\n{HEAD}Content-Length: 0\r\n\r\n");
    let ended = async {
        while edge.hub.chaos().struck(ChaosPoint::Gateway) == 0 {
            tokio::task::yield_now().await;
        }
        let read = format!("GET /v1/encounters/x HTTP/1.1\r\n{HEAD}\r\n");
        assert_eq!(edge.raw(&read).await, (503, "overloaded".to_owned()), "the one place is taken");
        let sre = edge.token("sre").await;
        let call = "DELETE /v1/admin/chaos/flags/gateway HTTP/1.1\r\nIdempotency-Key: k\r\n";
        assert_eq!(edge.raw(&format!("{call}{HEAD}Authorization: Bearer {sre}\r\n\r\n")).await.0, 200);
        assert_eq!(edge.reached.load(Ordering::SeqCst), 1, "the one that ends it");
    };
    tokio::select! {
        answer = edge.raw(&long) => panic!("a call that hangs: {answer:?}"),
        () = ended => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn to_hold_a_struck_call_for_longer_than_its_route_may_take() {
    let edge = edge(1000).await;
    edge.stall();
    let read = format!("GET /v1/encounters/x HTTP/1.1\r\n{HEAD}\r\n");
    let answer =
        tokio::time::timeout(Duration::from_secs(60), edge.raw(&read)).await.expect("long before the lease ends");
    assert_eq!(answer, (504, "deadline-exceeded".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn to_let_anybody_keep_its_answers() {
    let edge = edge(1000).await;
    let token = edge.token("clinician").await;
    for (bytes, status) in [
        (format!("GET /v1/encounters/x HTTP/1.1\r\n{HEAD}Authorization: Bearer {token}\r\n\r\n"), "200"),
        (format!("GET /v1/encounters/x HTTP/1.1\r\n{HEAD}\r\n"), "401"),
        (format!("GET /v1//encounters HTTP/1.1\r\n{HEAD}\r\n"), "400"),
    ] {
        let mut stream = edge.sent(&bytes).await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(answer.contains("cache-control: no-store\r\n"), "{answer}");
        assert!(answer.contains("x-content-type-options: nosniff\r\n"), "{answer}");
    }
}

fn left_ms(headers: &HeaderMap) -> u64 {
    headers["x-pim-deadline-ms"].to_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn to_give_an_upstream_time_that_is_over() {
    const LATE: Duration = Duration::from_millis(300);
    let edge = edge(1000).await;
    let token = edge.token("clinician").await;
    let head = format!("POST /v1/patients HTTP/1.1\r\n{HEAD}Authorization: bearer {token}\r\nIdempotency-Key: k\r\n");
    // Asked for the body, the request's time is running.
    let mut stream = edge.half_sent(&head).await;
    tokio::time::sleep(LATE).await;
    stream.write_all(b"{}").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert!(left_ms(&*edge.headers.lock().await) <= 4700, "what the body took is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn to_speak_for_anybody_but_itself() {
    let edge = edge(1000).await;
    let token = edge.token("clinician").await;
    let forged =
        "x-pim-request-id: 00000000-0000-0000-0000-000000000001\r\nx-pim-deadline-ms: 999999\r\ntxn-token: forged\r\n";
    let bytes = format!("GET /v1/patients?name=a HTTP/1.1\r\n{HEAD}{forged}Authorization: Bearer {token}\r\n\r\n");
    assert_eq!(edge.raw(&bytes).await.0, 200);
    let headers = edge.headers.lock().await.clone();
    assert!(!headers.contains_key("authorization"), "the caller's own token goes no further");
    assert_ne!(headers["txn-token"], "forged");
    assert_ne!(headers["x-pim-request-id"], "00000000-0000-0000-0000-000000000001");
    assert!((1..=5000).contains(&left_ms(&headers)), "{headers:?}");
    assert!(headers.contains_key("traceparent"));
}
