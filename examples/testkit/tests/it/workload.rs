//! Mixed writes against a system that goes down, and what it must have kept.

mod refusals;

use std::any::Any;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::StatusCode;
use pim_testkit::caller::{Caller, fresh_key};
use pim_testkit::program::Program;
use serde_json::{Value, json};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

const WRITERS: u64 = 8;
const PATIENCE: Duration = Duration::from_secs(20);
/// Whoever returns to patients leaves the machine to others in between.
const BETWEEN_VISITS: Duration = Duration::from_millis(400);
const REFUSED_PAUSE: Duration = Duration::from_millis(25);

/// How often chores are done where facts are counted: a run that outlasts the time of one would count its events, too.
pub(crate) fn no_chores() -> Value {
    json!({"idempotency_sweep_secs": 86_400, "audit_checkpoint_secs": 86_400})
}

/// One write as it was sent.
#[derive(Clone, Debug)]
struct Submission {
    path: String,
    key: String,
    body: Value,
    /// Where the record that it leads to is read.
    under: &'static str,
}

impl Submission {
    /// Where the record is read that the answer shows.
    fn leads_to(&self, record: &Value) -> String {
        format!("{}/{}", self.under, record["id"].as_str().unwrap_or_default())
    }
}

/// What the system said of a write.
#[derive(Clone, Debug, PartialEq)]
struct Said {
    status: StatusCode,
    record: Value,
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
                tokio::time::sleep(REFUSED_PAUSE).await;
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
        let give_up = Instant::now() + PATIENCE;
        let departs = async {
            loop {
                let flying = self.in_flight();
                if flying > 0 {
                    return flying;
                }
                assert!(Instant::now() < give_up, "nobody writes any more");
                tokio::time::sleep(Duration::from_millis(1)).await;
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

    /// Sends again, with the same key and body, what had no answer and the last that had one; returns how many there were.
    ///
    /// What had no answer happens now unless it has, and is answered the same ever after. What had one has it still.
    pub(crate) async fn retry(&self, gateway: &str) -> (usize, usize) {
        let caller = Caller::sign_in(gateway, "clinician").await.unwrap();
        let mut told = self.0.told.lock().await;
        let (unknown, answered) = (std::mem::take(&mut told.unknown), std::mem::take(&mut told.answered));
        // Before anything is sent again, which could bring back what is gone.
        for (submission, said) in &answered {
            let path = submission.leads_to(&said.record);
            let (status, record) = look(&caller, &path).await;
            assert_eq!(status, StatusCode::OK, "{path} was acknowledged and is gone");
            let (found, acknowledged) = (record["version"].as_u64(), said.record["version"].as_u64());
            assert!(found >= acknowledged, "{path} was acknowledged in version {acknowledged:?} and is at {found:?}");
        }
        for submission in &unknown {
            let first = send(&caller, submission).await;
            assert!(first.status.is_success(), "{submission:?} after the restart: {first:?}");
            told.acknowledge(submission, &first);
            let again = send(&caller, submission).await;
            assert_eq!(again, first, "{submission:?} is answered differently the second time");
        }
        for (submission, said) in &answered {
            let again = send(&caller, submission).await;
            assert_eq!(again, *said, "{submission:?} is answered differently after the restart");
        }
        (unknown.len(), answered.len())
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

    /// Every acknowledged record is there, in its version or a later one.
    pub(crate) async fn check(&self, gateway: &str) {
        let caller = Caller::sign_in(gateway, "clinician").await.unwrap();
        for (path, (version, state)) in &self.0.told.lock().await.acknowledged {
            let (status, record) = look(&caller, path).await;
            assert_eq!(status, StatusCode::OK, "{path} was acknowledged and is gone");
            // Every write is known by now: those without an answer were sent again.
            assert_eq!(record["version"].as_u64(), Some(*version), "{path} was acknowledged in version {version}");
            assert_eq!(record["state"], state.as_str(), "{path}");
        }
    }

    /// Every write has happened once: no more facts than the acknowledged writes have led to, and no fewer.
    pub(crate) async fn check_facts(&self, before: &Value, after: &Value) {
        let (before, after) = (before["facts"].as_u64().unwrap(), after["facts"].as_u64().unwrap());
        assert_eq!(after - before, self.0.told.lock().await.facts, "a write had no effect, or more than one");
    }

    /// Lineage of a few records of each kind, those that changed most among them: history, audit and row agree.
    pub(crate) async fn check_lineage(&self, gateway: &str) {
        let sre = Caller::sign_in(gateway, "sre").await.unwrap();
        let acknowledged = self.0.told.lock().await.acknowledged.clone();
        for path in ["/v1/patients/", "/v1/encounters/"].iter().flat_map(|kind| most_changed(&acknowledged, kind)) {
            let (kind, id) = path.trim_start_matches("/v1/").split_once('/').unwrap();
            let entity = kind.trim_end_matches('s');
            let (status, told) = sre.get(&format!("/v1/admin/lineage/{entity}/{id}?verify=true")).await.unwrap();
            assert_eq!(status, StatusCode::OK, "{path}");
            assert_eq!(told["verify"]["agrees"], true, "{path}: {told:#}");
        }
    }
}

/// Five records of a kind.
fn most_changed<'a>(acknowledged: &'a BTreeMap<String, (u64, String)>, kind: &str) -> Vec<&'a String> {
    let mut paths: Vec<_> = acknowledged.iter().filter(|(path, _)| path.starts_with(kind)).collect();
    paths.sort_unstable_by_key(|(_, (version, _))| std::cmp::Reverse(*version));
    paths.into_iter().take(5).map(|(path, _)| path).collect()
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

/// Not now, not so fast, not in time, or not from whoever was asked: none of them says what there is.
fn is_for_later(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::GATEWAY_TIMEOUT
            | StatusCode::BAD_GATEWAY
    )
}

/// Somebody who writes, at a system that is up: whoever cannot sign in now can in a while.
async fn clinician(gateway: &str) -> Caller {
    let give_up = Instant::now() + PATIENCE;
    loop {
        match Caller::sign_in(gateway, "clinician").await {
            Ok(caller) => return caller,
            Err(error) => assert!(Instant::now() < give_up, "no clinician can sign in: {error:#}"),
        }
        tokio::time::sleep(REFUSED_PAUSE).await;
    }
}

/// What a record is at present; whoever asks too often waits.
pub(crate) async fn look(caller: &Caller, path: &str) -> (StatusCode, Value) {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let (status, record) = caller.get(path).await.unwrap();
        if !is_for_later(status) || Instant::now() > give_up {
            return (status, record);
        }
        tokio::time::sleep(REFUSED_PAUSE).await;
    }
}

