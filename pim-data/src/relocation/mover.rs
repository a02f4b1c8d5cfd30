//! Planning moves, listing them, carrying them out, taking them back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pim_core::context::RequestContext;
use pim_core::shard::{Bucket, ShardId, ShardState};
use uuid::Uuid;

use super::journal::{self, MoveReport};
use super::{MoveError, MoveRecord, MoveStep, Outlet, Run};
use crate::backend::Db;
use crate::cluster::Cluster;

/// Most buckets of one move: they are fenced together.
pub const BUCKETS_MAX: usize = 64;

/// Most steps of one run: a few beginnings.
const STEPS_MAX: usize = 24;

/// How patiently a move is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveSettings {
    /// Most passes over all keys before a lull is waited for; the last ones find only what changed meanwhile.
    pub passes_max: u32,
    /// Few enough changed keys in a pass to go to the fence.
    pub calm_keys: u64,
    /// How long to wait, before the fence, for a moment in which few keys have changed and nothing of the buckets waits to be
    /// published; passes go on meanwhile.
    pub lull_max: Duration,
    /// How long the fence may last while the outbox drains and both ends are compared; then it is lifted. Writers that wait for
    /// longer are refused.
    pub pause_max: Duration,
}

impl Default for MoveSettings {
    fn default() -> Self {
        Self { passes_max: 8, calm_keys: 4, lull_max: Duration::from_secs(2), pause_max: Duration::from_millis(1500) }
    }
}

/// Moves buckets of a cluster, one move at a time.
#[derive(Clone, Debug)]
pub struct Mover {
    pub(super) cluster: Cluster,
    pub(super) outlet: Arc<dyn Outlet>,
    pub(super) settings: MoveSettings,
}

impl Mover {
    /// A mover that asks `outlet` what is still to be published.
    #[must_use]
    pub fn new(cluster: &Cluster, outlet: Arc<dyn Outlet>) -> Self {
        Self { cluster: cluster.clone(), outlet, settings: MoveSettings::default() }
    }

