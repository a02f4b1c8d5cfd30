//! One move in hand: the steps, and what is remembered between them.

use std::fs::File;
use std::time::Duration;

use pim_core::context::RequestContext;
use pim_core::shard::{Bucket, Epoch, ShardId, ShardMap};
use tokio::time::{Instant, timeout, timeout_at};

use super::copy::{Copier, End, Settled};
use super::layout::Layout;
use super::mover::Mover;
use super::{MoveError, MoveRecord, MoveStep, Outflow, hand_over, journal, link};
use crate::cluster::{PreparedMap, Publishing};
use crate::fence::PublishError;

/// Pause between two looks at the outbox while writers wait.
const LOOK: Duration = Duration::from_millis(2);
/// Pause between two looks for a lull.
const LULL_LOOK: Duration = Duration::from_millis(10);
/// How long to wait for another lull right before the fence, while nobody else can publish a map.
const LAST_LULL_MAX: Duration = Duration::from_millis(100);
/// How long a fence may take to go up or down. No database waits longer for the writers in flight.
const FENCE_MAX: Duration = Duration::from_secs(10);
/// How long a publication has at least, however much of the pause is over: it cannot be broken off everywhere.
const PUBLISH_MIN: Duration = Duration::from_secs(1);
/// How long shards that may not answer are asked whether a map that came to nothing can be forgotten.
const FORGET_MAX: Duration = Duration::from_secs(1);

/// A move that somebody carries out. Dropping it stops wherever it is; the next [`Mover::take_up`] goes on. Until then whoever
/// follows the maps of this cluster sees to it that its buckets take writes: the fence is lifted, or a map that has begun to give
/// them away comes into force.
#[derive(Debug)]
#[must_use = "a run does nothing until `step`"]
pub struct Run {
    mover: Mover,
    record: MoveRecord,
    copier: Copier,
    settled: Settled,
    paused: Option<Pause>,
    _moving: File,
}

/// While the source is fenced.
#[derive(Debug)]
struct Pause {
    /// Nobody else publishes a map.
    publishing: Publishing,
    since: Instant,
    /// Whatever is not done by then is given up: writers wait.
    until: Instant,
    /// The map that gives the buckets away, and that map on the disk.
    ready: (ShardMap, PreparedMap),
}

impl Run {
    pub(super) fn new(mover: Mover, record: MoveRecord, moving: File) -> Result<Self, MoveError> {
        let end = |shard: ShardId| {
            let found = mover.cluster.shard(shard).ok_or(MoveError::Exchanged(shard))?;
            if !found.is_governed() {
                return Err(MoveError::NotOwner(shard));
            }
            Ok::<_, MoveError>(End { shard, db: found.governed().clone() })
        };
        let copier = Copier {
            layout: Layout::of(mover.cluster.schema()),
            source: end(record.source)?,
            target: end(record.target)?,
            buckets: record.buckets.clone(),
        };
        Ok(Self { mover, record, copier, settled: Settled::default(), paused: None, _moving: moving })
    }

    /// The move as it is written down.
    #[must_use]
    pub const fn record(&self) -> &MoveRecord {
        &self.record
    }

    /// Does the next step and writes it down; nothing when the move is over.
    ///
    /// # Errors
    /// [`MoveError`]; the step may be done again, by this run or another.
    pub async fn step(&mut self, cx: &RequestContext) -> Result<MoveStep, MoveError> {
        let stepped = self.go_on(cx).await;
        if stepped.is_err() {
            // Whoever has it in hand may wait before they go on; those who write need not.
            self.leave();
        }
        stepped
    }

    async fn go_on(&mut self, cx: &RequestContext) -> Result<MoveStep, MoveError> {
        self.leads_there()?;
        match self.record.step {
            MoveStep::Planned => self.begin().await?,
            MoveStep::Copying => self.copy_and_fence().await?,
            MoveStep::Fenced => match self.paused.as_ref().map(|pause| pause.until) {
                None => self.unfence().await?,
                Some(until) => {
                    let drained = timeout_at(until, self.drain(until)).await;
                    if let Err(error) = drained.unwrap_or(Err(MoveError::Late)) {
                        // What is refused here must not keep the bucket from taking writes.
                        self.unfence().await?;
                        return Err(error);
                    }
                }
            },
            MoveStep::Activating => self.activate().await?,
            MoveStep::Activated => self.conclude(cx).await?,
            MoveStep::Done | MoveStep::Cancelled => {}
        }
        Ok(self.record.step)
    }