/// Sends again what is not available now: that is what a key is for.
async fn send(caller: &Caller, submission: &Submission) -> Said {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let (status, record) = caller.post(&submission.path, &submission.key, &submission.body).await.unwrap();
        if !is_for_later(status) || Instant::now() > give_up {
            return Said { status, record };
        }
        tokio::time::sleep(REFUSED_PAUSE).await;
    }
}

/// Why a write was not acknowledged.
enum Silence {
    /// Nobody answers any more.
    Gone,
    /// A gateway that is losing its services may say that it is for later; like no answer at all, that tells nothing.
    Refused,
}

struct Writer<'a> {
    workload: &'a Workload,
    caller: &'a Caller,
    last: Option<(Submission, Said)>,
    /// Which of the regulars comes next.
    turn: u64,
}

impl Writer<'_> {
    /// A patient who was not there before.
    async fn patient(&mut self) -> Result<String, Silence> {
        let number = self.workload.0.number.fetch_add(1, Ordering::Relaxed) + 1;
        let registration = self.caller.registration(number);
        let patient = self.write("/v1/patients".to_owned(), registration, "/v1/patients").await?;
        Ok(patient["id"].as_str().unwrap_or_default().to_owned())
    }

    /// A patient and their encounter.
    async fn encounter(&mut self) -> Result<(), Silence> {
        let patient = match self.workload.0.regulars.get() {
            Some(known) => {
                tokio::time::sleep(BETWEEN_VISITS).await;
                known[usize::try_from(self.turn).unwrap_or(0) % known.len()].clone()
            }
            None => self.patient().await?,
        };
        self.turn += WRITERS;
        let scheduling = json!({"facility_id": self.caller.facility, "provider_id": self.caller.provider,
            "kind": "telehealth", "scheduled_at": "2026-01-01T00:00:00Z"});
        let path = format!("/v1/patients/{patient}/encounters");
        let encounter = self.write(path.clone(), scheduling, "/v1/encounters").await?;
        let path = format!("{path}/{}", encounter["id"].as_str().unwrap_or_default());
        for (part, body) in [
            ("transitions", json!({"to": "in_progress"})),
            ("diagnoses", json!({"code": "J45.909"})),
            ("transitions", json!({"to": "completed"})),
        ] {
            self.write(format!("{path}/{part}"), body, "/v1/encounters").await?;
        }
        Ok(())
    }

    async fn write(&mut self, path: String, body: Value, under: &'static str) -> Result<Value, Silence> {
        let submission = Submission { path, key: fresh_key(), body, under };
        let in_flight = &self.workload.0.in_flight;
        in_flight.fetch_add(1, Ordering::SeqCst);
        let sent = Instant::now();
        let answer = self.caller.post(&submission.path, &submission.key, &submission.body).await;
        if answer.is_ok() {
            in_flight.fetch_sub(1, Ordering::SeqCst);
        }
        let took = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.workload.0.slowest_us.fetch_max(took, Ordering::SeqCst);
        let mut told = self.workload.0.told.lock().await;
        let (status, record) = match answer {
            Ok((status, record)) if status.is_success() => (status, record),
            Ok((status, problem)) if !is_for_later(status) => {
                panic!("{submission:?} was refused for good: {status}, {}", problem["type"])
            }
            other => {
                told.unknown.push(submission);
                return Err(if other.is_ok() { Silence::Refused } else { Silence::Gone });
            }
        };
        self.workload.0.acknowledgement.notify_waiters();
        let said = Said { status, record };
        told.acknowledge(&submission, &said);
        let record = said.record.clone();
        self.last = Some((submission, said));
        Ok(record)
    }
}

