//! A worker's turn at a cycle: it takes it, and writes down how far it is.

use pim_core::context::{IdempotencyScope, RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::id::Id;
use pim_core::rbac::{Permit, Read, Write};
use pim_data::backend::Statement;
use pim_data::cluster::{CONTROL, Cluster};
use pim_data::unit::{Tries, Unit, UnitError};
use pim_events::AppendExt as _;
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use super::super::cycle::{BillingCycle, CycleState};
use super::page::Place;
use super::{JobError, LEASE, PATIENCE, REASON};
use crate::ids::BillingCycleId;
use crate::policy::{LabAction, LabResource};
use crate::reference::ReferenceChanged;
use crate::rig::{CLOCKS_APART_MAX, holds};
use crate::workers::service_actor;

/// Who writes it all.
const ACTOR: &str = "billing-cycle";

/// A cycle that is this worker's, as it was taken.
pub(super) struct Turn<'a> {
    cluster: &'a Cluster,
    worker: Uuid,
    request: RequestId,
    cycle: BillingCycle,
    /// When it last said that the cycle is its own.
    leased: Instant,
    has_submitted: bool,
}

impl<'a> Turn<'a> {
    /// Takes the cycle that has waited longest, or keeps it: of two workers at once the unit of work lets one win.
    pub(super) async fn take(cluster: &'a Cluster, worker: Uuid) -> Result<Option<Self>, JobError> {
        let request = RequestId::mint();
        let cx = context(request)?;
        let Some(id) = open_cycle(cluster, &cx, worker).await? else { return Ok(None) };
        let leased = Instant::now();
        let cycle = lease(cluster, &cx, id, worker).await?;
        Ok(cycle.map(|cycle| Self { cluster, worker, request, cycle, leased, has_submitted: false }))
    }

    pub(super) const fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    pub(super) const fn cycle(&self) -> &BillingCycle {
        &self.cycle
    }

    /// Whether it has submitted anything.
    pub(super) const fn has_submitted(&self) -> bool {
        self.has_submitted
    }

    /// A piece of this turn, with time of its own.
    pub(super) fn context(&self) -> Result<RequestContext, JobError> {
        context(self.request)
    }

    /// What makes something that is done for this cycle the same, should nobody say whether it was done.
    pub(super) fn submission(&self, what: &str, key: &str) -> IdempotencyScope {
        IdempotencyScope::new(ACTOR, what, &self.cycle.id.to_string(), key, b"")
    }

    /// Adds to what the cycle has submitted, and keeps it. Writes only where there is something to say: whoever cannot go on
    /// fills no trail.
    pub(super) async fn tell(&mut self, submitted: u64) -> Result<(), JobError> {
        if submitted == 0 && self.leased.elapsed() < LEASE / 4 {
            return Ok(());
        }
        self.note(submitted, None).await
    }

    /// Adds to what the cycle has submitted, keeps it, and goes to a place if there is one.
    ///
    /// What was submitted counts also when somebody else has the cycle by now; where that one is, stays.
    pub(super) async fn note(&mut self, submitted: u64, place: Option<Place>) -> Result<(), JobError> {
        self.has_submitted |= submitted > 0;
        let leased = Instant::now();
        self.write(submitted, place).await?;
        self.leased = leased;
        Ok(())
    }

    async fn write(&self, submitted: u64, place: Option<Place>) -> Result<(), JobError> {
        let scope = self.submission("NOTE", &Uuid::new_v4().to_string());
        let cx = self.context()?.with_idempotency(scope);
        let mut tries = Tries::of(self.cluster, &cx);
        loop {
            match self.noted(&cx, submitted, place).await {
                // It had been written, and nobody said so.
                Err(JobError::Unit(UnitError::Replay(_))) => return Ok(()),
                Err(JobError::Unit(error)) if tries.again(&error).await => {}
                outcome => return outcome,
            }
        }
    }

    async fn noted(&self, cx: &RequestContext, submitted: u64, place: Option<Place>) -> Result<(), JobError> {
        let permit = Permit::<Write>::system(REASON, LabAction::Operate, LabResource::BillingCycle);
        let mut unit = self.cluster.begin_control(cx, self.cycle.id);
        let Some(mut next) = unit.load::<BillingCycle>(&permit, self.cycle.id).await? else { return Ok(()) };
        let is_ours = next.owner == Some(self.worker);
        if !is_ours && submitted == 0 {
            return Err(JobError::Lost);
        }
        next.submitted += submitted;
        if is_ours {
            next.lease_until = Some(unit.at().plus(LEASE));
            place.into_iter().for_each(|place| go_to(&mut next, place));
        }
        save(&mut unit, &permit, &mut next)?;
        unit.answer(200, &Value::Null);
        unit.commit().await?;
        if is_ours { Ok(()) } else { Err(JobError::Lost) }
    }
}

fn context(request: RequestId) -> Result<RequestContext, JobError> {
    let actor = service_actor(ACTOR).map_err(|_| JobError::Actor)?;
    Ok(RequestContext::new(request, actor, Deadline::after(PATIENCE)))
}

/// A cycle that waits, that is ours, or whose worker has been silent for too long: each in turn, so that none waits for another
/// that cannot go on. The order is that of their last changes as the database has numbered them: a time would be some worker's
/// clock, and one that was ahead would put its cycle behind all others until that time has come.
async fn open_cycle(cluster: &Cluster, cx: &RequestContext, worker: Uuid) -> Result<Option<BillingCycleId>, JobError> {
    const SELECT: &str = "SELECT id FROM billing_cycle c WHERE state = 'pending' \
         OR (state = 'running' AND (owner = ? OR lease_until < ? OR lease_until > ?)) \
         ORDER BY (SELECT h.history_seq FROM billing_cycle_past h WHERE h.id = c.id ORDER BY h.valid_from DESC LIMIT 1) \
         LIMIT 1";
    let permit = Permit::<Read>::system(REASON, LabAction::Read, LabResource::BillingCycle);
    let now = cluster.clock().now();
    let waiting = Statement::same(SELECT).bind(worker).bind(now).bind(now.plus(LEASE + CLOCKS_APART_MAX));
    let rows = cluster.select::<BillingCycle>(cx, &permit, CONTROL, waiting).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Id::from_uuid(row.uuid(0).map_err(UnitError::from)?).ok())
}

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
    let by_another = cycle.owner.is_some_and(|owner| owner != worker);
    let is_taken = by_another && cycle.lease_until.is_some_and(|until| holds(until, LEASE, now));
    if cycle.state == CycleState::Done || is_taken {
        return Ok(None);
    }
    (cycle.state, cycle.owner, cycle.lease_until) = (CycleState::Running, Some(worker), Some(now.plus(LEASE)));
    save(&mut unit, &permit, &mut cycle)?;
    match unit.commit().await {
        Ok(_) => Ok(Some(cycle)),
        Err(UnitError::Conflict | UnitError::Stale { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The cycle as it is to be, with the event that tells caches of it.
fn save(unit: &mut Unit, permit: &Permit<Write>, cycle: &mut BillingCycle) -> Result<(), JobError> {
    cycle.version = unit.save(permit, &*cycle)?;
    unit.append(&ReferenceChanged { table: "billing_cycle".to_owned(), id: cycle.id.uuid(), version: cycle.version })?;
    Ok(())
}

/// Goes on there, or ends where nothing is left.
fn go_to(cycle: &mut BillingCycle, place: Place) {
    if place.is_end() {
        (cycle.state, cycle.owner, cycle.lease_until) = (CycleState::Done, None, None);
    } else {
        (cycle.bucket_at, cycle.after) = (place.bucket, place.after);
    }
}
