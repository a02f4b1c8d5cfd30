//! A billing cycle submits every draft of its period and counts them, also of a bucket that changes its shard while the cycle runs,
//! and while another shard is away.

use std::time::Duration;

use http::StatusCode;
use pim_core::context::{IdempotencyScope, RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::id::Id;
use pim_core::rbac::{Permit, SystemScope, Write};
use pim_core::shard::ShardId;
use pim_data::backend::Statement;
use pim_data::cluster::{CONTROL, Cluster};
use pim_data::relocation::Mover;
use pim_events::{AppendExt as _, CommandSettings, OutboxOutlet, RetentionSettings};
use pim_lab::billing::{Claim, ClaimDrafted, ClaimState, Money};
use pim_lab::ids::{ClaimId, EncounterId, PatientId};
use pim_lab::jobs::{PERIOD_SETTLES, Worker, run};
use pim_lab::policy::{LabAction, LabResource};
use pim_lab::rig::Drain;
use pim_lab::workers::service_actor;
use serde_json::{Value, json};

use crate::world::{Answered, World};

/// More than a cycle of two shards ever needs here.
const STEPS_MAX: usize = 20;
const MOMENT: Duration = Duration::from_micros(1);

fn context() -> RequestContext {
    let actor = service_actor("test").unwrap();
    RequestContext::new(RequestId::mint(), actor, Deadline::after(Duration::from_secs(20)))
}

/// A patient of the second shard, with a draft.
async fn drafted(world: &World) -> (PatientId, ClaimId) {
    let patient_id = second_shards(world).await;
    (patient_id, draft(world, patient_id, "encounter").await)
}

async fn second_shards(world: &World) -> PatientId {
    second_shards_from(world, 0).await.0
}

/// The first of these numbers, and the number behind it.
async fn second_shards_from(world: &World, first: u32) -> (PatientId, u32) {
    let clinician = world.clinician();
    for number in first..first + 100 {
        let mut body = world.registration();
        body["syn_number"] = json!(format!("SYN-{number:08}"));
        let registered = world.post(&clinician, "/v1/patients", &format!("patient-{number}"), &body).await;
        let patient_id: PatientId = registered.id().parse().unwrap();
        if world.cluster.router().route(&patient_id).shard == ShardId(1) {
            return (patient_id, number + 1);
        }
    }
    panic!("no patient of the second shard");
}

/// Two patients of the second shard, of two buckets, as they lie there.
async fn neighbours(world: &World) -> (PatientId, PatientId) {
    let (one, mut next) = second_shards_from(world, 0).await;
    loop {
        let (other, behind) = second_shards_from(world, next).await;
        next = behind;
        if other.bucket() != one.bucket() {
            return if one.bucket().get() < other.bucket().get() { (one, other) } else { (other, one) };
        }
    }
}

/// The draft of an encounter that is planned for it.
pub(crate) async fn draft(world: &World, patient_id: PatientId, encounter: &str) -> ClaimId {
    draft_by(world, &world.cluster, patient_id, encounter).await
}

/// The same, drafted by another program.
async fn draft_by(world: &World, cluster: &Cluster, patient_id: PatientId, encounter: &str) -> ClaimId {
    let path = format!("/v1/patients/{patient_id}/encounters");
    let planned = world.post(&world.clinician(), &path, encounter, &world.scheduling()).await;
    let encounter_id: EncounterId = planned.id().parse().unwrap();
    let mut unit = cluster.begin(&context(), patient_id);
    let id: ClaimId = Id::child_derived(patient_id.bucket(), unit.at(), encounter.as_bytes(), 0);
    let (facility_id, total) = (world.facility, Money::usd_cents(12_000));
    let claim = Claim {
        id,
        version: 0,
        patient_id,
        facility_id,
        encounter_id,
        state: ClaimState::Draft,
        lines: Vec::new(),
        payments: Vec::new(),
        total,
        paid: Money::usd_cents(0),
    };
    let scope = SystemScope::new("draft a claim for a test");
    let permit = Permit::<Write>::system(scope, LabAction::Write, LabResource::Claim);
    let version = unit.save(&permit, &claim).unwrap();
    unit.append(&ClaimDrafted { claim_id: id, version, patient_id, facility_id, encounter_id, total }).unwrap();
    unit.commit().await.unwrap();
    id
}

/// For what has been drafted by now.
async fn asked(world: &World) {
    let to = world.clock.now().plus(MOMENT);
    world.pass(PERIOD_SETTLES + MOMENT);
    asked_for(world, "2020-01-01T00:00:00Z", &to.to_string()).await;
}

async fn asked_for(world: &World, from: &str, to: &str) {
    let cycle = ask_for(world, from, to).await;
    assert_eq!(cycle.status, StatusCode::CREATED, "{:?}", cycle.body);
}

async fn ask_for(world: &World, from: &str, to: &str) -> Answered {
    let period = json!({"from": from, "to": to});
    world.post(&world.session("admin", &[], None), "/v1/billing-cycles", to, &period).await
}

/// Changes what a shard's database looks like.
async fn changed(world: &World, shard: u16, sql: &str) {
    let mut tx = world.cluster.database(ShardId(shard)).unwrap().begin().await.unwrap();
    tx.script(sql).await.unwrap();
    tx.commit().await.unwrap();
}

/// As another program sees it that cannot read the claims of the first shard.
async fn without_claims(world: &World) -> Cluster {
    changed(world, 0, "ALTER TABLE claim_row RENAME TO claim_row_away").await;
    world.beside().await.cluster
}

async fn only_cycle(world: &World) -> Value {
    let cycles = world.get(&world.session("admin", &[], None), "/v1/billing-cycles").await;
    cycles.body["items"][0].clone()
}

/// State and count of the only cycle.
async fn told(world: &World) -> (String, u64) {
    let cycle = only_cycle(world).await;
    (cycle["state"].as_str().unwrap_or_default().to_owned(), cycle["submitted"].as_u64().unwrap())
}

/// Moves the patient's bucket to the first shard.
async fn moved(world: &World, patient: PatientId) {
    let relay = Drain::new();
    let (stores, stop) = (world.stores.clone(), relay.clone());
    let relaying = tokio::spawn(async move { stores.relay(20, &RetentionSettings::default(), stop).await });
    let (cx, mover) = (context(), Mover::new(&world.cluster, std::sync::Arc::new(OutboxOutlet)));
    let planned = mover.plan(&cx, [patient.bucket()], ShardId(0)).await.unwrap();
    mover.run(&cx, planned.id).await.unwrap();
    relay.begin();
    relaying.await.unwrap().unwrap();
    assert_eq!(world.cluster.router().route(&patient).shard, ShardId(0));
}

fn worker() -> Worker {
    Worker::new(Drain::new())
}

async fn finished(cluster: &Cluster, worker: &mut Worker) {
    for _ in 0..STEPS_MAX {
        if !worker.step(cluster).await.unwrap() {
            return;
        }
    }
    panic!("the cycle does not end");
}

async fn state(world: &World, claim: ClaimId) -> String {
    let shown = world.get(&world.session("admin", &[], None), &format!("/v1/claims/{claim}")).await;
    shown.body["state"].as_str().unwrap_or_default().to_owned()
}

/// Guard: a cycle that is done has looked at all claims of its period, so that none is begun while there may be more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_period_that_is_not_over() {
    let world = World::new().await;
    let patient = second_shards(&world).await;
    let (from, to) = ("2020-01-01T00:00:00Z", world.clock.now().plus(Duration::from_secs(1)));
    let over_at = to.plus(PERIOD_SETTLES);
    for wait in [Duration::ZERO, Duration::from_secs(1), PERIOD_SETTLES - MOMENT] {
        world.pass(wait);
        let refused = ask_for(&world, from, &to.to_string()).await;
        assert_eq!((refused.status, refused.problem()), (StatusCode::CONFLICT, "period-not-over"), "{wait:?}");
        assert_eq!(refused.body["over_at"], json!(over_at), "{:?}", refused.body);
        assert_eq!(only_cycle(&world).await, Value::Null, "nothing is left of it");
    }
    // As late as one may come that was drafted in the period.
    let slow = world.beside_behind_by(PERIOD_SETTLES).await;
    let claim = draft_by(&world, &slow.cluster, patient, "encounter").await;
    world.pass(MOMENT);
    asked_for(&world, from, &to.to_string()).await;
    finished(&world.cluster, &mut worker()).await;
    assert_eq!((state(&world, claim).await, told(&world).await), ("submitted".to_owned(), ("done".to_owned(), 1)));
}

