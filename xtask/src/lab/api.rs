//! The admin API, as the running lab serves it through its gateway.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::Response;

use super::Role;
use super::journal::State;
use crate::exit::Failure;

const PATIENCE: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// The gateway that was named, instead of the one of `lab up`.
static NAMED: OnceLock<String> = OnceLock::new();

/// From now on the lab is the one behind this gateway.
pub(super) fn reach(gateway: &str) {
    let _once = NAMED.set(gateway.trim_end_matches('/').to_owned());
}

/// A client with a role's token.
pub(super) struct Api {
    agent: Agent,
    gateway: String,
    token: String,
}

impl Api {
    /// Reaches the running lab in a role.
    pub(super) fn of(role: Role) -> Result<Self> {
        let gateway = NAMED.get().cloned().map_or_else(|| State::load().map(|state| state.gateway), Ok)?;
        let config = Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build();
        let agent = Agent::from(config);
        let token = token_for(&agent, &gateway, role)?;
        Ok(Self { agent, gateway, token })
    }

    /// The token.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// GET, as JSON.
    pub(super) fn get(&self, path: &str) -> Result<Value> {
        let request = self.agent.get(self.url(path)).header("authorization", format!("Bearer {}", self.token));
        answer(request.call().context("the gateway does not answer")?)
    }

    /// GET, as text of the wanted media type.
    pub(super) fn get_text(&self, path: &str, media_type: &str) -> Result<String> {
        let request = self.agent.get(self.url(path)).header("authorization", format!("Bearer {}", self.token));
        let mut response = request.header("accept", media_type).call().context("the gateway does not answer")?;
        let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string()?;
        if response.status().is_success() { Ok(text) } else { Err(refused(response.status().as_u16(), &text)) }
    }

    /// POST with an idempotency key of its own.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.agent.post(self.url(path)).header("authorization", format!("Bearer {}", self.token));
        let request = request.header("idempotency-key", fresh_key());
        answer(request.send_json(body).context("the gateway does not answer")?)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.gateway)
    }
}

fn token_for(agent: &Agent, gateway: &str, role: Role) -> Result<String> {
    let request = agent.post(format!("{gateway}/v1/dev/token"));
    let granted = answer(request.send_json(json!({"role": role.name()})).context("the gateway does not answer")?)?;
    let token = granted["access_token"].as_str().context("the broker gave no access_token")?;
    Ok(token.to_owned())
}

fn answer(mut response: Response<ureq::Body>) -> Result<Value> {
    let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string()?;
    if !response.status().is_success() {
        return Err(refused(response.status().as_u16(), &text));
    }
    serde_json::from_str(&text).context("the answer is no JSON")
}

fn refused(status: u16, text: &str) -> anyhow::Error {
    let problem: Value = serde_json::from_str(text).unwrap_or_default();
    let title = problem["title"].as_str().unwrap_or("no problem document");
    let detail = problem["detail"].as_str().unwrap_or_default();
    let failure = match status {
        401 | 403 => Failure::Refused,
        400 | 404 | 422 => Failure::Usage,
        _ => Failure::Threshold,
    };
    let kind = problem["type"].as_str().unwrap_or_default();
    failure.because(format!("the lab answered {status}: {title}. {detail} ({kind})"))
}

fn fresh_key() -> String {
    #[expect(clippy::disallowed_methods, reason = "only to be different from the last call's")]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("xtask-{}-{}", std::process::id(), now.as_nanos())
}
