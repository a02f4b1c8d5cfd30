//! The merged document is made once for all who ask, and nobody can ask for more than their network may.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use futures_util::future::join_all;
use http::StatusCode;
use pim_lab::client::Client;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::edge::{Edge, HEAD, Setup, serve};

/// Every service but the broker has an address of the same program.
const SERVICES: u64 = 4;
const DOCUMENT: &str = "/openapi.json";

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\n{HEAD}\r\n")
}

async fn shown(edge: &Edge) -> Value {
    Client::new().get_json(&format!("{}{DOCUMENT}", edge.gateway), Duration::from_secs(10)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_ask() {
    let edge = Setup::default().start().await;
    let documents = join_all((0..20).map(|_| shown(&edge))).await;
    assert!(documents.iter().all(|document| document["x-pim-missing"] == json!([])), "{documents:?}");
    assert!(documents[0]["paths"]["/v1/dev/token"].is_object(), "the broker's");
    assert_eq!(edge.reached.load(Ordering::SeqCst), SERVICES, "each is asked once");
}

#[tokio::test(flavor = "multi_thread")]
async fn and_nobody_asks_more_than_their_network_may() {
    let edge = Setup { address_calls_per_second: 1, ..Setup::default() }.start().await;
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(edge.raw(&get(DOCUMENT)).await);
    }
    assert_eq!(answers[0].0, 200);
    let limited = (429, "rate-limited".to_owned());
    assert!(answers.iter().filter(|answer| **answer == limited).count() >= 10, "{answers:?}");
    assert!(edge.reached.load(Ordering::SeqCst) <= SERVICES);
    // Nothing else is free of it; a turn may have come back meanwhile.
    let unknown = format!("DELETE /v1/patients HTTP/1.1\r\n{HEAD}\r\n");
    for asked in [get("/metrics"), get("/v1/nothing"), unknown] {
        let again = [edge.raw(&asked).await, edge.raw(&asked).await, edge.raw(&asked).await];
        assert!(again.contains(&limited), "{asked}: {again:?}");
    }
    assert_eq!(edge.raw(&get("/healthz/live")).await.0, 200, "whether it lives is told to everybody");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_hangs_up_has_it_made_once_too() {
    let (reached, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
    let (counting, waits) = (Arc::clone(&reached), Arc::clone(&gate));
    let upstream = Router::new().fallback(move || async move {
        counting.fetch_add(1, Ordering::SeqCst);
        let _goes_on = waits.acquire().await;
        "{}"
    });
    let edge = Setup { upstream: Some(serve(upstream).await), ..Setup::default() }.start().await;
    let hung_up = edge.sent(&get(DOCUMENT)).await;
    while reached.load(Ordering::SeqCst) < SERVICES {
        tokio::task::yield_now().await;
    }
    drop(hung_up);
    // Long enough for the gateway to see that, and for less than it waits for a service.
    sleep(Duration::from_millis(300)).await;
    let waiting = shown(&edge);
    let opened = async {
        sleep(Duration::from_millis(300)).await;
        gate.add_permits(1);
    };
    let (document, ()) = tokio::join!(waiting, opened);
    assert_eq!(document["x-pim-missing"], json!([]));
    assert_eq!(reached.load(Ordering::SeqCst), SERVICES);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_lacks_comes_soon_after() {
    let is_up = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&is_up);
    let upstream = Router::new().fallback(move || async move {
        if asked.load(Ordering::SeqCst) { Ok("{}") } else { Err(StatusCode::SERVICE_UNAVAILABLE) }
    });
    let edge = Setup { upstream: Some(serve(upstream).await), ..Setup::default() }.start().await;
    let lacking = shown(&edge).await;
    assert_eq!(lacking["x-pim-missing"].as_array().map(Vec::len), Some(4), "{lacking}");
    is_up.store(true, Ordering::SeqCst);
    let since = Instant::now();
    while shown(&edge).await["x-pim-missing"] != json!([]) {
        assert!(since.elapsed() < Duration::from_secs(20), "it is kept like a whole one");
        sleep(Duration::from_millis(100)).await;
    }
}
