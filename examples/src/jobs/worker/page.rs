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

    /// The place behind it.
    pub(super) const fn behind(self) -> Place {
        Place { bucket: self.last.get() + 1, after: None }
    }

    /// The place behind the first of a page's drafts.
    pub(super) fn behind_those(self, drafts: &[Draft], count: usize) -> Place {
        let is_page_full = drafts.len() >= PAGE as usize;
        match drafts.get(..count).and_then(<[Draft]>::last) {
            Some(last) if is_page_full || count < drafts.len() => {
                Place { bucket: last.bucket, after: Some(last.claim) }
            }
            _ => self.behind(),
        }
    }

    /// The next drafts, behind a claim of its first bucket.
    pub(super) async fn drafts(
        self,
        turn: &Turn<'_>,
        cx: &RequestContext,
        after: Option<Uuid>,
    ) -> Result<Vec<Draft>, JobError> {
        let permit = Permit::<Read>::system(REASON, LabAction::Read, LabResource::Claim);
        let page = drafts(turn.cycle(), self, after);
        let rows = turn.cluster().select::<Claim>(cx, &permit, self.shard, page).await?;
        let drafts: Result<_, UnitError> = rows.iter().map(Draft::of).collect();
        Ok(drafts?)
    }
}

/// A claim to be submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) claim: Uuid,
    patient: Uuid,
    pub(super) bucket: u16,
}

impl Draft {
    fn of(row: &Row) -> Result<Self, UnitError> {
        let bucket = u16::try_from(row.count(2)?).unwrap_or(u16::MAX);
        Ok(Self { claim: row.uuid(0)?, patient: row.uuid(1)?, bucket })
    }

    /// Submits it; whether this has done it.
    pub(super) async fn submit(&self, turn: &Turn<'_>, cx: &RequestContext) -> Result<bool, JobError> {
        let scope = turn.submission("SUBMIT", &self.claim.to_string());
        submit(turn.cluster(), &cx.clone().with_idempotency(scope), self.claim, self.patient).await
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

    /// Whether nothing is left.
    pub(super) fn is_end(self) -> bool {
        Bucket::new(self.bucket).is_err()
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