    /// Is more or less patient.
    #[must_use]
    pub fn with_settings(mut self, settings: MoveSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Checks a move without writing anything down.
    ///
    /// # Errors
    /// [`MoveError`] for what [`Mover::plan`] would refuse.
    pub async fn check(
        &self,
        buckets: impl IntoIterator<Item = Bucket>,
        target: ShardId,
    ) -> Result<MoveRecord, MoveError> {
        let buckets: BTreeSet<Bucket> = buckets.into_iter().collect();
        if buckets.is_empty() || buckets.len() > BUCKETS_MAX {
            return Err(MoveError::Buckets { most: BUCKETS_MAX });
        }
        self.cluster.refresh_map().await?;
        let map = self.cluster.map();
        let takes = map.shards().iter().any(|shard| shard.id == target && shard.state == ShardState::Live);
        if !takes || self.cluster.shard(target).is_none() {
            return Err(MoveError::Target(target));
        }
        let source = buckets.first().map_or(target, |bucket| map.owner(*bucket).0);
        let owner = |bucket: &Bucket| map.owner(*bucket).0;
        let other = buckets.iter().find(|bucket| owner(bucket) != source || owner(bucket) == target);
        if let Some(&bucket) = other {
            return Err(MoveError::Elsewhere { bucket, owner: owner(&bucket) });
        }
        if let Some(shard) = [source, target].into_iter().find(|shard| self.is_degraded(*shard)) {
            return Err(MoveError::Degraded(shard));
        }
        let buckets: Vec<Bucket> = buckets.into_iter().collect();
        journal::check_free(&journal::open(self.control()).await?, &buckets)?;
        let now = self.cluster.clock().now();
        Ok(MoveRecord {
            id: Uuid::new_v4(),
            buckets,
            source,
            target,
            step: MoveStep::Planned,
            map_version: 0,
            reverses: None,
            report: MoveReport::default(),
            began_at: now,
            changed_at: now,
        })
    }

    /// What a degraded shard has acknowledged may be lost with its primary. Rows that had left it by then would be without the
    /// records that stay.
    pub(super) fn is_degraded(&self, shard: ShardId) -> bool {
        let shard = self.cluster.shard(shard);
        shard.is_some_and(|shard| shard.group().is_some_and(|group| group.degraded().is_some()))
    }

    /// Writes a move down. Nothing moves before [`Mover::run`].
    ///
    /// # Errors
    /// [`MoveError`]; nothing was written then.
    pub async fn plan(
        &self,
        cx: &RequestContext,
        buckets: impl IntoIterator<Item = Bucket>,
        target: ShardId,
    ) -> Result<MoveRecord, MoveError> {
        let record = self.check(buckets, target).await?;
        journal::plan(self.control(), cx, &record).await?;
        Ok(record)
    }

    /// Plans the way back of a move that has changed the map.
    ///
    /// # Errors
    /// [`MoveError::Step`] when it has not; else as [`Mover::plan`].
    pub async fn plan_reverse(&self, cx: &RequestContext, id: Uuid) -> Result<MoveRecord, MoveError> {
        let forth = self.find(id).await?;
        if forth.step != MoveStep::Done {
            return Err(MoveError::Step { id, step: forth.step });
        }
        let mut back = self.check(forth.buckets, forth.source).await?;
        back.reverses = Some(id);
        journal::plan(self.control(), cx, &back).await?;
        Ok(back)
    }

    /// Takes a move in hand, new or broken off. Ends with the value, wherever the move is then.
    ///
    /// # Errors
    /// [`MoveError::Busy`] while somebody else, also in another process, carries one out; [`MoveError::NotOwner`] when this
    /// program may not, see [`Mover::may_move`].
    pub async fn take_up(&self, id: Uuid) -> Result<Run, MoveError> {
        let moving = self.cluster.0.directory.moving()?.ok_or(MoveError::Busy)?;
        let record = self.find(id).await?;
        Run::new(self.clone(), record, moving)
    }

    /// Whether this program may change who owns buckets. On servers that takes the owner's connection string of every shard.
    #[must_use]
    pub fn may_move(&self) -> bool {
        self.cluster.is_governed()
    }

    /// Carries a move out from wherever it is to its end.
    ///
    /// # Errors
    /// [`MoveError`]; calling this again goes on.
    pub async fn run(&self, cx: &RequestContext, id: Uuid) -> Result<MoveRecord, MoveError> {
        let mut run = self.take_up(id).await?;
        // Whatever lifts the fence in between sends a move back to its beginning.
        for _ in 0..STEPS_MAX {
            if run.record().step.is_over() {
                return Ok(run.record().clone());
            }
            run.step(cx).await?;
        }
        Err(MoveError::Unsettled)
    }

    /// Gives a move up, if the map has not changed yet: the source keeps everything, the target forgets its copy.
    ///
    /// # Errors
    /// [`MoveError::Step`] when the map has changed or is about to.
    pub async fn cancel(&self, id: Uuid) -> Result<MoveRecord, MoveError> {
        let mut run = self.take_up(id).await?;
        run.cancel().await?;
        Ok(run.record().clone())
    }

    /// One move.
    ///
    /// # Errors
    /// [`MoveError::Unknown`], or the control database fails.
    pub async fn find(&self, id: Uuid) -> Result<MoveRecord, MoveError> {
        journal::find(self.control(), id).await
    }

    /// The newest moves, at most `most`.
    ///
    /// # Errors
    /// The control database fails.
    pub async fn list(&self, most: u32) -> Result<Vec<MoveRecord>, MoveError> {
        Ok(journal::list(self.control(), most).await?)
    }

    /// Moves that are not over, oldest first.
    ///
    /// # Errors
    /// The control database fails.
    pub async fn unfinished(&self) -> Result<Vec<MoveRecord>, MoveError> {
        Ok(journal::open(self.control()).await?)
    }

    pub(super) fn control(&self) -> &Db {
        self.cluster.0.control.db()
    }
}
