//! A page of draft claims, and their submission.

use pim_core::context::RequestContext;
use pim_core::rbac::{Permit, Read, Write};
use pim_core::shard::{Bucket, ShardId, ShardMap};
use pim_data::backend::{Row, SqlPair, Statement};
use pim_data::cluster::Cluster;
use pim_data::unit::{Tries, UnitError};
use pim_events::AppendExt as _;
use serde_json::Value;
use uuid::Uuid;

use super::super::cycle::BillingCycle;
use super::turn::Turn;
use super::{JobError, REASON};
use crate::billing::{Claim, ClaimMoved, ClaimState};
use crate::ids::{ClaimId, PatientId};
use crate::policy::{LabAction, LabResource};

const PAGE: u32 = 50;

/// Buckets that lie side by side on one shard, as one map has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) shard: ShardId,
    first: Bucket,
    last: Bucket,
}

impl Run {
    /// From a bucket on; `None` behind the last bucket.
    pub(super) fn at(map: &ShardMap, first: u16) -> Option<Self> {
        let first = Bucket::new(first).ok()?;
        let (shard, _) = map.owner(first);
        let here = (first.get()..)
            .map_while(|bucket| Bucket::new(bucket).ok())
            .take_while(|bucket| map.owner(*bucket).0 == shard);
        Some(Self { shard, first, last: here.last()? })
    }

    /// The one behind it.
    pub(super) fn next(self, map: &ShardMap) -> Option<Self> {
        Self::at(map, self.last.get() + 1)
    }
}

/// Where a cycle goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Behind the last one when nothing is left.
    pub(super) bucket: u16,
    /// The claim behind which to go on there.
    pub(super) after: Option<Uuid>,
}

impl Place {
    /// Where it has been left.
    pub(super) const fn of(cycle: &BillingCycle) -> Self {
        Self { bucket: cycle.bucket_at, after: cycle.after }
    }

    /// Behind the rows of a page of a run.
    fn behind(rows: &[Row], run: Run) -> Result<Self, UnitError> {
        let Some(last) = rows.last().filter(|_| rows.len() >= PAGE as usize) else {
            return Ok(Self { bucket: run.last.get() + 1, after: None });
        };
        let bucket = u16::try_from(last.count(2)?).unwrap_or(u16::MAX);
        Ok(Self { bucket, after: Some(last.uuid(0)?) })
    }

    /// Whether nothing is left.
    pub(super) fn is_end(self) -> bool {
        Bucket::new(self.bucket).is_err()
    }
}

/// What a page came to.
pub(super) struct Page {
    /// Claims that it has submitted, also when it has failed.
    pub(super) submitted: u64,
    /// What comes behind it.
    pub(super) end: Result<Place, JobError>,
}

impl Page {
    /// Submits the next drafts of a run, behind a claim of its first bucket.
    pub(super) async fn of(turn: &Turn<'_>, run: Run, after: Option<Uuid>) -> Self {
        let mut submitted = 0;
        let end = pass(turn, run, after, &mut submitted).await;
        Self { submitted, end }
    }
}

async fn pass(turn: &Turn<'_>, run: Run, after: Option<Uuid>, submitted: &mut u64) -> Result<Place, JobError> {
    let (cx, cluster) = (turn.context()?, turn.cluster());
    let permit = Permit::<Read>::system(REASON, LabAction::Read, LabResource::Claim);
    let rows = cluster.select::<Claim>(&cx, &permit, run.shard, drafts(turn.cycle(), run, after)).await?;
    let mut failed = None;
    for row in &rows {
        let (claim, patient) = (row.uuid(0).map_err(UnitError::from)?, row.uuid(1).map_err(UnitError::from)?);
        let scope = turn.submission("SUBMIT", &claim.to_string());
        match submit(cluster, &cx.clone().with_idempotency(scope), claim, patient).await {
            Ok(is_moved) => *submitted += u64::from(is_moved),
            // The others do not wait for it.
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(Place::behind(&rows, run)?),
    }
}

/// The next drafts of a period in a run of buckets.
fn drafts(cycle: &BillingCycle, run: Run, after: Option<Uuid>) -> Statement {
    let text = format!(
        "SELECT id, home_key, bucket FROM claim WHERE state = 'draft' AND (bucket, id) > (?, ?) AND bucket <= ? \
         AND created_at >= ? AND created_at < ? ORDER BY bucket, id LIMIT {PAGE}"
    );
    let page = Statement::of(SqlPair::generated(text)).bind(run.first.get()).bind(after.unwrap_or(Uuid::nil()));
    page.bind(run.last.get()).bind(cycle.period_from).bind(cycle.period_to)
}

/// Submits a claim if it is still a draft; a claim is submitted once, however often a page is begun. Whether this has done it.
///
/// The context carries what makes it the same submission: a commit that nobody answered is found by its record.
async fn submit(cluster: &Cluster, cx: &RequestContext, claim: Uuid, patient: Uuid) -> Result<bool, JobError> {
    let (Ok(claim_id), Ok(patient_id)) = (ClaimId::from_uuid(claim), PatientId::from_uuid(patient)) else {
        return Ok(false);
    };
    let permit = Permit::<Write>::system(REASON, LabAction::Transition, LabResource::Claim);
    let mut tries = Tries::of(cluster, cx);
    loop {
        let mut unit = cluster.begin(cx, patient_id);
        let mut claim = match unit.load::<Claim>(&permit, claim_id).await {
            Ok(Some(claim)) if claim.state == ClaimState::Draft => claim,
            // Whoever was faster has counted it.
            Ok(_) | Err(UnitError::Replay(_)) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        claim.state = ClaimState::Submitted;
        let version = unit.save(&permit, &claim)?;
        let (facility_id, total) = (claim.facility_id, claim.total);
        let (from, to) = (ClaimState::Draft, ClaimState::Submitted);
        unit.append(&ClaimMoved { claim_id, version, patient_id, facility_id, from, to, total })?;
        unit.answer(200, &Value::Null);
        match unit.commit().await {
            Ok(_) => return Ok(true),
            Err(UnitError::Replay(_)) => return Ok(false),
            Err(error) if tries.again(&error).await => {}
            Err(error) => return Err(error.into()),
        }
    }
}
