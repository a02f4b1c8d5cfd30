//! A worker's way through a cycle in one step: page by page, past claims that fail and shards that are away.

use std::collections::BTreeMap;
use std::time::Duration;

use pim_core::context::RequestContext;
use pim_core::deadline::Deadline;
use pim_core::shard::{ShardId, ShardMap};
use pim_data::unit::UnitError;
use tokio::time::Instant;
use uuid::Uuid;

use super::held::Held;
use super::page::{Draft, Place, Run};
use super::turn::Turn;
use super::{JobError, LEASE};
use crate::rig::Drain;

/// What a claim may keep others waiting; one that needs longer has what is left of a step when nothing else is to be done.
const EACH: Duration = Duration::from_secs(1);
/// As many failures without a success between them are the shard's, not the claims'.
const STRIKES: u32 = 3;

/// A step's way.
pub(super) struct Walk<'a> {
    pub(super) turn: Turn<'a>,
    held: &'a mut Held,
    stop: &'a Drain,
    /// Drafts that were met and left for the end.
    last: Vec<(Draft, ShardId)>,
    strikes: BTreeMap<ShardId, u32>,
    failed: Option<JobError>,
}

/// What a page came to.
pub(super) struct Page {
    /// Claims that it has submitted, also when it has failed.
    pub(super) submitted: u64,
    pub(super) end: End,
}

/// Where a page ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// Nothing is left before it.
    Done(Place),
    /// Something is left before it: the cycle stays, and what is behind is done beside.
    Left(Place),
}

impl<'a> Walk<'a> {
    pub(super) fn new(turn: Turn<'a>, held: &'a mut Held, stop: &'a Drain) -> Self {
        Self { turn, held, stop, last: Vec::new(), strikes: BTreeMap::new(), failed: None }
    }

    /// Remembers why the cycle cannot go on; the first reason is told.
    pub(super) fn fail(&mut self, error: JobError) {
        self.failed.get_or_insert(error);
    }

    /// Why it cannot go on, if so.
    pub(super) fn outcome(self) -> Result<(), JobError> {
        self.failed.map_or(Ok(()), Err)
    }

    /// Submits the next drafts of a run, behind a claim of its first bucket, for half a lease.
    pub(super) async fn page(&mut self, run: Run, after: Option<Uuid>) -> Page {
        let outcome = match self.turn.context() {
            Ok(cx) => run.drafts(&self.turn, &cx, after).await.map(|drafts| (drafts, cx.deadline())),
            Err(error) => Err(error),
        };
        match outcome {
            Ok((drafts, until)) => self.submit_all(run, &drafts, until).await,
            Err(error) => {
                self.strikes.insert(run.shard, STRIKES);
                self.fail(error);
                Page { submitted: 0, end: End::Left(run.behind()) }
            }
        }
    }

    async fn submit_all(&mut self, run: Run, drafts: &[Draft], until: Deadline) -> Page {
        let (mut submitted, mut looked_at, mut is_done, mut stuck) = (0, 0, true, None);
        for (index, draft) in drafts.iter().enumerate() {
            // One at least, or a shard that is slow to list them would see none of them submitted.
            if index > 0 && self.is_over(until) {
                break;
            }
            looked_at = index + 1;
            if stuck == Some(draft.bucket) || self.held.turn_of(draft.claim).is_some() {
                self.leave(*draft, run.shard);
                is_done = false;
                continue;
            }
            match self.submit(draft, run.shard, self.turn.context().map(|cx| cx.capped(EACH))).await {
                Ok(is_moved) => submitted += u64::from(is_moved),
                Err(error) => {
                    is_done = false;
                    // Those of the same bucket would wait for the same.
                    stuck = has_waited(&error).then_some(draft.bucket).or(stuck);
                    self.fail(error);
                    if self.is_away(run.shard) {
                        return Page { submitted, end: End::Left(run.behind()) };
                    }
                }
            }
        }
        let place = run.behind_those(drafts, looked_at);
        Page { submitted, end: if is_done { End::Done(place) } else { End::Left(place) } }
    }

