//! Session contexts as the gateway gets them, so that services can be asked without it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full};
use pim_lab::client::Client;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);
/// What the gateway asks of the broker (RFC 8693), but for the token.
const EXCHANGE: &str = "grant_type=urn:ietf:params:oauth:grant-type:token-exchange\
                        &subject_token_type=urn:ietf:params:oauth:token-type:access_token";

/// The session context for an access token, asked for with the gateway's secret.
///
/// # Errors
/// When the broker does not answer, or refuses.
pub async fn session_of(broker: &str, secret: &str, access_token: &str) -> Result<HeaderValue> {
    let basic = format!("Basic {}", STANDARD.encode(format!("gateway:{secret}")));
    let request = http::Request::post(format!("{broker}/oauth/token"))
        .header(AUTHORIZATION, basic)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Full::new(Bytes::from(format!("{EXCHANGE}&subject_token={access_token}"))))?;
    let answer = Client::new().send(request, PATIENCE).await?;
    let told: Value = serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?;
    let token = told["access_token"].as_str().context("the broker gives no session context")?;
    Ok(HeaderValue::from_str(token)?)
}
