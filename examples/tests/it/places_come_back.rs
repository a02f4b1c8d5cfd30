//! A gateway's places come back whatever callers and upstreams do, and those of operators and sign-ins are theirs.

use std::convert::Infallible;
use std::io::ErrorKind::WouldBlock;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use pim_lab::gateway::{RESERVED, SIGN_INS};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::edge::{Edge, HEAD, Setup, serve};

/// The time of a read and that of whoever reads its answer, and some more.
const LONG_AFTER: Duration = Duration::from_secs(20);

async fn with_one_place(upstream: Option<String>) -> Edge {
    Setup { in_flight_max: 1, upstream, ..Setup::default() }.start().await
}

fn call(token: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\n{HEAD}Authorization: Bearer {token}\r\n\r\n")
}

/// A read that has the only place, and of whose answer no more than this is read.
async fn has_the_place(edge: &Edge, token: &str, path: &str) -> TcpStream {
    let mut stream = edge.sent(&call(token, path)).await;
    let mut beginning = [0; 12];
    stream.read_exact(&mut beginning).await.unwrap();
    assert_eq!(&beginning, b"HTTP/1.1 200");
    let another = edge.raw(&call(token, "/v1/encounters/x")).await;
    assert_eq!(another, (503, "overloaded".to_owned()), "the one place is taken");
    stream
}

async fn place_comes_back(edge: &Edge, token: &str) {
    let since = Instant::now();
    while edge.raw(&call(token, "/v1/encounters/x")).await.0 != 200 {
        assert!(since.elapsed() < LONG_AFTER, "the place is still taken");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_answer_that_nobody_reads() {
    let huge = || async {
        let chunk = Bytes::from_static(&[b' '; 64 * 1024]);
        Body::from_stream(stream::repeat_with(move || Ok::<_, Infallible>(chunk.clone())).take(1024))
    };
    let upstream = Router::new().route("/v1/encounters/huge", get(huge)).fallback(async || "{}");
    let edge = with_one_place(Some(serve(upstream).await)).await;
    let token = edge.token("clinician").await;
    let _unread = has_the_place(&edge, &token, "/v1/encounters/huge").await;
    place_comes_back(&edge, &token).await;
}

/// Answers one path with the beginning of a body, and everything else whole.
async fn stops_in_the_middle() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = |mut stream: TcpStream| async move {
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(stream.read_u8().await?);
        }
        let stops = asked.starts_with(b"GET /v1/encounters/stops ");
        let length = if stops { 9 } else { 1 };
        let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{{");
        stream.write_all(head.as_bytes()).await?;
        if stops {
            std::future::pending::<()>().await;
        }
        std::io::Result::Ok(())
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_answer_that_its_upstream_does_not_end() {
    let edge = with_one_place(Some(stops_in_the_middle().await)).await;
    let token = edge.token("clinician").await;
    let mut stopped = has_the_place(&edge, &token, "/v1/encounters/stops").await;
    place_comes_back(&edge, &token).await;
    let mut rest = Vec::new();
    let ended = timeout(LONG_AFTER, stopped.read_to_end(&mut rest)).await;
    let _cut_off = ended.expect("whoever waits for the rest is told that it does not come");
    assert!(rest.ends_with(b"\r\n\r\n{"), "{}", String::from_utf8_lossy(&rest));
}

fn half_a_sign_in() -> String {
    format!("POST /v1/dev/token HTTP/1.1\r\n{HEAD}Content-Type: application/json\r\n")
}

/// Whether nothing has been said of it yet. A body is waited for no longer than a read or a write may take, which a busy machine
/// may need for all that a test does meanwhile: what was found then says nothing, and is looked for again.
fn is_waited_for(half_sent: &TcpStream) -> bool {
    half_sent.try_read(&mut [0]).is_err_and(|error| error.kind() == WouldBlock)
}

const TRIES: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn and_sign_ins_that_are_not_sent_keep_nobody_out() {
    let edge = with_one_place(None).await;
    let (sre, clinician) = (edge.token("sre").await, edge.token("clinician").await);
    let write =
        format!("POST /v1/patients HTTP/1.1\r\n{HEAD}Authorization: Bearer {clinician}\r\nIdempotency-Key: k\r\n");
    let sign_in = half_a_sign_in();
    for _ in 0..TRIES {
        let mut half_sent = join_all((0..=RESERVED).map(|_| edge.half_sent(&sign_in))).await;
        half_sent.push(edge.half_sent(&write).await);
        let operator = edge.raw(&call(&sre, "/v1/admin/chaos/flags")).await.0;
        edge.token("sre").await;
        let others = edge.raw(&call(&clinician, "/v1/admin/facilities")).await;
        if half_sent.iter().all(is_waited_for) {
            assert_eq!(operator, 200, "whoever ends faults gets in");
            assert_eq!(others, (503, "overloaded".to_owned()), "nobody else has the places of operators");
            return;
        }
        drop(half_sent);
        place_comes_back(&edge, &clinician).await;
    }
    panic!("they were never waited for long enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn and_a_sign_in_waits_for_none_that_is_not_sent() {
    let edge = with_one_place(None).await;
    let sign_in = half_a_sign_in();
    for _ in 0..TRIES {
        let half_sent = join_all((0..SIGN_INS).map(|_| edge.half_sent(&sign_in))).await;
        edge.token("sre").await;
        if half_sent.iter().all(is_waited_for) {
            return;
        }
    }
    panic!("it waits for them");
}