/// Guard: a command that drafts a claim has less time than a period is left alone for.
#[test]
fn a_draft_is_committed_before_its_period_is_billed() {
    let patience = CommandSettings::of(service_actor("test").unwrap()).patience;
    assert!(patience < PERIOD_SETTLES, "{patience:?}");
}

/// Guard: what is left to look at is a matter of buckets; their shards may have been looked at before they came there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_bucket_that_moves_to_a_shard_that_was_looked_at() {
    let world = World::new().await;
    let (patient, claim) = drafted(&world).await;
    asked(&world).await;
    let mut worker = worker();
    assert!(worker.step(&world.cluster).await.unwrap(), "the buckets of the first shard");
    assert_eq!(state(&world, claim).await, "draft");
    moved(&world, patient).await;
    finished(&world.cluster, &mut worker).await;
    assert_eq!(state(&world, claim).await, "submitted");
}

/// Guard: a worker whose map is old asks a shard that has nothing any more, and must not believe it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_a_worker_whose_map_is_old() {
    let world = World::new().await;
    let (patient, claim) = drafted(&world).await;
    asked(&world).await;
    let (stale, mut worker) = (world.beside().await, worker());
    assert!(worker.step(&stale.cluster).await.unwrap(), "the buckets of the first shard");
    moved(&world, patient).await;
    assert_eq!(stale.cluster.router().route(&patient).shard, ShardId(1), "it has not heard of the move");
    finished(&stale.cluster, &mut worker).await;
    assert_eq!(state(&world, claim).await, "submitted");
}

