//! Guards: nobody begins an operation beside one that goes on, and nobody writes over the row of another.

use std::path::PathBuf;

use pim_core::clock::Clock;
use pim_core::context::{IdempotencyScope, RequestId};
use pim_core::identity::Actor;
use pim_core::rbac::SystemScope;
use pim_core::role::RoleCode;
use pim_data::cluster::Access;
use serde_json::json;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::*;
use crate::policy::{LabAction, LabRole};
use crate::rig::reasons;
use crate::signals::Hub;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_millis(5);

struct Place {
    folder: PathBuf,
    clock: Clock,
    cluster: Cluster,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _leftover = std::fs::remove_dir_all(&self.folder);
    }
}

fn intent() -> Intent {
    Intent::new("backup.take", "", json!({}))
}

fn permit() -> Permit<Write> {
    const REASON: SystemScope = SystemScope::new("an operation of a test");
    Permit::<Write>::system(REASON, LabAction::Operate, LabResource::Operation)
}

fn context() -> RequestContext {
    let actor = Actor::new("dev-sre".parse().expect("a subject"), RoleCode::of(LabRole::Sre));
    let cx = RequestContext::new(RequestId::mint(), actor, Deadline::after(PATIENCE));
    cx.with_idempotency(IdempotencyScope::new("dev-sre", "POST", "/v1/admin/backups", "k", b"{}"))
}

fn told(outcome: Result<Answer, Failure>) -> String {
    match outcome {
        Ok(answer) => format!("{answer:?}"),
        Err(failure) => failure.into_problem().kind().slug.to_owned(),
    }
}

impl Place {
    async fn open() -> Self {
        let folder = std::env::temp_dir().join(format!("pim-ledger-{}", Uuid::new_v4()));
        let clock = Clock::manual(Timestamp::from_micros(1_800_000_000_000_000));
        let hub = Hub::new(None).expect("binds");
        let stores = Stores::open(&folder, Some(1), Access::Shared, clock.clone(), &hub).await.expect("opens");
        Self { folder, clock, cluster: stores.cluster }
    }

    async fn row(&self) -> Option<OperationRecord> {
        let (cx, permit) = (context(), permit());
        let id = id_of(&cx).expect("has a key");
        let cx = RequestContext::new(cx.request_id(), cx.actor().clone(), Deadline::after(PATIENCE));
        let mut unit = self.cluster.begin_control(&cx, id);
        unit.load(&permit, id).await.unwrap_or_else(|error| panic!("{}", reasons(&error)))
    }

    /// Waits until the row is as it should be.
    async fn until(&self, is_so: impl Fn(&OperationRecord) -> bool) {
        let give_up = tokio::time::Instant::now() + PATIENCE;
        loop {
            let row = self.row().await;
            if row.as_ref().is_some_and(&is_so) {
                return;
            }
            assert!(tokio::time::Instant::now() < give_up, "{row:?}");
            tokio::time::sleep(SOON).await;
        }
    }

    /// Begins one in a task; it ends as it is told to.
    fn begun(&self, by: &'static str) -> (oneshot::Sender<bool>, tokio::task::JoinHandle<String>) {
        let (tell, word) = oneshot::channel();
        let cluster = self.cluster.clone();
        let effect = async move {
            match word.await {
                Ok(true) => Answer::ok(&json!({"by": by})),
                _ => Err(Problem::of(problem::UNAVAILABLE).into()),
            }
        };
        let work = async move { told(operate(&cluster, &permit(), &context(), intent(), effect).await) };
        (tell, tokio::spawn(work))
    }

    async fn asked_again(&self) -> String {
        told(operate(&self.cluster, &permit(), &context(), intent(), async { Answer::ok(&json!({})) }).await)
    }
}

#[test]
fn a_lease_outlives_a_word_that_is_lost() {
    assert!(RENEWED_EVERY * 3 + CLOSING < LEASE);
}