impl Workload {
    /// Asks the services that are left whether all that was acknowledged is there once, and stops them. What the stores say.
    pub(crate) async fn check_and_stop(&self, services: Program, before: &Value) -> Value {
        let gateway = services.told("gateway").to_owned();
        let summary = settled(&gateway).await;
        self.check(&gateway).await;
        self.check_facts(before, &summary).await;
        self.check_lineage(&gateway).await;
        let (code, last) = services.stop().await.unwrap();
        assert_eq!(code, Some(0), "{last:?}");
        summary
    }
}

/// Longest wait for rest. What there is after hundreds of kills takes a busy machine seconds to count.
const REST_MAX: Duration = Duration::from_secs(300);

/// Waits until nothing is on its way, then asks what the stores say.
pub(crate) async fn settled(gateway: &str) -> Value {
    let sre = Caller::sign_in(gateway, "sre").await.unwrap();
    let give_up = Instant::now() + REST_MAX;
    loop {
        let answer = sre.get("/v1/admin/runs/summary").await;
        if let Ok((StatusCode::OK, summary)) = &answer
            && summary["outbox_backlog"] == 0
            && summary["consumer_lag"] == 0
            && summary["holds"] == true
        {
            return summary.clone();
        }
        if Instant::now() >= give_up {
            let held = sre.get("/v1/admin/dead-letters").await;
            panic!("the flow did not come to rest: {answer:#?}\nwhat is held: {held:#?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