/// Guard: a shard that does not answer keeps no claim of another one waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_shard_that_is_away() {
    let world = World::new().await;
    let (_, claim) = drafted(&world).await;
    asked(&world).await;
    let (cluster, mut worker) = (without_claims(&world).await, worker());
    assert!(worker.step(&cluster).await.is_err(), "the first shard is away");
    assert_eq!(state(&world, claim).await, "submitted");
    assert_eq!(told(&world).await, ("running".to_owned(), 1));
    let version = only_cycle(&world).await["version"].as_u64().unwrap();
    assert!(worker.step(&cluster).await.is_err(), "nothing of the first shard is passed over");
    let later = only_cycle(&world).await["version"].as_u64().unwrap();
    assert_eq!(later, version + 1, "there is nothing to write but that it is still at it");
    changed(&world, 0, "ALTER TABLE claim_row_away RENAME TO claim_row").await;
    finished(&cluster, &mut worker).await;
    assert_eq!(told(&world).await, ("done".to_owned(), 1));
}

/// Guard: cycles have their turns, whichever was asked for first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_cycle_behind_one_that_cannot_go_on() {
    let world = World::new().await;
    let (_, claim) = drafted(&world).await;
    asked_for(&world, "2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z").await;
    world.pass(Duration::from_secs(1));
    asked(&world).await;
    let (cluster, mut worker) = (without_claims(&world).await, worker());
    for _ in 0..2 {
        world.pass(Duration::from_secs(1));
        assert!(worker.step(&cluster).await.is_err(), "the first shard is away");
    }
    assert_eq!(state(&world, claim).await, "submitted");
}

/// Guard: the turns of cycles are no matter of clocks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_cycle_that_a_wrong_clock_changed_last() {
    let world = World::new().await;
    let (_, claim) = drafted(&world).await;
    asked(&world).await;
    let wrong = world.beside_ahead_by(Duration::from_secs(365 * 24 * 3600)).await;
    assert!(worker().step(&wrong.cluster).await.unwrap(), "the buckets of the first shard, and dies of it");
    asked_for(&world, "2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z").await;
    let (cluster, mut worker) = (without_claims(&world).await, worker());
    for _ in 0..3 {
        world.pass(Duration::from_secs(1));
        // The other cycle cannot go on.
        let _either = worker.step(&cluster).await;
    }
    assert_eq!(state(&world, claim).await, "submitted");
}

/// Guard: no lease is longer than one can be, whatever clock wrote it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_worker_whose_clock_was_a_year_ahead() {
    let world = World::new().await;
    let (_, claim) = drafted(&world).await;
    asked(&world).await;
    let wrong = world.beside_ahead_by(Duration::from_secs(365 * 24 * 3600)).await;
    assert!(worker().step(&wrong.cluster).await.unwrap(), "the buckets of the first shard, and dies of it");
    assert_eq!(state(&world, claim).await, "draft");
    finished(&world.cluster, &mut worker()).await;
    assert_eq!(state(&world, claim).await, "submitted");
}

/// Guard: what is submitted is counted, whatever becomes of the rest of its page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_counts_those_of_a_page_that_fails() {
    let world = World::new().await;
    let patient = second_shards(&world).await;
    let mut claims = Vec::new();
    for number in 0..5 {
        claims.push(draft(&world, patient, &format!("encounter-{number}")).await);
    }
    claims.sort_unstable_by_key(|claim| claim.uuid());
    asked(&world).await;
    let third = claims[2].uuid().simple();
    let refuse = format!(
        "CREATE TRIGGER refuse_third BEFORE UPDATE ON claim_row WHEN NEW.id = X'{third}' \
         BEGIN SELECT RAISE(ABORT, 'not this one'); END"
    );
    changed(&world, 1, &refuse).await;
    let mut worker = worker();
    assert!(worker.step(&world.cluster).await.unwrap(), "the buckets of the first shard");
    assert!(worker.step(&world.cluster).await.is_err(), "the third is refused");
    assert_eq!(told(&world).await, ("running".to_owned(), 4));
    changed(&world, 1, "DROP TRIGGER refuse_third").await;
    finished(&world.cluster, &mut worker).await;
    assert_eq!(told(&world).await, ("done".to_owned(), 5));
    for claim in claims {
        assert_eq!(state(&world, claim).await, "submitted");
    }
}

