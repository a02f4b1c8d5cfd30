//! The admin API, as the running lab serves it through its gateway.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::Response;

use super::Role;
use super::journal::{self, State};
use crate::exit::Failure;

/// Longer than the gateway has any operation take that is not waited for patiently: it says itself what came of that.
const PATIENCE: Duration = Duration::from_secs(35);
/// For what takes as long as there is data.
const PATIENCE_MAX: Duration = Duration::from_secs(24 * 3600);
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// The gateway that was named, instead of the one of `lab up`.
static NAMED: OnceLock<String> = OnceLock::new();

/// From now on the lab is the one behind this gateway.
pub(super) fn reach(gateway: &str) -> Result<()> {
    if !gateway.starts_with("http://") {
        return Err(Failure::Usage.because(format!("--gateway {gateway}: must be like http://127.0.0.1:8080")));
    }
    let _once = NAMED.set(gateway.trim_end_matches('/').to_owned());
    Ok(())
}

/// The gateway that was named.
pub(super) fn named() -> Option<&'static str> {
    NAMED.get().map(String::as_str)
}

/// Refuses a gateway of another lab than that of this folder: what it says is true of other servers.
pub(super) fn refuse_another() -> Result<()> {
    let is_ours = |named: &str| State::load().is_ok_and(|state| state.gateway.trim_end_matches('/') == named);
    match named() {
        Some(named) if !is_ours(named) => {
            let folder = journal::folder();
            let what = format!("--gateway {named}: not that of a lab that runs in {}", folder.display());
            let sentence = format!("{what}: name its --folder, or no --gateway");
            Err(Failure::Usage.because(sentence))
        }
        _ => Ok(()),
    }
}

/// A text as one segment of a path or one value of a query.
pub(super) fn segment(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte);
    text.bytes().map(|byte| if is_plain(byte) { char::from(byte).into() } else { format!("%{byte:02X}") }).collect()
}

/// A client with a role's token.
pub(super) struct Api {
    agent: Agent,
    patience: Duration,
    gateway: String,
    token: String,
}

impl Api {
    /// Reaches the running lab in a role.
    pub(super) fn of(role: Role) -> Result<Self> {
        let (api, _) = Self::signed_in(&json!({"role": role.name()}))?;
        Ok(api)
    }

    /// Reaches the running lab as whom the development identity provider is asked for, and tells what it said of them.
    pub(super) fn signed_in(asked: &Value) -> Result<(Self, Value)> {
        let gateway = named().map(str::to_owned).map_or_else(|| State::load().map(|state| state.gateway), Ok)?;
        let mut api = Self::at(gateway, PATIENCE);
        let request = api.agent.post(api.url("/v1/dev/token"));
        let granted = api.answer(request.send_json(asked))?;
        let token = granted["access_token"].as_str().context("the broker gave no access_token")?;
        api.token = token.to_owned();
        Ok((api, granted))
    }

    /// The same, for what takes as long as there is data.
    pub(super) fn patient(self) -> Self {
        Self { token: self.token, ..Self::at(self.gateway, PATIENCE_MAX) }
    }

    fn at(gateway: String, patience: Duration) -> Self {
        let config = Agent::config_builder().timeout_global(Some(patience)).http_status_as_error(false).build();
        Self { agent: Agent::from(config), patience, gateway, token: String::new() }
    }

    /// The token.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// GET, as JSON.
    pub(super) fn get(&self, path: &str) -> Result<Value> {
        self.answer(self.agent.get(self.url(path)).header("authorization", self.bearer()).call())
    }

    /// GET, as text of the wanted media type.
    pub(super) fn get_text(&self, path: &str, media_type: &str) -> Result<String> {
        let request = self.agent.get(self.url(path)).header("authorization", self.bearer());
        self.text(request.header("accept", media_type).call())
    }

