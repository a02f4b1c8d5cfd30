//! One session: a persona, a token, and the steps of its plan, each at its time.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::Method;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use pim_core::clock::Clock;
use pim_core::signal::Spans;
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;

use super::operation::Operation;
use super::plan::PlannedSession;
use super::random::below;
use super::record::{Measured, Recorder};
use super::way::{Next, Way, pick};
use super::worklist::Worklist;
use crate::client::Client;
use crate::rig::Drain;

pub(super) const PATIENCE: Duration = Duration::from_secs(10);
const TOKEN_GOOD_FOR: Duration = Duration::from_secs(10 * 60);
/// Most providers that are looked up.
const PLACES_MAX: usize = 200;
const PERSONAS_PER_ROLE: u64 = 8;

#[derive(Clone, Debug)]
pub(super) struct SignedIn {
    pub(super) authorization: HeaderValue,
    pub(super) told: Value,
    until: Instant,
}

/// What all sessions of a run share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) gateway: String,
    pub(super) spans: Spans,
    pub(super) clock: Clock,
    pub(super) recorder: Recorder,
    pub(super) begun: Instant,
    stop: Drain,
    /// Nothing later than this comes due; set before `stop` begins.
    ended: OnceLock<Instant>,
    /// Tells the keys of two runs apart.
    pub(super) run: uuid::Uuid,
    tokens: Mutex<BTreeMap<String, SignedIn>>,
    /// Facility and provider of whom patients may book with; looked up once, by the first who books.
    places: OnceCell<Vec<(String, String)>>,
    /// Visits whose claims wait for billing.
    pub(super) settling: Worklist,
}

impl Shared {
    pub(super) fn new(gateway: String, spans: Spans) -> Self {
        Self {
            client: Client::new(),
            gateway,
            spans,
            clock: Clock::system(),
            recorder: Recorder::default(),
            begun: Instant::now(),
            stop: Drain::new(),
            ended: OnceLock::new(),
            run: uuid::Uuid::new_v4(),
            tokens: Mutex::new(BTreeMap::new()),
            places: OnceCell::new(),
            settling: Worklist::default(),
        }
    }

    /// When a time of the plan is.
    pub(super) fn intended(&self, at_us: u64) -> Instant {
        self.begun + Duration::from_micros(at_us)
    }

    /// The run is over: nothing comes due from now on.
    pub(super) fn end(&self) {
        self.ended.get_or_init(Instant::now);
        self.stop.begin();
    }

    /// Ends when the run is over.
    pub(super) async fn over(&self) {
        self.stop.begun().await;
    }

    /// Waits for an intended time; says no when the run is over before it.
    pub(super) async fn comes_due(&self, intended: Instant) -> bool {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(intended) => {}
            () = self.over() => {}
        }
        self.ended.get().is_none_or(|ended| intended <= *ended)
    }

    /// A session that could not begin: what it would have asked was due, and was not sent.
    pub(super) fn turn_away(&self, session: &PlannedSession) {
        let is_due = |at_us: u64| self.ended.get().is_none_or(|ended| self.intended(at_us) <= *ended);
        let due = session.steps.iter().filter(|step| is_due(session.at_us + step.at_us)).count();
        self.recorder.turned_away(due as u64);
    }

    /// Signs a persona in, or takes the token that it has.
    async fn sign_in(&self, role: &str, choice: u64) -> Option<SignedIn> {
        let roster = if matches!(role, "admin" | "sre") { 2 } else { PERSONAS_PER_ROLE };
        let subject = format!("{role}-{}", below(choice, roster));
        let mut tokens = self.tokens.lock().await;
        if let Some(known) = tokens.get(&subject).filter(|known| known.until > Instant::now()) {
            return Some(known.clone());
        }
        let url = format!("{}/v1/dev/token", self.gateway);
        let told = self.client.post_json(&url, &json!({"role": role, "subject": subject}), PATIENCE).await.ok()?;
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", told["access_token"].as_str()?)).ok()?;
        authorization.set_sensitive(true);
        let signed = SignedIn { authorization, told, until: Instant::now() + TOKEN_GOOD_FOR };
        tokens.insert(subject, signed.clone());
        Some(signed)
    }

    /// Whom a patient may book with; empty when nobody is there, or nobody says so.
    async fn places(&self, signed: &SignedIn) -> &[(String, String)] {
        let look = || async {
            let url = format!("{}/v1/admin/providers?limit={PLACES_MAX}", self.gateway);
            let headers = HeaderMap::from_iter([(AUTHORIZATION, signed.authorization.clone())]);
            let (status, _, bytes) =
                self.client.exchange(Method::GET, &url, headers, None, PATIENCE).await.map_err(drop)?;
            let told: Value = serde_json::from_slice(&bytes).map_err(drop)?;
            let listed = told["items"].as_array().filter(|_| status.is_success()).ok_or(())?;
            let text = |provider: &Value, member: &str| provider[member].as_str().map(str::to_owned);
            let place = |provider: &Value| Some((text(provider, "facility_id_of")?, text(provider, "id")?));
            let in_use = listed.iter().filter(|provider| provider["active"] == true);
            Ok::<_, ()>(in_use.filter_map(place).collect())
        };
        // What failed is tried again by the next who books.
        self.places.get_or_try_init(look).await.map_or(&[], Vec::as_slice)
    }
}

/// Plays one session to its end.
pub(super) async fn play(shared: Arc<Shared>, session: PlannedSession) {
    let Some(signed) = shared.sign_in(session.role, session.choice).await else {
        shared.turn_away(&session);
        return;
    };
    let mut way = Way::new(&shared, &session, &signed);
    for step in &session.steps {
        let intended = shared.intended(session.at_us + step.at_us);
        if !shared.comes_due(intended).await {
            return;
        }
        if step.operation == Operation::AppointmentBook {
            way.place = pick(shared.places(&signed).await, session.choice.rotate_left(29));
        }
        let (method, path, body) = match way.next(step) {
            Next::Ask(method, path, body) => (method, path, body),
            Next::PassOver => continue,
            Next::Stuck => {
                shared.recorder.cut_short();
                return;
            }
        };
        shared.recorder.due();
        let sent = Instant::now();
        let answer = way.send(step.operation, &method, &path, body.as_ref()).await;
        let service = sent.elapsed();
        let failed = !answer.as_ref().is_some_and(|(status, _)| status.is_success());
        let lateness = sent.saturating_duration_since(intended);
        let (operation, role) = (step.operation, session.role);
        shared.recorder.done(Measured { operation, role, lateness, service, failed });
        if let Some((status, document)) = answer {
            way.learn(operation, status, &document);
        }
    }
}