/// Guard: a claim that waits for something keeps others waiting for a second, and not until the page has no time left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_one_that_waits() {
    let world = World::new().await;
    let (waits, other) = neighbours(&world).await;
    for number in 0..4 {
        draft(&world, waits, &format!("encounter-{number}")).await;
    }
    let claim = draft(&world, other, "other").await;
    asked(&world).await;
    // As a move leaves it that has stopped half-way.
    let drain =
        |state| format!("UPDATE pim_bucket_owned SET state = '{state}' WHERE bucket = {}", waits.bucket().get());
    changed(&world, 1, &drain("draining")).await;
    let mut worker = worker();
    assert!(worker.step(&world.cluster).await.unwrap(), "the buckets of the first shard");
    let submitted = async {
        while state(&world, claim).await != "submitted" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Less than a page has.
    let submitted = tokio::time::timeout(Duration::from_secs(4), submitted);
    let (stepped, submitted) = tokio::join!(worker.step(&world.cluster), submitted);
    assert!(stepped.is_err(), "one bucket takes no writes");
    assert!(submitted.is_ok(), "the other does not wait for it");
    assert_eq!(told(&world).await, ("running".to_owned(), 1));
    changed(&world, 1, &drain("owned")).await;
    finished(&world.cluster, &mut worker).await;
    assert_eq!(told(&world).await, ("done".to_owned(), 5));
}

/// Guard: a claim that has failed is tried when nothing else is left to do, also by whoever comes to it first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_those_that_have_failed() {
    let world = World::new().await;
    let (before, behind) = neighbours(&world).await;
    let failing = draft(&world, before, "failing").await;
    asked(&world).await;
    // Refused until another one is submitted.
    let refuse = format!(
        "CREATE TRIGGER refuse BEFORE UPDATE ON claim_row WHEN NEW.id = X'{}' \
         AND NOT EXISTS (SELECT 1 FROM claim_row WHERE state = 'submitted') BEGIN SELECT RAISE(ABORT, 'not yet'); END",
        failing.uuid().simple()
    );
    changed(&world, 1, &refuse).await;
    let mut worker = worker();
    assert!(worker.step(&world.cluster).await.unwrap(), "the buckets of the first shard");
    assert!(worker.step(&world.cluster).await.is_err(), "it is refused");
    // By a clock of before the period's end.
    let slow = world.beside_behind_by(PERIOD_SETTLES * 2).await;
    let later = draft_by(&world, &slow.cluster, behind, "later").await;
    assert!(worker.step(&world.cluster).await.unwrap(), "the later one goes first");
    assert_eq!((state(&world, later).await, state(&world, failing).await), ("submitted".into(), "submitted".into()));
    finished(&world.cluster, &mut worker).await;
    assert_eq!(told(&world).await, ("done".to_owned(), 2));
}

/// Guard: a commit that was not answered is found by its record, so each submission and each note leaves one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_leaves_a_record_of_each_submission_and_note() {
    let world = World::new().await;
    let (_, claim) = drafted(&world).await;
    asked(&world).await;
    let recorded = async |shard: ShardId, ask| world.cluster.database(shard).unwrap().query(ask).await.unwrap().len();
    let notes = async || recorded(CONTROL, Statement::same("SELECT scope FROM idempotency")).await;
    let before = notes().await;
    finished(&world.cluster, &mut worker()).await;
    assert!(notes().await > before, "the notes of two pages");
    let cycle = only_cycle(&world).await;
    let scope =
        IdempotencyScope::new("billing-cycle", "SUBMIT", cycle["id"].as_str().unwrap(), &claim.to_string(), b"");
    let ask = Statement::same("SELECT 1 FROM idempotency WHERE scope = ?").bind(scope.scope());
    assert_eq!(recorded(ShardId(1), ask).await, 1);
}

/// Guard: a worker that is told to stop writes down what it has submitted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_counts_those_of_a_worker_that_is_stopped() {
    let world = World::new().await;
    let patient = second_shards(&world).await;
    for number in 0..30 {
        draft(&world, patient, &format!("encounter-{number}")).await;
    }
    asked(&world).await;
    let submitted = async || {
        let ask = Statement::same("SELECT id FROM claim_row WHERE state = 'submitted'");
        world.cluster.database(ShardId(1)).unwrap().query(ask).await.unwrap().len() as u64
    };
    let stop = Drain::new();
    let running = tokio::spawn(run(world.cluster.clone(), stop.clone()));
    while submitted().await == 0 {
        tokio::task::yield_now().await;
    }
    stop.begin();
    running.await.unwrap();
    assert_eq!(told(&world).await.1, submitted().await);
}
