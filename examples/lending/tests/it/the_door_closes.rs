//! Nobody keeps the library open: neither who says half of a request, nor who is never answered.

use std::future::pending;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::routing::{Router, get};
use pim_lending::door::Door;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Longer than any bound that is tested here, shorter than the others.
const SOON: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(60);

async fn open(door: Door) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (close, closing) = oneshot::channel::<()>();
    let routes = Router::new().route("/", get(|| async { "open" })).route("/never", get(pending::<()>));
    let routes = routes.route("/much", get(|| async { vec![b' '; 64 << 20] }));
    let serving = door.serve(listener, routes, async move { drop(closing.await) });
    (address, close, tokio::spawn(serving))
}

async fn saying(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// All that comes until the connection ends, which it does soon.
async fn answer(mut stream: TcpStream) -> String {
    let mut text = String::new();
    timeout(SOON, stream.read_to_string(&mut text)).await.expect("ends").unwrap();
    text
}

#[tokio::test]
async fn upon_half_a_head_and_upon_a_request_that_is_never_answered() {
    let door = Door { head_within: LONG, drain_within: Duration::from_millis(300), ..Door::default() };
    for text in ["GET /m", "GET /never HTTP/1.1\r\nhost: library\r\n\r\n"] {
        let (address, close, serving) = open(door).await;
        let _waiting = saying(address, text).await;
        sleep(Duration::from_millis(100)).await;
        close.send(()).unwrap();
        timeout(SOON, serving).await.unwrap_or_else(|_| panic!("open for {text:?}")).unwrap();
    }
}

#[tokio::test]
async fn upon_half_a_head_long_before_anybody_closes_the_library() {
    let door = Door { head_within: Duration::from_millis(200), drain_within: LONG, ..Door::default() };
    let (address, _close, _serving) = open(door).await;
    let begun = Instant::now();
    let _told = answer(saying(address, "GET /m").await).await;
    assert!(begun.elapsed() >= door.head_within);
}

#[tokio::test]
async fn upon_whoever_is_one_too_many_until_another_leaves() {
    let door = Door { connections_max: 1, ..Door::default() };
    let (address, _close, _serving) = open(door).await;
    let request = "GET / HTTP/1.1\r\nhost: library\r\nconnection: close\r\n\r\n";
    let first = saying(address, "GET /").await;
    sleep(Duration::from_millis(100)).await;
    let mut second = saying(address, request).await;
    let mut byte = [0];
    assert!(timeout(Duration::from_millis(300), second.read(&mut byte)).await.is_err(), "waits");
    drop(first);
    assert!(answer(second).await.ends_with("open"));
}

#[tokio::test]
async fn upon_whoever_does_not_read_an_answer() {
    let door = Door { connections_max: 1, connection_within: Duration::from_millis(500), ..Door::default() };
    let (address, _close, _serving) = open(door).await;
    let mut first = saying(address, "GET /much HTTP/1.1\r\nhost: library\r\n\r\n").await;
    first.read_exact(&mut [0; 12]).await.unwrap();
    let second = saying(address, "GET / HTTP/1.1\r\nhost: library\r\n\r\n").await;
    assert!(answer(second).await.ends_with("open"));
}
