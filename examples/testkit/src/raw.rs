//! One request as bytes over a real socket, and its answer: for what no well-behaved client would send.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(20);

/// A whole answer.
#[derive(Clone, Debug)]
pub struct RawAnswer {
    /// The status code.
    pub status: u16,
    /// Names in lower case, with their values.
    pub headers: Vec<(String, String)>,
    /// The body as JSON; null when it is none.
    pub body: Value,
}

impl RawAnswer {
    /// The first value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The problem's type without its prefix; empty when it is none.
    #[must_use]
    pub fn problem(&self) -> &str {
        self.body["type"].as_str().unwrap_or_default().trim_start_matches("urn:pim:problem:")
    }
}

/// Sends bytes that ask for the connection to be closed, and reads until it is.
///
/// # Errors
/// When no whole answer comes in time.
pub async fn exchange(base_url: &str, bytes: &[u8]) -> Result<RawAnswer> {
    let answer = tokio::time::timeout(PATIENCE, read(base_url, bytes)).await.context("no answer in time")??;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no end of its head")?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).context("no status line")?;
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    let answer = RawAnswer { status, headers, body: serde_json::from_str(body).unwrap_or(Value::Null) };
    let length = answer.header("content-length").and_then(|length| length.parse().ok());
    ensure!(length.is_none_or(|length: usize| length == body.len()), "the body broke off");
    Ok(answer)
}

async fn read(base_url: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(base_url.trim_start_matches("http://")).await.context("no connection")?;
    // Who refuses a body may close before all of it was sent.
    let _cut_off = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _cut_off = stream.read_to_end(&mut answer).await;
    Ok(answer)
}