#[tokio::test]
async fn what_takes_as_long_as_it_takes_is_not_begun_beside_itself() {
    let place = Place::open().await;
    let (tell, word) = oneshot::channel::<()>();
    let (cluster, permit, cx) = (place.cluster.clone(), permit(), context());
    let effect = async move {
        word.await.map_err(|_| Problem::of(problem::INTERNAL))?;
        Answer::ok(&json!({"by": "the first"}))
    };
    let work = tokio::spawn(async move {
        let doing = Doing { cluster: &cluster, permit: &permit, cx: &cx, id: id_of(&cx)? };
        doing.through(&intent(), SOON, effect).await
    });
    place.until(|row| row.version >= 1).await;
    for _ in 0..3 {
        place.clock.advance(LEASE - Duration::from_secs(1));
        let now = place.clock.now();
        place.until(|row| row.began_at == now).await;
        assert_eq!(place.asked_again().await, "operation-in-progress");
    }
    tell.send(()).expect("is waited for");
    let first = told(work.await.expect("ends"));
    assert!(first.contains("the first"), "{first}");
    place.until(|row| row.state == OperationState::Done).await;
    let again = place.asked_again().await;
    assert!(again.contains("the first"), "the same key is the same operation: {again}");
}

#[tokio::test]
async fn it_goes_on_when_nobody_waits_for_it() {
    let place = Place::open().await;
    let (tell, word) = oneshot::channel::<()>();
    let effect = async move {
        word.await.map_err(|_| Problem::of(problem::INTERNAL))?;
        Answer::ok(&json!({}))
    };
    let permit = permit();
    let asked = operate_to_its_end(place.cluster.clone(), &permit, context(), intent(), effect);
    let left = tokio::select! {
        _ = asked => false,
        () = place.until(|row| row.state == OperationState::Begun) => true,
    };
    assert!(left, "it ends when it is told to");
    tell.send(()).expect("is waited for");
    place.until(|row| row.state == OperationState::Done).await;
}

/// Guard: an operation of a program whose clock was a year ahead is not in progress for that year.
#[tokio::test]
async fn a_clock_that_was_ahead_keeps_no_operation_from_being_done() {
    let place = Place::open().await;
    let ahead = Clock::manual(place.clock.now().plus(Duration::from_secs(365 * 24 * 3600)));
    let hub = Hub::new(None).expect("binds");
    let wrong = Stores::open(&place.folder, Some(1), Access::Shared, ahead, &hub).await.expect("opens");
    let (cx, permit) = (context(), permit());
    let doing = Doing { cluster: &wrong.cluster, permit: &permit, cx: &cx, id: id_of(&cx).expect("has a key") };
    let Ok(Begun::Now(_and_dies_of_it)) = doing.begin(&intent()).await else { panic!("begins") };
    let again = place.asked_again().await;
    assert!(!again.contains("in-progress"), "{again}");
    assert_eq!(place.row().await.map(|row| row.state), Some(OperationState::Done));
}

#[tokio::test]
async fn whoever_was_taken_for_broken_off_writes_over_nobody() {
    for succeeds in [false, true] {
        let place = Place::open().await;
        let (tell, first) = place.begun("the first");
        place.until(|row| row.version == 1).await;
        place.clock.advance(LEASE);
        let (tell_second, second) = place.begun("the second");
        place.until(|row| row.version == 2).await;
        tell.send(succeeds).expect("is waited for");
        let told = first.await.expect("ends");
        assert_eq!(told, if succeeds { "operation-in-progress" } else { "unavailable" });
        let row = place.row().await.expect("is there");
        assert_eq!((row.version, row.state), (2, OperationState::Begun), "that one goes on");
        tell_second.send(true).expect("is waited for");
        assert!(second.await.expect("ends").contains("the second"));
        assert_eq!(place.row().await.map(|row| row.state), Some(OperationState::Done));
    }
}

#[tokio::test]
async fn nor_says_of_anothers_row_that_it_goes_on() {
    let place = Place::open().await;
    let (cx, permit) = (context(), permit());
    let doing = Doing { cluster: &place.cluster, permit: &permit, cx: &cx, id: id_of(&cx).expect("has a key") };
    let Ok(Begun::Now(mut first)) = doing.begin(&intent()).await else { panic!("begins") };
    place.clock.advance(LEASE);
    let Ok(Begun::Now(_second)) = doing.begin(&intent()).await else { panic!("begins again") };
    let row = place.row().await;
    place.clock.advance(Duration::from_secs(1));
    renew(&place.cluster, &permit, &doing.closing(), doing.id, &mut first).await.expect("finds another's");
    assert_eq!(place.row().await, row);
}