    /// POST with an idempotency key of its own.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.agent.post(self.url(path)).header("authorization", self.bearer());
        self.answer(request.header("idempotency-key", fresh_key()).send_json(body))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.gateway)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    fn answer(&self, outcome: Outcome) -> Result<Value> {
        serde_json::from_str(&self.text(outcome)?).context("the answer is no JSON: is this the gateway of a lab?")
    }

    fn text(&self, outcome: Outcome) -> Result<String> {
        let mut response = outcome.map_err(|error| self.silent(&error))?;
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        let text = body.map_err(|error| self.silent(&error))?;
        if response.status().is_success() { Ok(text) } else { Err(refused(response.status().as_u16(), &text)) }
    }

    /// No whole answer came.
    fn silent(&self, error: &ureq::Error) -> anyhow::Error {
        let gateway = &self.gateway;
        match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Failure::Usage.because(format!("{gateway} is no address of a gateway: {error}"))
            }
            ureq::Error::Timeout(_) => {
                let after = format!("the gateway at {gateway} gave no answer within {:?}", self.patience);
                Failure::Threshold.because(format!("{after}; what was asked may go on: `cargo xtask lab shard moves`"))
            }
            _ => {
                let fix = "is a lab running there? `cargo xtask lab up` starts one";
                Failure::Precondition.because(format!("the gateway at {gateway} does not answer: {error}; {fix}"))
            }
        }
    }
}

type Outcome = Result<Response<ureq::Body>, ureq::Error>;

pub(super) fn refused(status: u16, text: &str) -> anyhow::Error {
    let problem: Value = serde_json::from_str(text).unwrap_or_default();
    let title = problem["title"].as_str().unwrap_or("no problem document");
    let detail = problem["detail"].as_str().unwrap_or_default();
    let failure = match status {
        400 | 404 | 405 | 413 | 422 => Failure::Usage,
        401 | 403 | 409 | 412 | 429 => Failure::Refused,
        // A part of the lab is not there, or not now.
        502..=504 => Failure::Precondition,
        _ => Failure::Threshold,
    };
    let kind = problem["type"].as_str().unwrap_or_default();
    failure.because_of(kind, format!("the lab answered {status}: {title}. {detail} ({kind})"))
}

fn fresh_key() -> String {
    #[expect(clippy::disallowed_methods, reason = "only to be different from the last call's")]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("xtask-{}-{}", std::process::id(), now.as_nanos())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use super::{Api, Failure, PATIENCE};

    /// Guard: whoever is not answered in time is not told that nobody is there.
    #[test]
    fn a_gateway_that_gives_no_answer_is_told_from_none() {
        // Takes connections, as the system does for it, and reads none.
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let gateway = format!("http://{}", listener.local_addr().expect("its address"));
        let error = Api::at(gateway, Duration::from_millis(200)).get("/v1/admin/shards").expect_err("no answer");
        assert!(Failure::Threshold.is(&error), "{error}");
        let told = error.to_string();
        assert!(told.contains("no answer within 200ms") && told.contains("shard moves"), "{told}");
    }

    /// Guard: whoever asks for what takes as long as there is data waits as long as the gateway does.
    #[test]
    fn whoever_asks_for_a_sweep_is_patient() {
        let table = include_str!("../../../examples/src/routes/table.rs");
        let sweeps = table.lines().filter(|line| line.contains("Class::Sweep"));
        let paths = sweeps.filter_map(|line| line.split('"').nth(3)).filter(|path| !path.contains('{'));
        let paths: Vec<String> = paths.map(|path| format!("\"{path}\"")).collect();
        assert!(paths.contains(&"\"/v1/admin/runs/summary\"".to_owned()), "{paths:?}");
        let sources = [
            include_str!("ask.rs"),
            include_str!("nine.rs"),
            include_str!("backup.rs"),
            include_str!("backup/servers.rs"),
            include_str!("degradation.rs"),
            include_str!("retention.rs"),
        ];
        let asking = sources.iter().flat_map(|source| source.lines());
        let asking = asking.filter(|line| line.contains(".get(") || line.contains(".post("));
        let asking: Vec<&str> = asking.filter(|line| paths.iter().any(|path| line.contains(path))).collect();
        assert!(asking.len() >= 5, "{asking:#?}");
        for line in asking {
            assert!(line.contains(".patient()"), "{line}");
        }
    }

    /// Guard: the gateway, which knows more, is the first to lose its patience.
    #[test]
    fn the_gateway_answers_before_whoever_asks_gives_up() {
        let routes = include_str!("../../../examples/src/routes.rs");
        let (_, rest) = routes.split_once("Self::Operate => Duration::from_secs(").expect("how long it may take");
        let seconds: u64 = rest.split_once(')').expect("a number").0.parse().expect("seconds");
        assert!(PATIENCE >= Duration::from_secs(seconds + 5), "{seconds} s");
    }
}
