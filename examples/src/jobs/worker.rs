//! The worker: leases a cycle, submits its claims page by page, and remembers after each page where it is.

use std::time::Duration;

use pim_core::context::{RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::id::Id;
use pim_core::rbac::{Permit, Read, SystemScope, Write};
use pim_core::shard::{Bucket, ShardId, ShardMap};
use pim_data::backend::{SqlPair, Statement};
use pim_data::cluster::{CONTROL, Cluster, DirectoryError};
use pim_data::repository::ReadError;
use pim_data::unit::{Tries, UnitError};
use pim_events::{AppendError, AppendExt as _};
use uuid::Uuid;

use super::cycle::{BillingCycle, CycleState};
use crate::billing::{Claim, ClaimMoved, ClaimState};
use crate::ids::{BillingCycleId, ClaimId, PatientId};
use crate::policy::{LabAction, LabResource};
use crate::reference::ReferenceChanged;
use crate::rig::Drain;
use crate::workers::service_actor;

/// How long a worker may be silent before another takes its cycle over.
pub const LEASE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(500);
const PAGE: u32 = 50;
const PATIENCE: Duration = Duration::from_secs(10);
const REASON: SystemScope = SystemScope::new("submit the claims of a billing cycle");

/// What stops a step; the next look tries again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// A unit of work failed.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// An event does not fit.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// Claims cannot be listed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The map of the shards cannot be read.
    #[error(transparent)]
    Map(#[from] DirectoryError),
    /// Nobody could write it down.
    #[error("the service's name is no subject")]
    Actor,
    /// The lease ran out.
    #[error("somebody else has taken the cycle over")]
    Lost,
}

/// Runs until told to stop; drop it at any point.
pub async fn run(cluster: Cluster, stop: Drain) {
    let worker = Uuid::new_v4();
    let work = async {
        loop {
            match step(&cluster, worker).await {
                Ok(true) => {}
                Ok(false) => tokio::time::sleep(LOOK_EVERY).await,
                Err(error) => {
                    pim_core::warn!("billing_cycle.step_failed", retryable = !matches!(error, JobError::Actor));
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.begun() => {}
    }
}

fn context() -> Result<RequestContext, JobError> {
    let actor = service_actor("billing-cycle").map_err(|_| JobError::Actor)?;
    Ok(RequestContext::new(RequestId::mint(), actor, Deadline::after(PATIENCE)))
}

/// Buckets that lie side by side on one shard, as one map has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    shard: ShardId,
    first: Bucket,
    last: Bucket,
}

impl Run {
    /// From a bucket on; `None` behind the last bucket.
    fn at(map: &ShardMap, first: u16) -> Option<Self> {
        let first = Bucket::new(first).ok()?;
        let (shard, _) = map.owner(first);
        let here = (first.get()..)
            .map_while(|bucket| Bucket::new(bucket).ok())
            .take_while(|bucket| map.owner(*bucket).0 == shard);
        Some(Self { shard, first, last: here.last()? })
    }
}

/// One page of one cycle; whether there was anything to do.
///
/// Bucket by bucket, not shard by shard: a bucket that moves takes its claims to a shard that may have been looked at.
///
/// # Errors
/// [`JobError`]; what was submitted before it stays so, and the next step goes on from there.
pub async fn step(cluster: &Cluster, worker: Uuid) -> Result<bool, JobError> {
    let Some(id) = open_cycle(cluster, worker).await? else { return Ok(false) };
    let cx = context()?;
    let Some(cycle) = lease(cluster, &cx, id, worker).await? else { return Ok(false) };
    let map = cluster.map();
    let Some(run) = Run::at(&map, cycle.bucket_at) else { return finish(cluster, &cx, &cycle, worker, 0).await };
    let permit = Permit::<Read>::system(REASON, LabAction::Read, LabResource::Claim);
    let rows = cluster.select::<Claim>(&cx, &permit, run.shard, drafts(&cycle, run)).await?;
    let _newest = cluster.refresh_map().await?;
    if cluster.map().version() != map.version() {
        // What was not found may have been taken away before it was looked for: look again, by the newer map.
        return Ok(true);
    }
    let mut submitted = 0;
    for row in &rows {
        let (claim, patient) = (row.uuid(0).map_err(UnitError::from)?, row.uuid(1).map_err(UnitError::from)?);
        submitted += u64::from(submit(cluster, &cx, claim, patient).await?);
    }
    let behind = match rows.last().filter(|_| rows.len() >= PAGE as usize) {
        Some(last) => {
            let bucket = last.count(2).map_err(UnitError::from)?;
            (u16::try_from(bucket).unwrap_or(u16::MAX), Some(last.uuid(0).map_err(UnitError::from)?))
        }
        None => (run.last.get() + 1, None),
    };
    if Bucket::new(behind.0).is_err() {
        return finish(cluster, &cx, &cycle, worker, submitted).await;
    }
    advance(cluster, &cx, &cycle, worker, |next| {
        next.submitted += submitted;
        (next.bucket_at, next.after) = behind;
    })
    .await
}

/// The next drafts of a period in a run of buckets.
fn drafts(cycle: &BillingCycle, run: Run) -> Statement {
    let text = format!(
        "SELECT id, home_key, bucket FROM claim WHERE state = 'draft' AND (bucket, id) > (?, ?) AND bucket <= ? \
         AND created_at >= ? AND created_at < ? ORDER BY bucket, id LIMIT {PAGE}"
    );
    let page = Statement::of(SqlPair::generated(text)).bind(run.first.get()).bind(cycle.after.unwrap_or(Uuid::nil()));
    page.bind(run.last.get()).bind(cycle.period_from).bind(cycle.period_to)
}

/// A cycle that waits, that is ours, or whose worker has been silent for too long.
async fn open_cycle(cluster: &Cluster, worker: Uuid) -> Result<Option<BillingCycleId>, JobError> {
    const SELECT: &str = "SELECT id FROM billing_cycle WHERE state = 'pending' \
         OR (state = 'running' AND (owner = ? OR lease_until < ?)) ORDER BY created_at LIMIT 1";
    let permit = Permit::<Read>::system(REASON, LabAction::Read, LabResource::BillingCycle);
    let waiting = Statement::same(SELECT).bind(worker).bind(cluster.clock().now());
    let rows = cluster.select::<BillingCycle>(&context()?, &permit, CONTROL, waiting).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Id::from_uuid(row.uuid(0).map_err(UnitError::from)?).ok())
}

/// Takes a cycle, or keeps it: of two workers at once the unit of work lets one win.
async fn lease(
    cluster: &Cluster,
    cx: &RequestContext,
    id: BillingCycleId,
    worker: Uuid,
) -> Result<Option<BillingCycle>, JobError> {
    let permit = Permit::<Write>::system(REASON, LabAction::Operate, LabResource::BillingCycle);
    let mut unit = cluster.begin_control(cx, id);
    let Some(mut cycle) = unit.load::<BillingCycle>(&permit, id).await? else { return Ok(None) };
    let now = unit.at();
    let is_taken =
        cycle.owner.is_some_and(|owner| owner != worker) && cycle.lease_until.is_some_and(|until| until >= now);
    if cycle.state == CycleState::Done || is_taken {
        return Ok(None);
    }
    (cycle.state, cycle.owner, cycle.lease_until) = (CycleState::Running, Some(worker), Some(now.plus(LEASE)));
    cycle.version = unit.save(&permit, &cycle)?;
    unit.append(&ReferenceChanged { table: "billing_cycle".to_owned(), id: id.uuid(), version: cycle.version })?;
    match unit.commit().await {
        Ok(_) => Ok(Some(cycle)),
        Err(UnitError::Conflict | UnitError::Stale { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Submits a claim if it is still a draft; a claim is submitted once, however often a page is begun.
async fn submit(cluster: &Cluster, cx: &RequestContext, claim: Uuid, patient: Uuid) -> Result<bool, JobError> {
    let (Ok(claim_id), Ok(patient_id)) = (ClaimId::from_uuid(claim), PatientId::from_uuid(patient)) else {
        return Ok(false);
    };
    let permit = Permit::<Write>::system(REASON, LabAction::Transition, LabResource::Claim);
    let mut tries = Tries::of(cluster, cx);
    loop {
        let mut unit = cluster.begin(cx, patient_id);
        let Some(mut claim) = unit.load::<Claim>(&permit, claim_id).await? else { return Ok(false) };
        if claim.state != ClaimState::Draft {
            return Ok(false);
        }
        claim.state = ClaimState::Submitted;
        let version = unit.save(&permit, &claim)?;
        let (facility_id, total) = (claim.facility_id, claim.total);
        let (from, to) = (ClaimState::Draft, ClaimState::Submitted);
        unit.append(&ClaimMoved { claim_id, version, patient_id, facility_id, from, to, total })?;
        match unit.commit().await {
            Ok(_) => return Ok(true),
            Err(error) if tries.again(&error).await => {}
            Err(error) => return Err(error.into()),
        }
    }
}

async fn finish(
    cluster: &Cluster,
    cx: &RequestContext,
    cycle: &BillingCycle,
    worker: Uuid,
    submitted: u64,
) -> Result<bool, JobError> {
    advance(cluster, cx, cycle, worker, |next| {
        next.submitted += submitted;
        (next.state, next.owner, next.lease_until) = (CycleState::Done, None, None);
    })
    .await
}

/// Remembers how far a cycle is, unless somebody else has it by now.
async fn advance(
    cluster: &Cluster,
    cx: &RequestContext,
    cycle: &BillingCycle,
    worker: Uuid,
    change: impl FnOnce(&mut BillingCycle),
) -> Result<bool, JobError> {
    let permit = Permit::<Write>::system(REASON, LabAction::Operate, LabResource::BillingCycle);
    let mut unit = cluster.begin_control(cx, cycle.id);
    let Some(mut next) = unit.load::<BillingCycle>(&permit, cycle.id).await? else { return Ok(false) };
    if next.owner != Some(worker) {
        return Err(JobError::Lost);
    }
    next.lease_until = Some(unit.at().plus(LEASE));
    change(&mut next);
    let version = unit.save(&permit, &next)?;
    unit.append(&ReferenceChanged { table: "billing_cycle".to_owned(), id: cycle.id.uuid(), version })?;
    unit.commit().await?;
    Ok(true)
}
