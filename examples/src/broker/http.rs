//! The broker's endpoints.

mod authorize;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{FormRejection, JsonRejection};
use axum::extract::{Form, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use http::header::{AUTHORIZATION, HeaderMap};
use pim_core::clock::Clock;
use pim_core::problem::{self, IntoProblem as _, Problem, ProblemType};
use pim_core::rate::LimitError;
use pim_core::token::{KeyRing, TokenVerifier, VerifierSettings};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use self::authorize::{SignIns, authorize};
use super::GATEWAY_AUDIENCE;
use super::code::Codes;
use super::exchange::{ACCESS_LIFETIME, Issuer};
use super::identity::{Persona, PersonaDirectory};
use super::keychain::{Keychain, KeychainError};
use super::keyfile::{self, KeyFileError};
use super::once::Shown;
use super::revocation::{Ended, RevocationError};
use super::session::{Session, Sessions};
use super::url;
use crate::rig::{Drain, Endpoints, Failure, Operation, Parts, Service, document, sessions};
use crate::routes::Upstream;
use crate::signals::Hub;

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const INVALID_GRANT: ProblemType = ProblemType::new("invalid-grant", 400, "The grant is not good");
const UNSUPPORTED_GRANT: ProblemType =
    ProblemType::new("unsupported-grant-type", 400, "Grants of this type are not taken here");

/// Where the broker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// A lab with synthetic people: the development identity provider runs.
    Lab,
    /// Anything else: it does not.
    Production,
}

/// Time between two signing keys unless something else is set.
pub const KEY_ROTATION: Duration = Duration::from_secs(24 * 3600);

/// How the broker is set up.
#[derive(Clone, Debug)]
pub struct BrokerSettings {
    /// Its base URL as others call it, which is its issuer name: a gateway that knows another takes none of its tokens.
    pub url: String,
    /// Where its keys are kept, and what has been revoked.
    pub data_dir: PathBuf,
    /// Whether personas may sign in without proof.
    pub profile: Profile,
    /// Time between two signing keys: a minute to 90 days.
    pub key_rotation: Duration,
    /// Where time comes from.
    pub clock: Clock,
}

