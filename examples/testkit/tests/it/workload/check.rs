//! What was acknowledged is there, once and for good.

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use pim_testkit::caller::Caller;
use pim_testkit::program::Program;
use serde_json::Value;
use tokio::time::Instant;

use super::writer::{is_for_later, send};
use super::{PATIENCE, REFUSED_PAUSE, Workload};

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

impl Workload {
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

/// Five records of a kind.
fn most_changed<'a>(acknowledged: &'a BTreeMap<String, (u64, String)>, kind: &str) -> Vec<&'a String> {
    let mut paths: Vec<_> = acknowledged.iter().filter(|(path, _)| path.starts_with(kind)).collect();
    paths.sort_unstable_by_key(|(_, (version, _))| std::cmp::Reverse(*version));
    paths.into_iter().take(5).map(|(path, _)| path).collect()
}
