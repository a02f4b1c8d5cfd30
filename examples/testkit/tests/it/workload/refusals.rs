//! The harness puts up with what is for later, and with nothing else: a gateway that only refuses shows it.

use std::time::Duration;

use http::StatusCode;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{PATIENCE, Workload};

/// Signs everybody in and answers every write with this status; where it is.
async fn refuses(status: StatusCode) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let place = format!("http://{}", listener.local_addr().expect("an address"));
    let mut gateway = JoinSet::new();
    gateway.spawn(async move {
        let mut answers = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            answers.spawn(answer(stream, status));
        }
    });
    (place, gateway)
}

/// One request of a connection, which it closes.
async fn answer(stream: TcpStream, status: StatusCode) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let (mut asked, mut length) = (String::new(), 0);
    stream.read_line(&mut asked).await.ok()?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        match line.trim().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", told)) => length = told.parse().ok()?,
            Some(_) => {}
            None => break,
        }
    }
    stream.read_exact(&mut vec![0; length]).await.ok()?;
    let (status, body) = if asked.contains("/v1/dev/token") {
        (StatusCode::OK, json!({"access_token": "one"}))
    } else {
        (status, json!({"type": "urn:pim:problem:of-a-test"}))
    };
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_for_good_is_the_failure_of_whoever_joins_the_writers() {
    let final_ones = [
        StatusCode::INTERNAL_SERVER_ERROR,
        StatusCode::NOT_FOUND,
        StatusCode::CONFLICT,
        StatusCode::FORBIDDEN,
        StatusCode::UNPROCESSABLE_ENTITY,
    ];
    for status in final_ones {
        let (place, _gateway) = refuses(status).await;
        let writers = Workload::default().begin(&place).await;
        let ended = timeout(PATIENCE, tokio::spawn(writers.end())).await.expect("is not put up with");
        let told = ended.expect_err("is not put up with").to_string();
        let named = told.contains(status.as_str()) && told.contains("urn:pim:problem:of-a-test");
        assert!(named, "{status}: {told}");
    }
}

/// Guard: whoever waits for writers hears at once what one of them did not put up with.
#[tokio::test(flavor = "multi_thread")]
async fn one_for_good_is_the_failure_of_whoever_waits_for_a_write() {
    let (place, _gateway) = refuses(StatusCode::CONFLICT).await;
    let workload = Workload::default();
    let _writers = workload.begin(&place).await;
    let waits = workload.clone();
    let told = tokio::spawn(async move { waits.acknowledgement().await }).await.expect_err("is not put up with");
    assert!(told.to_string().contains("urn:pim:problem:of-a-test"), "{told}");
    #[cfg(feature = "postgres")]
    {
        let told = tokio::spawn(async move { workload.departure().await }).await.expect_err("is not put up with");
        assert!(told.to_string().contains("urn:pim:problem:of-a-test"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_for_later_is_a_write_without_an_answer() {
    let for_later = [
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::GATEWAY_TIMEOUT,
        StatusCode::BAD_GATEWAY,
    ];
    for status in for_later {
        let (place, gateway) = refuses(status).await;
        let workload = Workload::default();
        let writers = workload.begin(&place).await;
        let asked_again = async {
            while workload.failed().await < 20 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, asked_again).await.expect("they ask again");
        drop(gateway);
        writers.end().await;
        assert_eq!(workload.records().await, 0);
    }
}
