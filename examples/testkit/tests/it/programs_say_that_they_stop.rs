//! A program that is told to stop says so first, and answers whoever has not heard of it, before it closes.

use std::time::{Duration, Instant};

use http::header::HeaderMap;
use http::{Method, StatusCode};
use pim_lab::client::Client;
use pim_testkit::folder::Folder;
use pim_testkit::program::Program;

const PATIENCE: Duration = Duration::from_secs(5);
/// Enough for a few calls on a busy machine. Nobody waits for its end here.
const GRACE: &str = "drain_grace_ms=15000";

/// What is answered on a connection of its own; none when nobody listens any more, or answers in time.
async fn told(url: &str, path: &str) -> Option<StatusCode> {
    let answer = Client::new().exchange(Method::GET, &format!("{url}{path}"), HeaderMap::new(), None, PATIENCE).await;
    answer.ok().map(|(status, ..)| status)
}

/// Tells a program to stop and looks at what it says to newcomers; `path` is one that it answers with `status`.
async fn drains(program: &str, more: &[&str], path: &str, status: StatusCode) {
    let folder = Folder::new("drain").unwrap();
    let data_dir = folder.path().display().to_string();
    let common = ["--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--set", GRACE];
    let running = Program::start(program, &[&common, more].concat()).await.unwrap();
    let url = running.told("url").to_owned();
    assert_eq!(told(&url, "/healthz/ready").await, Some(StatusCode::OK), "{program}");
    running.terminate().await.unwrap();
    let since = Instant::now();
    while told(&url, "/healthz/ready").await == Some(StatusCode::OK) {
        assert!(since.elapsed() < PATIENCE, "{program} does not hear");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(told(&url, "/healthz/ready").await, Some(StatusCode::SERVICE_UNAVAILABLE), "{program}");
    assert_eq!(told(&url, path).await, Some(status), "{program}");
    running.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway() {
    drains("gateway", &["--set", "internal_listen=127.0.0.1:0"], "/v1/patients", StatusCode::UNAUTHORIZED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_broker() {
    drains("session-broker", &[], "/jwks.json", StatusCode::OK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_service() {
    drains("patient-service", &[], "/v1/patients", StatusCode::UNAUTHORIZED).await;
}
