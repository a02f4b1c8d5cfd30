//! One session: a persona, its tokens, and the steps of its plan, each at its time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use http::Method;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use pim_core::clock::Clock;
use pim_core::signal::Spans;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::lacks::{Lacks, Thing};
use super::lookup::{Holds, Lookup};
use super::operation::Operation;
use super::plan::PlannedSession;
use super::random::below;
use super::record::{Measured, Outcome, Recorder, is_fault};
use super::way::{Next, Place, Way, pick};
use super::worklist::Worklist;
use crate::client::Client;
use crate::rig::Drain;

pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long a failure keeps others from asking again.
const FAILED_FOR: Duration = Duration::from_secs(1);
/// A token lives for a quarter of an hour, and what is sent with it is still on its way for a while.
const TOKEN_HOLDS: Holds =
    Holds { fresh: Duration::from_secs(10 * 60), good: Duration::from_secs(14 * 60), failed: FAILED_FOR };
/// Who is there when the run begins will do for all of it.
const PLACES_HOLD: Holds = Holds { fresh: Duration::MAX, good: Duration::MAX, failed: FAILED_FOR };
/// Most providers that are looked up.
const PLACES_MAX: usize = 200;
const PERSONAS_PER_ROLE: u64 = 8;

#[derive(Debug)]
pub(super) struct SignedIn {
    pub(super) authorization: HeaderValue,
    pub(super) told: Value,
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
    token_holds: Holds,
    /// By subject, of which there are a few of each role: nobody waits while another one signs in.
    tokens: Mutex<BTreeMap<String, Arc<Lookup<SignedIn>>>>,
    /// Whom patients may book with; looked up once, by the first who books.
    places: Arc<Lookup<Vec<Place>>>,
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
            token_holds: TOKEN_HOLDS,
            tokens: Mutex::default(),
            places: Lookup::new(PLACES_HOLD),
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

    /// A session that could not begin: what it would have asked comes due, and is not sent.
    pub(super) async fn turn_away(&self, session: &PlannedSession) {
        self.recorder.turned_away();
        for step in &session.steps {
            if !self.comes_due(self.intended(session.at_us + step.at_us)).await {
                return;
            }
            self.recorder.missed(1);
        }
    }

    /// Signs a persona in, or takes the token that it has.
    async fn sign_in(&self, role: &'static str, choice: u64) -> Option<Arc<SignedIn>> {
        let roster = if matches!(role, "admin" | "sre") { 2 } else { PERSONAS_PER_ROLE };
        let subject = format!("{role}-{}", below(choice, roster));
        let token = {
            let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(tokens.entry(subject.clone()).or_insert_with(|| Lookup::new(self.token_holds)))
        };
        let (client, url) = (self.client.clone(), format!("{}/v1/dev/token", self.gateway));
        let ask = async move {
            let told = client.post_json(&url, &json!({"role": role, "subject": subject}), PATIENCE).await.ok()?;
            let mut authorization =
                HeaderValue::from_str(&format!("Bearer {}", told["access_token"].as_str()?)).ok()?;
            authorization.set_sensitive(true);
            Some(SignedIn { authorization, told })
        };
        token.get(ask).await
    }

    /// Whom patients may book with; `None` when nobody says so.
    async fn places(&self, signed: &SignedIn) -> Option<Arc<Vec<Place>>> {
        let (client, url) = (self.client.clone(), format!("{}/v1/admin/providers?limit={PLACES_MAX}", self.gateway));
        let headers = HeaderMap::from_iter([(AUTHORIZATION, signed.authorization.clone())]);
        let look = async move {
            let (status, _, bytes) = client.exchange(Method::GET, &url, headers, None, PATIENCE).await.ok()?;
            let told: Value = serde_json::from_slice(&bytes).ok()?;
            let listed = told["items"].as_array().filter(|_| status.is_success())?;
            let text = |provider: &Value, member: &str| provider[member].as_str().map(str::to_owned);
            let place = |provider: &Value| {
                Some(Place { facility: text(provider, "facility_id_of")?, provider: text(provider, "id")? })
            };
            let in_use = listed.iter().filter(|provider| provider["active"] == true);
            Some(in_use.filter_map(place).collect::<Vec<Place>>())
        };
        self.places.get(look).await
    }
}