/// A broker that cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// Its signing keys.
    #[error(transparent)]
    Keys(#[from] KeychainError),
    /// The secret that it shares with the gateway.
    #[error(transparent)]
    Secret(#[from] KeyFileError),
    /// What has been revoked.
    #[error(transparent)]
    Revoked(#[from] RevocationError),
    /// Its URL is none that others could put paths behind.
    #[error("public_url must be {}", super::url::RULE)]
    Url,
    /// Sign-ins are not limited.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The one identity provider that is built in may not run here.
    #[error("the development identity provider runs in the lab profile alone: set `profile: lab`")]
    Profile,
}

/// The session broker.
#[derive(Clone, Debug)]
pub struct Broker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    issuer: Issuer,
    verifier: TokenVerifier,
    sessions: Sessions,
    codes: Codes,
    sign_ins: SignIns,
    personas: PersonaDirectory,
    gateway_secret: String,
}

impl Broker {
    /// Reads or makes its keys.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub fn new(settings: BrokerSettings) -> Result<Self, BrokerError> {
        if settings.profile != Profile::Lab {
            return Err(BrokerError::Profile);
        }
        if !url::is_base_url(&settings.url) {
            return Err(BrokerError::Url);
        }
        let keys = Keychain::open(settings.data_dir.clone(), settings.key_rotation, settings.clock.clone())?;
        let ring = KeyRing::new(keys.clone(), settings.clock.clone());
        let now = settings.clock.now().as_micros() / 1_000_000;
        // After the keys, which make the folder.
        let sessions = Sessions::open(&settings.data_dir, now)?;
        let accepted = VerifierSettings::access_token(settings.url.as_str(), GATEWAY_AUDIENCE);
        let inner = Inner {
            verifier: TokenVerifier::new(accepted, ring, settings.clock.clone()),
            issuer: Issuer { url: settings.url, keys, clock: settings.clock },
            sessions,
            codes: Codes::new(),
            sign_ins: SignIns::new()?,
            personas: PersonaDirectory::of(&settings.data_dir),
            gateway_secret: keyfile::gateway_secret(&settings.data_dir)?,
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Its HTTP side.
    pub fn into_router(self, drain: Drain, hub: Hub) -> Router {
        let parts = Parts { openapi: openapi(), name: "session-broker", cluster: None, drain, hub };
        let sessions = sessions(self.0.issuer.keys.clone(), self.0.issuer.clock.clone());
        let routes = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/jwks.json", get(keys))
            .route("/authorize", get(authorize))
            .route("/oauth/token", post(token))
            .route("/dev/token", post(dev_token))
            .route("/sessions/revoke", post(revoke))
            .merge(endpoints().into_router())
            .with_state(self);
        Service::new(parts).open_routes(routes).spans(&sessions).into_router()
    }

    fn check_gateway(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Basic "));
        let given = given.and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default();
        let wanted = format!("gateway:{}", self.0.gateway_secret);
        // In constant time: the answer must not tell how much of the secret was right.
        if aws_lc_rs::constant_time::verify_slices_are_equal(&given, wanted.as_bytes()).is_ok() {
            return Ok(());
        }
        // Not 401: that says of the token which the gateway shows that it is not good.
        Err(Problem::of(problem::FORBIDDEN).detail("client authentication is required").into())
    }
}

async fn discovery(State(broker): State<Broker>) -> Json<Value> {
    let url = &broker.0.issuer.url;
    Json(json!({
        "issuer": url,
        "authorization_endpoint": format!("{url}/authorize"),
        "token_endpoint": format!("{url}/oauth/token"),
        "jwks_uri": format!("{url}/jwks.json"),
        "response_types_supported": ["code"],
        "grant_types_supported": ["authorization_code", "refresh_token", EXCHANGE],
        "code_challenge_methods_supported": ["S256"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "token_endpoint_auth_methods_supported": ["none", "client_secret_basic"],
    }))
}

async fn keys(State(broker): State<Broker>) -> Json<Value> {
    Json(broker.0.issuer.keys.jwks())
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenRequest {
    grant_type: String,
    code: String,
    code_verifier: String,
    client_id: String,
    redirect_uri: String,
    refresh_token: String,
    subject_token: String,
    subject_token_type: String,
}

async fn token(
    State(broker): State<Broker>,
    headers: HeaderMap,
    form: Result<Form<TokenRequest>, FormRejection>,
) -> Result<Json<Value>, Failure> {
    let Form(asked) =
        form.map_err(|_| Problem::of(problem::BAD_REQUEST).detail("send a form").with("error", "invalid_request"))?;
    let inner = &broker.0;
    let session = match asked.grant_type.as_str() {
        "authorization_code" | "refresh_token" => redeemed(inner, &asked).await?,
        EXCHANGE => {
            broker.check_gateway(&headers)?;
            return exchange(&broker, &asked).await;
        }
        _ => return Err(Problem::of(UNSUPPORTED_GRANT).with("error", "unsupported_grant_type").into()),
    };
    let access = inner.issuer.access_token(&session)?;
    let refresh = inner.sessions.refresh_token(session).await.map_err(|_| Problem::of(problem::INTERNAL))?;
    let expires_in = ACCESS_LIFETIME.as_secs();
    Ok(Json(json!({
        "access_token": access, "refresh_token": refresh, "token_type": "Bearer", "expires_in": expires_in,
    })))
}

/// The session that goes on with a code or a refresh token, which is used up.
async fn redeemed(inner: &Inner, asked: &TokenRequest) -> Result<Session, Failure> {
    // Before that: whoever is told to come again must find it as it was.
    inner.sessions.follow().await?;
    let is_refresh = asked.grant_type == "refresh_token";
    let shown = if is_refresh {
        inner.sessions.redeem(&asked.refresh_token).await
    } else {
        inner.codes.redeem(&asked.code, &asked.code_verifier, &asked.client_id, &asked.redirect_uri).await
    };
    match shown {
        Shown::Good(session) if inner.sessions.was_good(&session).await => Ok(session),
        Shown::Good(_) => Err(refused("the session has been revoked")),
        Shown::Unknown => Err(refused("it is not good, or was not made for this client")),
        Shown::Again(sid) => {
            pim_core::warn!("broker.grant_shown_again");
            end(inner, &[Ended::Session(sid)]).await?;
            if is_refresh {
                inner.sessions.forget(&asked.refresh_token).await;
            } else {
                inner.codes.forget(&asked.code).await;
            }
            Err(refused("it was used before: its session has been ended"))
        }
    }
}

/// A code or a refresh token is no good. Clients of RFC 6749 look for `error`, and for this status (5.2).
fn refused(why: &'static str) -> Failure {
    Problem::of(INVALID_GRANT).detail(why).with("error", "invalid_grant").into()
}

async fn exchange(broker: &Broker, asked: &TokenRequest) -> Result<Json<Value>, Failure> {
    if asked.subject_token_type != "urn:ietf:params:oauth:token-type:access_token" {
        return Err(Problem::of(problem::INVALID_BODY)
            .detail("subject_token_type must be that of an access token")
            .into());
    }
    let inner = &broker.0;
    let access = inner.verifier.verify(&asked.subject_token).await.map_err(|error| error.into_problem())?;
    let (token, expires_at) = inner.issuer.transaction_token(&access, &inner.sessions).await?;
    Ok(Json(json!({
        "access_token": token,
        "issued_token_type": "urn:ietf:params:oauth:token-type:txn_token",
        "token_type": "N_A",
        "expires_in": expires_at - inner.issuer.now(),
    })))
}

/// The broker's OpenAPI document: of what the gateway forwards to it.
#[must_use]
pub fn openapi() -> Value {
    document(Upstream::Broker, endpoints().operations())
}

fn endpoints() -> Endpoints<Broker> {
    let token = Operation::operate("/v1/dev/token", "Signs a persona in at the development identity provider");
    Endpoints::new().serve(token, dev_token)
}

/// Body of a request to the development identity provider: a role or a subject at least.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DevTokenRequest {
    /// In which role.
    #[schema(example = "clinician")]
    role: Option<String>,
    /// As whom.
    subject: Option<String>,
    /// The caller's own record.
    #[schema(value_type = Option<String>, format = "uuid")]
    patient: Option<Uuid>,
    /// A facility of affiliation.
    #[schema(value_type = Option<String>, format = "uuid")]
    facility: Option<Uuid>,
}

async fn dev_token(
    State(broker): State<Broker>,
    body: Result<Json<DevTokenRequest>, JsonRejection>,
) -> Result<Json<Value>, Failure> {
    let bad = || Problem::of(problem::INVALID_BODY).detail("send {\"role\": \"clinician\"} or a subject");
    let Json(asked) = body.map_err(|rejection| match rejection {
        JsonRejection::MissingJsonContentType(_) => Problem::of(problem::UNSUPPORTED_MEDIA_TYPE),
        JsonRejection::JsonSyntaxError(_) => Problem::of(problem::MALFORMED_JSON),
        _ => bad(),
    })?;
    let persona = persona_of(&broker, asked).ok_or_else(bad)?;
    let session = Session::begin(persona, broker.0.issuer.now());
    let access = broker.0.issuer.access_token(&session)?;
    let Session { sid, persona, .. } = session;
    Ok(Json(json!({
        "access_token": access, "token_type": "Bearer", "expires_in": ACCESS_LIFETIME.as_secs(), "sid": sid,
        "subject": persona.subject, "role": persona.role, "facility_id": persona.facilities.first(),
        "provider_id": persona.provider, "patient_id": persona.patient,
    })))
}

fn persona_of(broker: &Broker, asked: DevTokenRequest) -> Option<Persona> {
    let known = asked.subject.as_deref().and_then(|subject| broker.0.personas.of_subject(subject));
    let mut persona = match (known, asked.role) {
        (Some(known), _) => known,
        (None, Some(role)) => broker.0.personas.of_role(&role),
        (None, None) => return None,
    };
    if let Some(subject) = asked.subject {
        persona.subject = subject;
    }
    if let Some(patient) = asked.patient {
        persona.patient = Some(patient);
    }
    if let Some(facility) = asked.facility {
        persona.facilities = vec![facility];
    }
    Some(persona)
}

/// Body of a revocation: a session, or all that a subject has begun so far. Where both are named, both end.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Revocation {
    sid: Option<Uuid>,
    subject: Option<String>,
}

async fn revoke(
    State(broker): State<Broker>,
    headers: HeaderMap,
    body: Result<Json<Revocation>, JsonRejection>,
) -> Result<StatusCode, Failure> {
    broker.check_gateway(&headers)?;
    let bad = || Problem::of(problem::INVALID_BODY).detail("send a sid or a subject");
    let Json(asked) = body.map_err(|_| bad())?;
    let subject = asked.subject.as_deref().map(Ended::subject);
    let ended: Vec<Ended> = asked.sid.map(Ended::Session).into_iter().chain(subject).collect();
    if ended.is_empty() {
        return Err(bad().into());
    }
    end(&broker.0, &ended).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn end(inner: &Inner, what: &[Ended]) -> Result<(), Failure> {
    inner.sessions.revoke(what, inner.issuer.now()).await.map_err(|error| {
        pim_core::error!("broker.revocation_not_kept", os_error = error.os_error());
        let detail = "revoked for as long as this broker runs, but not kept: ask again";
        Problem::of(problem::UNAVAILABLE).detail(detail).retry_after_secs(1).into()
    })
}
