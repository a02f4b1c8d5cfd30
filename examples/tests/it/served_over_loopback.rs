//! The same service behind a real socket: it answers, and it drains.

use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;
use pim_lab::rig::{Drain, ServeSettings, bind};
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
    let ready = exchange(address, "GET /healthz/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    drain.begin();
    tokio::time::timeout(Duration::from_secs(5), serving).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
    // What was acknowledged is there.
    assert_eq!(world.registered("k").await.status, StatusCode::CREATED);
}