    /// Refuses to go on when a map names other servers of an end by now: those may lack what was written before.
    fn leads_there(&self) -> Result<(), MoveError> {
        let is_end = |end: &&End| {
            let open = self.mover.cluster.shard(end.shard);
            open.is_none_or(|shard| !shard.governed().is(&end.db))
        };
        let ends = [&self.copier.source, &self.copier.target];
        ends.into_iter().find(is_end).map_or(Ok(()), |end| Err(MoveError::Exchanged(end.shard)))
    }

    /// Refuses to go on while an end acknowledges what may be lost with its primary: rows and records must not part then. Whoever
    /// does not know of it yet writes nothing that no standby has.
    fn loses_nothing(&self) -> Result<(), MoveError> {
        let ends = [self.record.source, self.record.target];
        let degraded = ends.into_iter().find(|shard| self.mover.is_degraded(*shard));
        degraded.map_or(Ok(()), |shard| Err(MoveError::Degraded(shard)))
    }

    /// The target takes copies from now on.
    async fn begin(&mut self) -> Result<(), MoveError> {
        self.loses_nothing()?;
        let owned = self.owned()?;
        let version = self.mover.cluster.map().version();
        hand_over::receive(&self.copier.target, &owned, version).await?;
        self.advance(MoveStep::Copying).await
    }

    /// Copies until little changes meanwhile, waits for a lull, and fences the source.
    async fn copy_and_fence(&mut self) -> Result<(), MoveError> {
        self.loses_nothing()?;
        let settings = self.mover.settings;
        for _ in 0..settings.passes_max.max(1) {
            if self.pass().await? <= settings.calm_keys {
                break;
            }
        }
        self.lull(settings.lull_max).await?;
        let publishing = self.mover.cluster.publishing().await?;
        self.mover.cluster.catch_up(&publishing).await?;
        self.leads_there()?;
        self.loses_nothing()?;
        self.owned()?;
        let ready = self.prepare()?;
        // Before the fence: whoever finds the row knows that there may be one to lift. And before the last lull: it takes a while,
        // in which others write.
        let ripe = async {
            self.advance(MoveStep::Fenced).await?;
            self.lull(settings.lull_max.min(LAST_LULL_MAX)).await
        };
        if let Err(error) = ripe.await {
            // Nothing is fenced.
            self.mover.cluster.forget_prepared(&publishing).await?;
            self.advance(MoveStep::Copying).await?;
            return Err(error);
        }
        let since = Instant::now();
        let fenced = timeout(FENCE_MAX, hand_over::fence(&self.copier.source, &self.record.buckets)).await;
        if let Err(error) = fenced.unwrap_or(Err(MoveError::Late)) {
            // It may be up all the same, if its answer was lost on the way.
            self.unfence_by(publishing).await?;
            return Err(error);
        }
        let until = Instant::now() + settings.pause_max;
        self.paused = Some(Pause { publishing, since, until, ready });
        Ok(())
    }

    /// Brings over what has changed; how many keys.
    async fn pass(&mut self) -> Result<u64, MoveError> {
        let copied = self.copier.pass(&mut self.settled).await?;
        self.record.report.passes += 1;
        self.record.report.keys_copied += copied;
        Ok(copied)
    }

    /// Copies until little changes and nothing waits to be published, but for no longer than this and one pass: writers will
    /// have to wait for what is left. What cannot move is refused before anybody waits.
    async fn lull(&mut self, most: Duration) -> Result<(), MoveError> {
        let give_up = Instant::now() + most;
        loop {
            let is_calm = self.pass().await? <= self.mover.settings.calm_keys;
            let is_dry = !self.is_waiting().await?;
            if (is_calm && is_dry) || Instant::now() >= give_up {
                return Ok(());
            }
            tokio::time::sleep(LULL_LOOK).await;
        }
    }

