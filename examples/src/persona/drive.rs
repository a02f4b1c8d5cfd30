//! The driver: begins each session at its time, whatever the ones before are doing.

use std::sync::Arc;
use std::time::Duration;

use pim_core::signal::Spans;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::plan::Plan;
use super::record::{DriveReport, Snapshot};
use super::session::{Shared, play};
use crate::rig::Drain;

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
    /// Where the spans of the calls go.
    pub spans: Spans,
    /// For how long sessions begin; until told to stop when absent.
    pub duration: Option<Duration>,
}

/// A run of traffic.
#[derive(Debug)]
pub struct Drive {
    shared: Arc<Shared>,
    stop: Drain,
    arrivals: JoinHandle<()>,
    slots: Arc<Semaphore>,
}

impl Drive {
    /// Begins.
    #[must_use]
    pub fn start(settings: &DriveSettings) -> Self {
        let shared = Arc::new(Shared::new(settings.gateway.clone(), settings.spans.clone()));
        let slots = Arc::new(Semaphore::new(SESSIONS_MAX as usize));
        let stop = Drain::new();
        let plan = Plan::new(settings.seed, settings.rate);
        let end_us =
            settings.duration.map_or(u64::MAX, |duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
        let (sharing, holding, told) = (Arc::clone(&shared), Arc::clone(&slots), stop.begun());
        let arrivals = tokio::spawn(async move {
            let begin = async {
                for session in plan.sessions().take_while(|session| session.at_us < end_us) {
                    tokio::time::sleep_until(sharing.begun + Duration::from_micros(session.at_us)).await;
                    let Ok(slot) = Arc::clone(&holding).acquire_owned().await else { return };
                    let shared = Arc::clone(&sharing);
                    tokio::spawn(async move {
                        play(shared, session).await;
                        drop(slot);
                    });
                }
            };
            tokio::select! {
                () = begin => {}
                () = told => {}
            }
        });
        Self { shared, stop, arrivals, slots }
    }

    /// How it stands.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared.recorder.snapshot()
    }

    /// Begins no more sessions, lets those that have begun end, and says what it came to.
    pub async fn stop(self) -> DriveReport {
        self.stop.begin();
        let _ended = self.arrivals.await;
        let _unfinished = tokio::time::timeout(ENDS_WITHIN, self.slots.acquire_many(SESSIONS_MAX)).await;
        self.shared.recorder.report()
    }
}