/// Plays one session to its end.
pub(super) async fn play(shared: Arc<Shared>, session: PlannedSession) {
    let Some(signed) = shared.sign_in(session.role, session.choice).await else {
        shared.turn_away(&session).await;
        return;
    };
    let mut way = Way::new(&shared, &session, signed);
    let mut lacks = Lacks::default();
    for step in &session.steps {
        let intended = shared.intended(session.at_us + step.at_us);
        if !shared.comes_due(intended).await {
            return;
        }
        // Who thinks for longer than a token lives needs another one; who gets none is refused with what they have.
        if let Some(signed) = shared.sign_in(session.role, session.choice).await {
            way.signed = signed;
        }
        if step.operation == Operation::AppointmentBook {
            let places = shared.places(&way.signed).await;
            lacks.note(Thing::Place, places.is_some());
            way.place = places.and_then(|places| pick(&places, session.choice.rotate_left(29)).cloned());
        }
        let (method, path, body) = match way.next(step) {
            Next::Ask(method, path, body) => (method, path, body),
            // It came due, and what it needs was asked for in vain.
            Next::PassOver | Next::Stuck if lacks.keep(step.operation) => {
                shared.recorder.missed(1);
                lacks.note_of(step.operation, false);
                continue;
            }
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
        let lateness = sent.saturating_duration_since(intended);
        let (operation, role, outcome) = (step.operation, session.role, Outcome::of(&answer));
        shared.recorder.done(Measured { operation, role, lateness, service, outcome });
        if is_fault(&answer) {
            lacks.note_of(operation, false);
        }
        if let Ok((status, document)) = answer {
            if status.is_success() {
                lacks.note_of(operation, true);
            }
            way.learn(operation, status, &document);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::extract::State;
    use axum::routing::post;
    use axum::{Json, Router};
    use http::header::{CONNECTION, HeaderName};
    use http::{StatusCode, Uri};
    use tokio::sync::Notify;
    use tokio::task::AbortHandle;

    use super::*;
    use crate::care::Act;
    use crate::encounter::VisitKind;
    use crate::persona::{PlannedStep, Script};

    const NEVER: Holds = Holds { fresh: Duration::ZERO, good: Duration::ZERO, failed: Duration::ZERO };

    /// A gateway that numbers the tokens it gives, notes which it is shown, never answers the first clinician, and has no
    /// timelines.
    #[derive(Debug, Default)]
    struct Gateway {
        tokens: AtomicU32,
        tokens_max: u32,
        hangs: Notify,
        shown: Mutex<Vec<String>>,
    }

    impl Gateway {
        async fn sign_in(
            State(gateway): State<Arc<Self>>,
            Json(asked): Json<Value>,
        ) -> Result<([(HeaderName, &'static str); 1], Json<Value>), StatusCode> {
            if asked["subject"] == "clinician-0" {
                gateway.hangs.notify_one();
                std::future::pending::<()>().await;
            }
            let number = gateway.tokens.fetch_add(1, Ordering::Relaxed) + 1;
            let told = json!({"access_token": format!("t{number}"), "patient_id": "p"});
            let granted = number <= gateway.tokens_max;
            granted.then_some(([(CONNECTION, "close")], Json(told))).ok_or(StatusCode::SERVICE_UNAVAILABLE)
        }

        async fn note(
            State(gateway): State<Arc<Self>>,
            uri: Uri,
            headers: HeaderMap,
        ) -> (StatusCode, [(HeaderName, &'static str); 1], Json<Value>) {
            let token = headers[AUTHORIZATION].to_str().unwrap().trim_start_matches("Bearer ").to_owned();
            gateway.shown.lock().unwrap().push(token);
            // No connection outlives the one that listens.
            let is_away = uri.path().ends_with("/timeline");
            let status = if is_away { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
            (status, [(CONNECTION, "close")], Json(Value::Null))
        }

        /// Serves, for sessions whose tokens hold so long.
        async fn start(tokens_max: u32, token_holds: Holds) -> (Arc<Self>, Arc<Shared>) {
            let (gateway, shared, _serving) = Self::serve(tokens_max, token_holds).await;
            (gateway, shared)
        }

        async fn serve(tokens_max: u32, token_holds: Holds) -> (Arc<Self>, Arc<Shared>, AbortHandle) {
            let gateway = Arc::new(Self { tokens_max, ..Self::default() });
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let router = Router::new().route("/v1/dev/token", post(Self::sign_in)).fallback(Self::note);
            let router = router.with_state(Arc::clone(&gateway));
            let serving = tokio::spawn(async move { axum::serve(listener, router).await });
            let shared = Shared { token_holds, ..Shared::new(url, Spans::default()) };
            (gateway, Arc::new(shared), serving.abort_handle())
        }

        fn shown(&self) -> Vec<String> {
            self.shown.lock().unwrap().clone()
        }
    }

    /// The first of a role asks twice.
    fn session(role: &'static str) -> PlannedSession {
        session_of(role, &[Operation::SummaryRead; 2])
    }

    fn session_of(role: &'static str, operations: &[Operation]) -> PlannedSession {
        let step = |operation: &Operation| {
            let is_planned = *operation == Operation::EncounterSchedule;
            let act = is_planned.then_some(Act::Schedule { kind: VisitKind::Wellness });
            PlannedStep { operation: *operation, act, at_us: 0 }
        };
        let steps = operations.iter().map(step).collect();
        PlannedSession { number: 0, at_us: 0, role, choice: 0, script: Script::Portal, steps }
    }

    /// Ends it, and waits until nobody can connect.
    async fn die(serving: AbortHandle, shared: &Shared) {
        serving.abort();
        while tokio::net::TcpStream::connect(shared.gateway.trim_start_matches("http://")).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    /// Guard: who signs in keeps nobody else from it, nor from going on.
    #[tokio::test]
    async fn a_sign_in_that_hangs_keeps_no_other_persona_waiting() {
        let (gateway, shared) = Gateway::start(1, TOKEN_HOLDS).await;
        let hanging = tokio::spawn(play(Arc::clone(&shared), session("clinician")));
        gateway.hangs.notified().await;
        let others = async {
            play(Arc::clone(&shared), session("patient")).await;
            play(Arc::clone(&shared), session("patient")).await;
        };
        tokio::select! {
            biased;
            _ended = hanging => panic!("the patients went on when the clinician had given up"),
            () = others => {}
        }
        assert_eq!(gateway.shown(), vec!["t1"; 4], "one token is enough for one persona");
    }

    /// Guard: a token is that of the step, not of the session.
    #[tokio::test]
    async fn who_thinks_for_longer_than_a_token_lives_asks_for_another() {
        let (gateway, shared) = Gateway::start(9, NEVER).await;
        play(shared, session("patient")).await;
        let shown = gateway.shown();
        assert!(shown.len() == 2 && shown[0] != shown[1], "{shown:?}");
    }

    /// Guard: a gateway that has died refuses connections at once, and makes a run neither complete nor fast by it.
    #[tokio::test]
    async fn what_a_dead_gateway_was_to_be_asked_was_not_sent() {
        let (_gateway, shared, serving) = Gateway::serve(1, TOKEN_HOLDS).await;
        play(Arc::clone(&shared), session("patient")).await;
        die(serving, &shared).await;
        for _ in 0..50 {
            play(Arc::clone(&shared), session("patient")).await;
        }
        let report = shared.recorder.report(0);
        assert_eq!((report.due, report.requests, report.errors), (102, 2, 100), "{report:?}");
        assert!(!report.valid && report.reasons[0].contains("2 of 102"), "{report:?}");
    }

    /// Guard: what a session would have asked with the answer that it did not get came due like that one.
    #[tokio::test]
    async fn what_follows_a_step_that_was_not_sent_was_due_all_the_same() {
        use Operation::{AppointmentBook, EncounterComplete, EncounterSchedule, EncounterStart};
        let visit = || session_of("admin", &[EncounterSchedule, EncounterStart, EncounterComplete]);
        let (_gateway, shared, serving) = Gateway::serve(2, TOKEN_HOLDS).await;
        play(Arc::clone(&shared), session("patient")).await;
        play(Arc::clone(&shared), visit()).await;
        let report = shared.recorder.report(0);
        assert_eq!((report.due, report.requests, report.cut_short), (3, 3, 1), "none was told of: {report:?}");
        die(serving, &shared).await;
        play(Arc::clone(&shared), visit()).await;
        // Whom to book with is asked for when it comes to that.
        play(Arc::clone(&shared), session_of("patient", &[AppointmentBook])).await;
        let report = shared.recorder.report(0);
        assert_eq!((report.due, report.requests, report.not_sent), (7, 3, 4), "{report:?}");
        assert_eq!((report.errors, report.cut_short), (1, 1), "{report:?}");
    }

    /// Guard: what a session could not have asked of a sound system either does not count as missed, whatever else failed.
    #[tokio::test]
    async fn what_nothing_that_failed_was_needed_for_was_not_due() {
        use Operation::{EncounterStart, TimelineRead};
        let (_gateway, shared) = Gateway::start(1, TOKEN_HOLDS).await;
        play(Arc::clone(&shared), session_of("patient", &[TimelineRead, EncounterStart])).await;
        let report = shared.recorder.report(0);
        let counts = (report.due, report.requests, report.errors, report.not_sent, report.cut_short);
        assert_eq!(counts, (1, 1, 1, 0, 1), "{report:?}");
    }

    /// Guard: a session that was not let in counts what comes due, and nothing behind the end of the run.
    #[tokio::test]
    async fn who_is_not_let_in_is_due_until_the_end() {
        let (_gateway, shared) = Gateway::start(0, TOKEN_HOLDS).await;
        let mut turned_away = session("patient");
        turned_away.steps[1].at_us = 3_600_000_000;
        let waiting = tokio::spawn(play(Arc::clone(&shared), turned_away));
        while shared.recorder.due_so_far() == 0 {
            tokio::task::yield_now().await;
        }
        shared.end();
        waiting.await.unwrap();
        let report = shared.recorder.report(0);
        assert_eq!((report.due, report.not_sent, report.turned_away), (1, 1, 1), "{report:?}");
    }

    #[tokio::test]
    async fn whom_nobody_signs_in_again_goes_on_with_what_they_have() {
        let (gateway, shared) = Gateway::start(1, NEVER).await;
        play(shared, session("patient")).await;
        assert_eq!(gateway.shown(), ["t1", "t1"]);
    }
}