    /// The map that gives the buckets to the target, kept and laid ready.
    fn prepare(&self) -> Result<(ShardMap, PreparedMap), MoveError> {
        let cluster = &self.mover.cluster;
        let next = cluster.map().reassign(self.record.buckets.iter().copied(), self.record.target)?;
        let directory = &cluster.0.directory;
        directory.keep_map(&next).map_err(PublishError::from)?;
        let prepared = directory.prepare_map(&next).map_err(PublishError::from)?;
        Ok((next, prepared))
    }

    /// Brings the last changes over while the last events go out, and compares both ends. Dropped, it has changed nothing that
    /// copying again does not.
    async fn drain(&mut self, until: Instant) -> Result<(), MoveError> {
        // Wakes a relay of this process.
        self.mover.cluster.0.commits.send_modify(|count| *count += 1);
        let (copied, (keys, buckets)) = self.copier.finish(&mut self.settled).await?;
        // Asked last: by then the relay has had the time that it needs to write down where it is.
        self.outflow(until).await?;
        // What was copied before an end was degraded may be on no standby by now.
        self.loses_nothing()?;
        let report = &mut self.record.report;
        report.keys = keys;
        report.rows = buckets.iter().map(|it| it.rows).sum();
        report.buckets = buckets;
        report.keys_copied += copied;
        report.keys_copied_fenced = copied;
        self.record.map_version = self.mover.cluster.map().version().0 + 1;
        self.advance(MoveStep::Activating).await
    }

    /// Publishes the map that gives the buckets to the target, unless that has happened.
    async fn activate(&mut self) -> Result<(), MoveError> {
        let cluster = self.mover.cluster.clone();
        let least = Instant::now() + PUBLISH_MIN;
        let (publishing, paused, until) = match self.paused.take() {
            // Nobody has published since: it was seen before the fence that no other map is about to come.
            Some(Pause { publishing, since, until, ready }) => (publishing, Some((since, ready)), until.max(least)),
            None => {
                let publishing = cluster.publishing().await?;
                cluster.catch_up(&publishing).await?;
                self.leads_there()?;
                (publishing, None, Instant::now() + self.mover.settings.pause_max.max(PUBLISH_MIN))
            }
        };
        let map = cluster.map();
        let has_target = self.record.buckets.iter().all(|bucket| map.owner(*bucket).0 == self.record.target);
        if !has_target && map.version().0 + 1 != self.record.map_version {
            // Another map came first, so this one never will: the source has taken writes since.
            return self.unfence_by(publishing).await;
        }
        if !has_target {
            let (since, (next, prepared)) = match paused {
                Some((since, ready)) => (Some(since), ready),
                None => (None, self.prepare()?),
            };
            match timeout_at(until, cluster.publish_moved(next, prepared)).await {
                // Somebody has lifted the fence, so the source may have taken writes since.
                Ok(Err(PublishError::NotEmpty(_))) => return self.unfence_by(publishing).await,
                Ok(published) => published?,
                Err(_elapsed) => return Err(self.publishes_late().await),
            }
            if let Some(since) = since {
                let paused = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.record.report.paused_us = self.record.report.paused_us.max(paused);
            }
        }
        // Nobody waits any more.
        cluster.settle_map([self.record.source, self.record.target]).await?;
        drop(publishing);
        self.advance(MoveStep::Activated).await
    }

    /// Ties the two audit trails together and removes what the source still has.
    async fn conclude(&mut self, cx: &RequestContext) -> Result<(), MoveError> {
        link::record(&self.mover.cluster, cx, &self.record).await?;
        self.copier.clear(&self.copier.source, "moved").await?;
        self.advance(MoveStep::Done).await
    }

    /// The source takes writes again, and copying begins anew.
    async fn unfence(&mut self) -> Result<(), MoveError> {
        let publishing = match self.paused.take() {
            Some(pause) => pause.publishing,
            None => self.mover.cluster.publishing().await?,
        };
        self.unfence_by(publishing).await
    }