    /// Leaves it for the end of the step.
    fn leave(&mut self, draft: Draft, shard: ShardId) {
        if self.held.turn_of(draft.claim).is_none() {
            self.held.hold(draft.claim);
        }
        self.last.push((draft, shard));
    }

    async fn submit(
        &mut self,
        draft: &Draft,
        shard: ShardId,
        cx: Result<RequestContext, JobError>,
    ) -> Result<bool, JobError> {
        let outcome = match cx {
            Ok(cx) => draft.submit(&self.turn, &cx).await,
            Err(error) => Err(error),
        };
        match &outcome {
            Ok(_) => {
                self.held.release(draft.claim);
                self.strikes.remove(&shard);
            }
            Err(error) => {
                self.held.hold(draft.claim);
                if is_of_shard(error) {
                    *self.strikes.entry(shard).or_default() += 1;
                }
            }
        }
        outcome
    }

    /// Does what is behind a page that has left something, for a lease. The cycle stays where it is and comes to all of it once
    /// more: a claim that is submitted by then is no draft.
    pub(super) async fn beside(&mut self, map: &ShardMap, from: Place) -> Result<(), JobError> {
        let until = Deadline::after(LEASE);
        let mut next = from;
        while !self.is_over(until) {
            let Some(run) = Run::at(map, next.bucket) else { break };
            // It is waited for once.
            if self.is_away(run.shard) {
                next = run.behind();
                continue;
            }
            let page = self.page(run, next.after).await;
            self.turn.tell(page.submitted).await?;
            let (End::Done(place) | End::Left(place)) = page.end;
            next = place;
        }
        Ok(())
    }

    /// Tries what was left for the end, for half a lease. Each may need what there is of it, also where a shard seems to be away:
    /// it may only be slow.
    pub(super) async fn last(&mut self) -> Result<(), JobError> {
        let cx = self.turn.context()?;
        let mut last = std::mem::take(&mut self.last);
        last.sort_by_key(|(draft, shard)| (self.is_away(*shard), self.held.turn_of(draft.claim)));
        let mut submitted = 0;
        for (draft, shard) in last {
            if self.is_over(cx.deadline()) {
                break;
            }
            match self.submit(&draft, shard, Ok(cx.clone())).await {
                Ok(is_moved) => submitted += u64::from(is_moved),
                Err(error) => self.fail(error),
            }
        }
        self.turn.tell(submitted).await
    }

    fn is_over(&self, until: Deadline) -> bool {
        self.stop.has_begun() || until.instant() <= Instant::now()
    }

    fn is_away(&self, shard: ShardId) -> bool {
        self.strikes.get(&shard).is_some_and(|strikes| *strikes >= STRIKES)
    }
}

/// Whether a claim waited in vain for what others of its bucket would wait for too.
const fn has_waited(error: &JobError) -> bool {
    matches!(error, JobError::Unit(UnitError::Fence { .. } | UnitError::Deadline | UnitError::Unknown(_)))
}

/// Whether it may be the shard that fails, and not one of its claims.
const fn is_of_shard(error: &JobError) -> bool {
    match error {
        JobError::Unit(UnitError::Database(error)) => error.is_retryable(),
        JobError::Unit(UnitError::Deadline | UnitError::Unknown(_) | UnitError::UnknownShard(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use pim_core::shard::MapVersion;
    use pim_data::backend::DbError;

    use super::*;

    #[test]
    fn a_shard_that_takes_no_writes_is_away_and_one_that_refuses_a_claim_is_not() {
        let database = |error| is_of_shard(&JobError::Unit(UnitError::Database(error)));
        assert!(database(DbError::NoStandby { place: "shard-1".to_owned() }));
        assert!(database(DbError::ReadOnly { place: "shard-1".to_owned() }));
        assert!(!database(DbError::Refused { rule: "not this one".to_owned(), unique: false }));
        assert!(is_of_shard(&JobError::Unit(UnitError::Deadline)));
        assert!(is_of_shard(&JobError::Unit(UnitError::UnknownShard(ShardId(1)))));
        let draining = UnitError::Fence { shard: ShardId(1), newest: MapVersion(2), draining: true };
        assert!(!is_of_shard(&JobError::Unit(draining)), "only that bucket");
    }
}
