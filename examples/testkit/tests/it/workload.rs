//! Mixed writes against a system that goes down, and what it must have kept.

mod check;
mod refusals;
mod writer;

use std::any::Any;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use pim_testkit::caller::Caller;
use serde_json::{Value, json};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{self, timeout};

#[cfg(feature = "postgres")]
pub(crate) use check::look;
pub(crate) use check::settled;
use writer::{Said, Silence, Submission, Writer, clinician};

const WRITERS: u64 = 8;
const PATIENCE: Duration = Duration::from_secs(20);
const REFUSED_PAUSE: Duration = Duration::from_millis(25);

/// How often chores are done where facts are counted: a run that outlasts the time of one would count its events, too.
pub(crate) fn no_chores() -> Value {
    json!({"idempotency_sweep_secs": 86_400, "audit_checkpoint_secs": 86_400})
}

/// What the system said it had done, and what it was asked without having answered.
#[derive(Debug, Default)]
struct Told {
    /// Version and state of each record, by its path.
    acknowledged: BTreeMap<String, (u64, String)>,
    /// The last answer of each writer before the system went down.
    answered: Vec<(Submission, Said)>,
    /// Writes whose answer never came.
    unknown: Vec<Submission>,
    /// How many writes were acknowledged.
    writes: u64,
    /// Facts that the acknowledged writes have led to.
    facts: u64,
}

/// What was acknowledged, for whoever looks into the stores afterwards; nothing else was asked for.
#[cfg(feature = "postgres")]
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    /// Version and state of each record, by its path.
    pub(crate) records: BTreeMap<String, (u64, String)>,
    /// Writes, each of which has an idempotency key of its own.
    pub(crate) writes: u64,
    /// Facts that these have led to.
    pub(crate) facts: u64,
}

#[derive(Debug, Default)]
struct Inner {
    number: AtomicU64,
    in_flight: AtomicU64,
    /// Writers come to an end of their own when this says so.
    is_over: AtomicBool,
    acknowledgement: Notify,
    /// What the first writer said who did not put up with something.
    broken: watch::Sender<Option<String>>,
    told: Mutex<Told>,
    /// Patients of whom everybody writes, instead of new ones; set before anybody writes.
    regulars: OnceLock<Vec<String>>,
    /// The longest that a write took to be answered.
    slowest_us: AtomicU64,
}

/// Writers, and all that they were told in every life of the system.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workload(Arc<Inner>);

/// The writers of one life of the system.
#[derive(Debug)]
pub(crate) struct Writers(JoinSet<()>);

impl Writers {
    /// Waits until each has come to its end. What one of them did not put up with, the test does not either.
    pub(crate) async fn end(mut self) {
        while let Some(ended) = self.0.join_next().await {
            ended.expect("a writer comes to its end");
        }
    }
}

impl Workload {
    /// Eight clinicians who register patients and take each through an encounter, until nobody answers. The system is up, so all of
    /// them are signed in by now.
    pub(crate) async fn begin(&self, gateway: &str) -> Writers {
        self.0.in_flight.store(0, Ordering::SeqCst);
        self.0.is_over.store(false, Ordering::SeqCst);
        let mut callers = Vec::new();
        for _ in 0..WRITERS {
            callers.push(clinician(gateway).await);
        }
        let mut writers = JoinSet::new();
        for (place, caller) in (0..).zip(callers) {
            let workload = self.clone();
            writers.spawn(async move {
                let ended = AssertUnwindSafe(workload.write_on(&caller, place)).catch_unwind().await;
                if let Err(panic) = ended {
                    workload.tell(panic.as_ref());
                    resume_unwind(panic);
                }
            });
        }
        Writers(writers)
    }

    /// One of them.
    async fn write_on(&self, caller: &Caller, place: u64) {
        let mut writer = Writer { workload: self, caller, last: None, turn: place };
        loop {
            let outcome = writer.encounter().await;
            if matches!(outcome, Err(Silence::Gone)) || self.0.is_over.load(Ordering::SeqCst) {
                break;
            }
            if outcome.is_err() {
                // Whoever is refused does not ask again at once.
                time::sleep(REFUSED_PAUSE).await;
            }
        }
        let last = writer.last;
        self.0.told.lock().await.answered.extend(last);
    }

