//! The same service behind a real socket: it answers, and it drains.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use pim_lab::rig::{Drain, ServeSettings, bind};
use pim_lab::signals::Hub;
use pim_telemetry::exposition::Format;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::world::World;

async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn register_read_and_drain() {
    let world = World::new().await;
    let bound = bind(ServeSettings::at(SocketAddr::from(([127, 0, 0, 1], 0)))).await.unwrap();
    let (address, drain) = (bound.address(), Drain::new());
    let serving = tokio::spawn(bound.serve(world.router.clone(), drain.clone()));
    let (token, body) = (world.clinician(), world.registration().to_string());
    let registered = exchange(
        address,
        &format!(
            "POST /v1/patients HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntxn-token: {token}\r\nidempotency-key: k\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ),
    )
    .await;
    assert!(registered.starts_with("HTTP/1.1 201"), "{registered}");
    assert!(registered.contains("etag: \"1\"") && registered.contains("x-pim-request-id:"), "{registered}");
    assert!(registered.contains("x-pim-token:"), "{registered}");
    assert!(registered.contains("cache-control: no-store"), "{registered}");
    let ready = exchange(address, "GET /healthz/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    drain.begin();
    tokio::time::timeout(Duration::from_secs(5), serving).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
    // What was acknowledged is there.
    assert_eq!(world.registered("k").await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn what_is_no_http_is_counted_by_reason_and_reaches_nobody() {
    let hub = Hub::new(None).unwrap();
    let bound = bind(ServeSettings::at(SocketAddr::from(([127, 0, 0, 1], 0)))).await.unwrap().telling(hub.heads());
    let (address, drain) = (bound.address(), Drain::new());
    let reached: Router = Router::new().fallback(async || -> StatusCode { unreachable!("nobody can read this") });
    let serving = tokio::spawn(bound.serve(reached, drain.clone()));
    let huge = format!("GET / HTTP/1.1\r\nhost: x\r\nx-much: {}\r\n\r\n", "a".repeat(64 * 1024));
    for (head, status, reason) in [
        ("GET / HTTP/1.1\r\nhost: x\r\na header of Ada's\r\n\r\n", "400", "malformed"),
        ("GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1, 2\r\n\r\n", "400", "malformed"),
        (huge.as_str(), "431", "too_large"),
    ] {
        let series = format!("pim_edge_refused_heads_total{{reason=\"{reason}\"}} ");
        let counted = || {
            let shown = hub.exposition(Format::Plain);
            let line = shown.lines().find_map(|line| line.strip_prefix(&series)).map(str::to_owned);
            line.and_then(|count| count.parse::<u64>().ok()).expect("the series is there from the start")
        };
        let before = counted();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut answer = Vec::new();
        // Who is hung up on in the middle of a large head may not see why.
        let hung_up = stream.write_all(head.as_bytes()).await.is_err() | stream.read_to_end(&mut answer).await.is_err();
        let answer = String::from_utf8(answer).unwrap();
        assert!(hung_up || answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(!answer.contains("Ada"), "{answer}");
        let since = std::time::Instant::now();
        while counted() == before {
            assert!(since.elapsed() < Duration::from_secs(10), "{reason} is not counted");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(counted(), before + 1);
    }
    drain.begin();
    tokio::time::timeout(Duration::from_secs(5), serving).await.unwrap().unwrap();
}

/// Where an answer without end is given, and how many of it are.
struct Endless {
    address: SocketAddr,
    held: Arc<()>,
    /// The router has some of its own.
    before: usize,
}

impl Endless {
    async fn with(write_timeout: Duration) -> Self {
        let (held, chunk) = (Arc::new(()), Bytes::from_static(&[b' '; 64 * 1024]));
        let answers = Arc::clone(&held);
        let endless = move || {
            let (held, chunk) = (Arc::clone(&answers), chunk.clone());
            let chunks = stream::repeat_with(move || {
                let _ends_with_the_answer = &held;
                Ok::<_, Infallible>(chunk.clone())
            });
            async { Body::from_stream(chunks) }
        };
        let settings = ServeSettings::at(SocketAddr::from(([127, 0, 0, 1], 0)));
        let bound = bind(ServeSettings { write_timeout, ..settings }).await.unwrap();
        let address = bound.address();
        let router = Router::new().fallback(endless);
        let before = Arc::strong_count(&held);
        tokio::spawn(bound.serve(router, Drain::new()));
        Self { address, held, before }
    }

    /// Somebody who has been given its beginning.
    async fn begun(&self) -> TcpStream {
        let mut reader = TcpStream::connect(self.address).await.unwrap();
        reader.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        reader.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        assert!(self.is_given());
        reader
    }

    fn is_given(&self) -> bool {
        Arc::strong_count(&self.held) > self.before
    }
}

#[tokio::test]
async fn who_reads_nothing_of_an_answer_is_hung_up_on() {
    let answer = Endless::with(Duration::from_millis(500)).await;
    let _unread = answer.begun().await;
    let since = std::time::Instant::now();
    while answer.is_given() {
        assert!(since.elapsed() < Duration::from_secs(20), "the answer is still held");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Guard: what is taken must show soon, not once a third of all that a socket has room for has gone.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn and_who_reads_it_steadily_is_not() {
    let answer = Endless::with(Duration::from_secs(2)).await;
    let mut reader = answer.begun().await;
    // As much in a second as a thirteenth of what a socket has room for.
    let mut step = vec![0; 20_000];
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        reader.read_exact(&mut step).await.expect("it goes on");
    }
    assert!(answer.is_given(), "cut off");
}
