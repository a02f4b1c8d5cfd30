//! Signing in by the browser: a code for whoever asked, sent to a program on the caller's own machine.

use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Response};
use http::header::LOCATION;
use http::{Extensions, HeaderValue, StatusCode};
use pim_core::problem::{self, Problem};
use pim_core::rate::{Limit, LimitError, RateTable};
use serde::Deserialize;

use super::Broker;
use crate::broker::exchange::check_persona;
use crate::broker::session::Session;
use crate::broker::url;
use crate::rig::{Failure, Peer};

const CLIENT_ID: &str = "pim-lab";
/// Sign-ins that one network (/24 or /56) may begin at once, and a second from then on. While a code waits, that is less than a quarter of
/// the codes that there is room for: nobody gets rid of other people's codes alone.
const AT_ONCE: u32 = 120;
const PER_SECOND: u32 = 2;
const NETWORKS: usize = 1 << 14;

/// Counts sign-ins by network: anybody may begin one.
#[derive(Debug)]
pub(super) struct SignIns {
    networks: RateTable,
    limit: Limit,
}

impl SignIns {
    pub(super) fn new() -> Result<Self, LimitError> {
        let limit = Limit::new(PER_SECOND, Duration::from_secs(1), AT_ONCE)?;
        Ok(Self { networks: RateTable::new(NETWORKS), limit })
    }

    fn check(&self, peer: Option<&Peer>) -> Result<(), Problem> {
        let Some(peer) = peer else { return Ok(()) };
        self.networks.check(&peer.network(), self.limit, 1).passed(self.limit)
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Authorization {
    response_type: String,
    client_id: String,
    redirect_uri: String,
    code_challenge: String,
    code_challenge_method: String,
    #[serde(default)]
    state: String,
    /// Who signs in: a subject or a role of the development identity provider.
    login_hint: String,
}

pub(super) async fn authorize(
    State(broker): State<Broker>,
    extensions: Extensions,
    query: Result<Query<Authorization>, QueryRejection>,
) -> Result<Response, Failure> {
    let bad = |why: &'static str| Failure::from(Problem::of(problem::INVALID_QUERY).detail(why));
    let Query(asked) = query.map_err(|_| bad("a parameter is missing"))?;
    if asked.client_id != CLIENT_ID || !url::is_on_loopback(&asked.redirect_uri) {
        return Err(bad("unknown client, or a redirect_uri that is not on loopback"));
    }
    if asked.response_type != "code" || asked.code_challenge_method != "S256" || asked.code_challenge.len() != 43 {
        return Err(bad("only the code flow with PKCE S256 is served"));
    }
    // Last of all: who begins no sign-in must not use up those of others who come through the same network.
    broker.0.sign_ins.check(extensions.get())?;
    let hint = asked.login_hint.as_str();
    let persona = broker.0.personas.of_subject(hint).unwrap_or_else(|| broker.0.personas.of_role(hint));
    check_persona(&persona)?;
    let session = Session::begin(persona, broker.0.issuer.now());
    let issued = broker.0.codes.issue(&asked.code_challenge, CLIENT_ID, &asked.redirect_uri, session).await;
    let code = issued.map_err(|_| Problem::of(problem::INTERNAL))?;
    let state = percent_encoding::utf8_percent_encode(&asked.state, percent_encoding::NON_ALPHANUMERIC);
    let separator = if asked.redirect_uri.contains('?') { '&' } else { '?' };
    let location = format!("{}{separator}code={code}&state={state}", asked.redirect_uri);
    let location = HeaderValue::from_str(&location).map_err(|_| bad("redirect_uri is no URI"))?;
    Ok((StatusCode::FOUND, [(LOCATION, location)]).into_response())
}