    /// Those who wait for what writers do hear at once why one of them has ended, not that nobody writes any more.
    fn tell(&self, panic: &(dyn Any + Send)) {
        let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        self.0.broken.send_if_modified(|first| {
            first.is_none() && first.replace(said.unwrap_or("a writer broke off").to_owned()).is_none()
        });
    }

    /// Comes to an end when a writer did not put up with something, and then as that writer did.
    async fn breaks(&self) -> Infallible {
        let mut broken = self.0.broken.subscribe();
        let said = broken.wait_for(Option::is_some).await.expect("it is told as long as there is a workload").clone();
        panic!("{}", said.unwrap_or_default())
    }

    /// Registers patients to whom the writers return, each writer to patients of its own.
    #[cfg(feature = "postgres")]
    pub(crate) async fn regulars(&self, gateway: &str, rounds: u64) -> Vec<String> {
        let caller = clinician(gateway).await;
        let mut writer = Writer { workload: self, caller: &caller, last: None, turn: 0 };
        let mut patients = Vec::new();
        while (patients.len() as u64) < rounds * WRITERS {
            patients.push(writer.patient().await.unwrap_or_else(|_| panic!("a registration failed")));
        }
        self.0.regulars.get_or_init(|| patients).clone()
    }

    /// How many writes were refused or had no answer.
    pub(crate) async fn failed(&self) -> usize {
        self.0.told.lock().await.unknown.len()
    }

    /// The longest that a write took to be answered, since this was asked last.
    #[cfg(feature = "postgres")]
    pub(crate) fn slowest(&self) -> Duration {
        Duration::from_micros(self.0.slowest_us.swap(0, Ordering::SeqCst))
    }

    /// How many writes have been sent and not been answered yet.
    pub(crate) fn in_flight(&self) -> u64 {
        self.0.in_flight.load(Ordering::SeqCst)
    }

    /// Lets the writers finish what they are at.
    pub(crate) async fn rest(&self, writers: Writers) {
        self.0.is_over.store(true, Ordering::SeqCst);
        writers.end().await;
    }

    /// Waits until a write is on its way; how many there are then.
    #[cfg(feature = "postgres")]
    pub(crate) async fn departure(&self) -> u64 {
        let give_up = time::Instant::now() + PATIENCE;
        let departs = async {
            loop {
                let flying = self.in_flight();
                if flying > 0 {
                    return flying;
                }
                assert!(time::Instant::now() < give_up, "nobody writes any more");
                time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            biased;
            never = self.breaks() => match never {},
            flying = departs => flying,
        }
    }

    /// Waits until the next write is acknowledged.
    pub(crate) async fn acknowledgement(&self) {
        tokio::select! {
            biased;
            never = self.breaks() => match never {},
            next = timeout(PATIENCE, self.0.acknowledgement.notified()) => {
                next.expect("writes are acknowledged while nothing is wrong");
            }
        }
    }

    /// How many records have been acknowledged in all.
    pub(crate) async fn records(&self) -> usize {
        self.0.told.lock().await.acknowledged.len()
    }

    /// What has been acknowledged so far: version and state of each record, by its path.
    pub(crate) async fn acknowledged(&self) -> BTreeMap<String, (u64, String)> {
        self.0.told.lock().await.acknowledged.clone()
    }

    /// All that was acknowledged, once every write has had an answer.
    #[cfg(feature = "postgres")]
    pub(crate) async fn account(&self) -> Account {
        let told = self.0.told.lock().await;
        assert!(told.unknown.is_empty(), "what had no answer was not sent again: {:?}", told.unknown);
        Account { records: told.acknowledged.clone(), writes: told.writes, facts: told.facts }
    }
}

impl Told {
    fn acknowledge(&mut self, submission: &Submission, said: &Said) {
        let (Some(version), Some(state)) = (said.record["version"].as_u64(), said.record["state"].as_str()) else {
            panic!("{submission:?} leads to no record: {said:?}")
        };
        self.writes += 1;
        // A completed encounter drafts its claim, which is a fact of its own.
        self.facts += if state == "completed" { 2 } else { 1 };
        self.acknowledged.insert(submission.leads_to(&said.record), (version, state.to_owned()));
    }
}
