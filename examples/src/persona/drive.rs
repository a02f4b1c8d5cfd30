//! The driver: begins each session at its time, whatever the ones before are doing.

use std::sync::Arc;
use std::time::Duration;

use pim_core::signal::Spans;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::plan::{Plan, PlannedSession};
use super::profile::Profile;
use super::record::{DriveReport, Snapshot};
use super::session::{Shared, play};

/// Most sessions at once; above that they wait, and are late.
const SESSIONS_MAX: u32 = 2048;
/// How long sessions that have begun may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

/// What to drive.
#[derive(Clone, Debug)]
pub struct DriveSettings {
    /// Base URL of the gateway.
    pub gateway: String,
    /// Sessions a second.
    pub rate: f64,
    /// Decides the plan.
    pub seed: u64,
    /// How the traffic is shaped and mixed.
    pub profile: Profile,
    /// Where the spans of the calls go.
    pub spans: Spans,
    /// For how long sessions begin; until told to stop when absent.
    pub duration: Option<Duration>,
}

/// A run of traffic.
#[derive(Debug)]
pub struct Drive {
    shared: Arc<Shared>,
    arrivals: JoinHandle<()>,
    slots: Arc<Semaphore>,
}

impl Drive {
    /// Begins.
    #[must_use]
    pub fn start(settings: &DriveSettings) -> Self {
        let shared = Arc::new(Shared::new(settings.gateway.clone(), settings.spans.clone()));
        let slots = Arc::new(Semaphore::new(SESSIONS_MAX as usize));
        let plan = Plan::new(settings.seed, settings.rate).with_profile(settings.profile);
        let end_us =
            settings.duration.map_or(u64::MAX, |duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
        let sessions = plan.sessions().take_while(move |session| session.at_us < end_us);
        let arrivals = tokio::spawn(arrive(Arc::clone(&shared), Arc::clone(&slots), sessions));
        Self { shared, arrivals, slots }
    }

    /// How it stands.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared.recorder.snapshot()
    }

    /// Nothing comes due from now on; what has come due may still be sent and answered, for a while. Says what the run
    /// came to: with a session that had not ended by then it is not valid, for its slowest requests are missing.
    pub async fn stop(self) -> DriveReport {
        self.stop_within(ENDS_WITHIN).await
    }

    async fn stop_within(self, patience: Duration) -> DriveReport {
        self.shared.end();
        let _ended = self.arrivals.await;
        let all_ended = tokio::time::timeout(patience, self.slots.acquire_many(SESSIONS_MAX)).await.is_ok();
        let unfinished = if all_ended { 0 } else { SESSIONS_MAX as usize - self.slots.available_permits() };
        self.shared.recorder.report(unfinished as u64)
    }
}

/// Begins the sessions, each at its time. Those that came due without a slot are counted as what was not sent.
async fn arrive(shared: Arc<Shared>, slots: Arc<Semaphore>, sessions: impl Iterator<Item = PlannedSession>) {
    for session in sessions {
        if !shared.comes_due(shared.intended(session.at_us)).await {
            return;
        }
        let slot = tokio::select! {
            biased;
            slot = Arc::clone(&slots).acquire_owned() => slot.ok(),
            () = shared.over() => None,
        };
        let Some(slot) = slot else {
            shared.turn_away(&session).await;
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            play(shared, session).await;
            drop(slot);
        });
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::post;
    use serde_json::json;

    use super::*;

    /// A gateway that signs everybody in and then answers nothing, or signs nobody in.
    async fn gateway(signs_in: bool) -> String {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let sign_in = move || async move {
            match signs_in {
                true => Ok(axum::Json(json!({"access_token": "t", "patient_id": "p"}))),
                false => Err(http::StatusCode::SERVICE_UNAVAILABLE),
            }
        };
        let silent = || async { std::future::pending::<()>().await };
        let router = Router::new().route("/v1/dev/token", post(sign_in)).fallback(silent);
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    async fn report(gateway: String, rate: f64) -> DriveReport {
        let (profile, spans) = (Profile::default(), Spans::default());
        let settings = DriveSettings { gateway, rate, seed: 1, profile, spans, duration: None };
        let drive = Drive::start(&settings);
        let enough = async {
            while drive.shared.recorder.due_so_far() < 5 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // Whoever asks judges what came due when it is not enough.
        let _too_few = tokio::time::timeout(Duration::from_secs(10), enough).await;
        drive.stop_within(Duration::from_millis(50)).await
    }

    #[tokio::test]
    async fn a_session_that_never_ends_is_counted_and_the_run_says_nothing() {
        let report = report(gateway(true).await, 200.0).await;
        assert!(report.unfinished > 0 && !report.valid, "{report:?}");
        assert!(report.reasons.iter().any(|reason| reason.contains("had not ended")), "{report:?}");
    }

    #[tokio::test]
    async fn who_is_not_let_in_was_due_all_the_same() {
        let report = report(gateway(false).await, 200.0).await;
        assert!(report.due >= 5 && report.requests == 0 && !report.valid, "{report:?}");
    }

    #[tokio::test]
    async fn nothing_comes_due_after_the_end() {
        let shared = Shared::new(String::new(), Spans::default());
        assert!(shared.comes_due(shared.begun).await);
        shared.end();
        assert!(shared.comes_due(shared.begun).await, "what has come due is still sent");
        assert!(!shared.comes_due(shared.begun + Duration::from_secs(3600)).await);
    }
}