    /// As [`Run::unfence`], by whoever holds the place of the publisher until then.
    async fn unfence_by(&mut self, publishing: Publishing) -> Result<(), MoveError> {
        let shard = self.record.source;
        let lifted = timeout(FENCE_MAX, hand_over::lift(&self.copier.source.db, &self.record.buckets)).await;
        lifted.map_err(|_elapsed| MoveError::Late)?.map_err(|source| MoveError::Shard { shard, source })?;
        // Where it stays, because a shard does not answer, the next map that is kept takes its place.
        let _kept = timeout(FORGET_MAX, self.mover.cluster.forget_prepared(&publishing)).await;
        self.record.map_version = 0;
        timeout(FENCE_MAX, self.advance(MoveStep::Planned)).await.unwrap_or(Err(MoveError::Late))
    }

    /// Lifts the fence unless the source has given the buckets away: whoever goes on finds out which of the two it was.
    async fn publishes_late(&self) -> MoveError {
        let _lifted = timeout(FENCE_MAX, hand_over::lift(&self.copier.source.db, &self.record.buckets)).await;
        MoveError::Late
    }

    pub(super) async fn cancel(&mut self) -> Result<(), MoveError> {
        let step = self.record.step;
        match step {
            MoveStep::Planned | MoveStep::Copying => {}
            MoveStep::Fenced => self.unfence().await?,
            _ => return Err(MoveError::Step { id: self.record.id, step }),
        }
        // Before the first step the target says of some that they have left it, and whatever it owns stays with it.
        let incoming = hand_over::incoming(&self.copier.target, &self.record.buckets).await?;
        if !incoming.is_empty() {
            self.copier.only(incoming).clear(&self.copier.target, "incoming").await?;
        }
        hand_over::decline(&self.copier.target, &self.record.buckets).await?;
        self.advance(MoveStep::Cancelled).await
    }

    /// The buckets with their epochs, if the source still owns all of them.
    fn owned(&self) -> Result<Vec<(Bucket, Epoch)>, MoveError> {
        let map = self.mover.cluster.map();
        let of = |&bucket: &Bucket| {
            let (owner, epoch) = map.owner(bucket);
            if owner == self.record.source { Ok((bucket, epoch)) } else { Err(MoveError::Elsewhere { bucket, owner }) }
        };
        self.record.buckets.iter().map(of).collect()
    }

    /// Waits until nothing of the buckets waits to be published. Where something did, that is the reason, also when the time
    /// ends amid a look.
    async fn outflow(&self, until: Instant) -> Result<(), MoveError> {
        let mut late = MoveError::Late;
        while timeout_at(until, self.is_waiting()).await.unwrap_or(Err(late))? {
            late = MoveError::NotDrained;
            if Instant::now() + LOOK >= until {
                return Err(late);
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Whether something of the buckets waits to be published.
    async fn is_waiting(&self) -> Result<bool, MoveError> {
        let source = &self.copier.source;
        let left = self.mover.outlet.outflow(&source.db, &self.record.buckets).await;
        match left.map_err(|error| MoveError::Shard { shard: source.shard, source: error })? {
            Outflow::Dry => Ok(false),
            Outflow::Waiting => Ok(true),
            Outflow::Parked => Err(MoveError::Parked),
        }
    }

    /// A fence that may be up, or buckets that nobody may own yet, are seen to without an operator.
    fn leave(&self) {
        if self.record.step.is_shut() {
            self.mover.cluster.leave_unfinished();
        }
    }

    /// What is in hand says no more than what is written down, also when this is dropped.
    async fn advance(&mut self, step: MoveStep) -> Result<(), MoveError> {
        let mut next = self.record.clone();
        next.step = step;
        next.changed_at = self.mover.cluster.clock().now();
        journal::advance(self.mover.control(), &next, self.record.step).await?;
        self.record = next;
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Before the mover's place is free: whoever looks in between finds it taken, and looks again.
        self.leave();
    }
}
