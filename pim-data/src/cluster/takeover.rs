//! Taking over a map with the shards and servers that it names: opened first, put in their places, then routed to.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use futures_util::future::{join, join_all};
use pim_core::shard::{Shard as Described, ShardMap};
use tokio::time::{Instant, timeout, timeout_at};

use super::fleet::{Blue, Turn};
use super::open::{Opener, Place};
use super::shard::Shard;
use super::{Cluster, DirectoryError, Inner, OpenError, name_of};
use crate::backend::DbError;
use crate::examination::differing_from;

/// How often a process looks for a map at most.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(10);
/// How long somebody who has no deadline waits for shards and servers to be opened.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long somebody who publishes waits for another one in this process.
const TURN_PATIENCE: Duration = Duration::from_secs(2);

/// The place of whoever publishes: of all processes one at a time, and of this one nobody else opens shards. Ends with the last of
/// the clones.
#[derive(Clone, Debug)]
pub(crate) struct Publishing {
    turn: Arc<Turn>,
    _file: Arc<File>,
}

impl Inner {
    const fn opener(&self, introduces: bool) -> Opener<'_> {
        Opener { directory: &self.directory, settings: &self.settings, schema: &self.schema, introduces }
    }
}

impl Cluster {
    /// Opens what `next` names and is not open that way; what is, goes on meanwhile. `current` says who owns what so far: what
    /// is opened in a shard's place must say the same.
    pub(crate) async fn open_green(&self, current: &ShardMap, next: &ShardMap) -> Result<Vec<Shard>, OpenError> {
        let lacking = self.0.fleet.lacks(next).into_iter().map(Place::Shard).collect();
        let green = self.0.opener(true).open(lacking, current).await?;
        for shard in &green {
            self.is_successor(shard)?;
            self.is_written_here(shard).await?;
            follows(shard, current).await?;
        }
        Ok(green)
    }

    /// Opens what `next` names and is not open that way, when shards may follow it already.
    pub(crate) async fn open_rest(&self, next: &ShardMap) -> Result<Vec<Shard>, OpenError> {
        let lacking = self.0.fleet.lacks(next).into_iter().map(Place::Shard).collect();
        let green = self.0.opener(false).open(lacking, next).await?;
        green.iter().try_for_each(|shard| self.is_successor(shard))?;
        Ok(green)
    }

    async fn open_one(&self, described: &Described, map: &ShardMap) -> Result<Vec<Shard>, OpenError> {
        let green = self.0.opener(false).open(vec![Place::Shard(described)], map).await?;
        for shard in &green {
            self.is_successor(shard)?;
            follows(shard, map).await?;
        }
        Ok(green)
    }

    /// Refuses servers of a term that is over: what they have is not what the shard has by now.
    fn is_successor(&self, green: &Shard) -> Result<(), OpenError> {
        let term = |shard: &Shard| shard.group().map_or(0, |group| group.health().0);
        match self.0.fleet.shard(green.id()).map(|blue| term(&blue)).filter(|known| *known > term(green)) {
            Some(known) => Err(OpenError::Term { shard: green.id(), found: term(green), known }),
            None => Ok(()),
        }
    }

    /// Refuses servers whose primary is another one than that which is written to: nothing would stop those writes.
    async fn is_written_here(&self, green: &Shard) -> Result<(), OpenError> {
        let Some(blue) = self.0.fleet.shard(green.id()) else { return Ok(()) };
        let (Some(before), Some(after)) = (blue.group(), green.group()) else { return Ok(()) };
        if before.is_silent() {
            return Ok(());
        }
        let failed = |source| OpenError::Database { shard: name_of(green.id()), source };
        let (here, there) = join(before.which_server(), after.which_server()).await;
        let there = there.map_err(failed)?;
        match here {
            Ok(here) if here == there => Ok(()),
            Ok(_) => Err(OpenError::Elsewhere { shard: green.id() }),
            // It is gone; one that is only late may still be written to.
            Err(error) if error.speaks_of_the_server() => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Refuses shards that were opened a while ago for what has happened meanwhile.
    pub(crate) async fn may_take_places(&self, green: &[Shard]) -> Result<(), OpenError> {
        for shard in green {
            self.is_successor(shard)?;
            self.is_written_here(shard).await?;
        }
        Ok(())
    }

    /// Puts opened shards in their places. To be done before anybody is sent there.
    pub(crate) fn turn_green(&self, publishing: &Publishing, green: Vec<Shard>) -> Blue {
        self.0.fleet.put(&publishing.turn, green)
    }

    /// As it was before.
    pub(crate) fn turn_back(&self, publishing: &Publishing, blue: Blue) {
        self.0.fleet.put_back(&publishing.turn, blue).drain();
    }

    /// Routes by a map whose shards are in their places, and lets go of what it does not ask for.
    pub(crate) fn route_by(&self, publishing: &Publishing, map: &ShardMap, blue: Blue) {
        self.go_by(&publishing.turn, map.clone(), blue);
    }

    fn go_by(&self, turn: &Turn, map: ShardMap, blue: Blue) {
        self.route_on(map.clone());
        self.0.fleet.prune(turn, &map, blue).drain();
    }

    /// Routes by a map that needs nothing opened. Whether it is newer.
    pub(crate) fn route_on(&self, map: ShardMap) -> bool {
        // Before anybody goes by it: what was activated for it is older than this.
        *self.0.mapped_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let is_newer = self.0.router.catch_up(map);
        if is_newer {
            self.0.fleet.wake();
        }
        is_newer
    }

    /// Takes over a newer map that another process, or this one, has published. Returns whether there was one. Shards and
    /// servers that it names are opened first, for which it waits a few seconds at most. Those that cannot be are reported and
    /// tried again: until then a server stays the one before it, and a new shard is not there.
    ///
    /// # Errors
    /// [`DirectoryError`] when the map file cannot be read.
    pub async fn refresh_map(&self) -> Result<bool, DirectoryError> {
        self.refresh_map_until(Instant::now() + PATIENCE).await
    }

    /// As [`Cluster::refresh_map`], by somebody with a deadline.
    pub(crate) async fn refresh_map_until(&self, until: Instant) -> Result<bool, DirectoryError> {
        let newest = self.0.directory.newest_map()?;
        if newest.version() <= self.0.router.version() {
            return Ok(false);
        }
        if self.0.fleet.is_ready_for(&newest) {
            // Nothing has to be opened: nobody waits for anybody.
            return Ok(self.route_on(newest));
        }
        let mut changes = self.changes();
        self.0.fleet.ring();
        let taken = changes.wait_for(|_| self.0.router.version() >= newest.version());
        let _late = timeout_at(until, taken).await;
        Ok(self.0.router.version() >= newest.version())
    }

    /// Refuses to look for anything in all shards while one of them is not open here: what is not looked at would seem to be gone.
    pub(crate) async fn is_whole(&self) -> Result<(), DbError> {
        self.is_whole_until(Instant::now() + PATIENCE).await
    }

    /// As [`Cluster::is_whole`], for somebody with a deadline.
    pub(crate) async fn is_whole_until(&self, until: Instant) -> Result<(), DbError> {
        let missing = |shard: String| Err(DbError::NotOpen { shard });
        let of_map = || "a shard of the newest map".to_owned();
        let _late = self.refresh_map_until(until.min(Instant::now() + PATIENCE)).await;
        let Ok(newest) = self.0.directory.newest_map() else { return missing(of_map()) };
        if newest.version() > self.0.router.version() {
            return missing(of_map());
        }
        self.0.fleet.misses(&newest).first().map_or(Ok(()), |id| missing(name_of(*id)))
    }

    /// As [`Cluster::refresh_map`], by whoever publishes.
    pub(crate) async fn read_map(&self, publishing: &Publishing) -> Result<(), DirectoryError> {
        let newest = self.0.directory.newest_map()?;
        if newest.version() > self.0.router.version() {
            let green = self.open_for(&newest).await;
            self.adopt(&publishing.turn, newest, green);
        }
        Ok(())
    }

    /// Takes the place of the publisher.
    pub(crate) async fn publishing(&self) -> Result<Publishing, DirectoryError> {
        let turn = timeout(TURN_PATIENCE, self.0.fleet.turn()).await;
        let turn = turn.map_err(|_| DirectoryError::Publishing { path: self.data_dir().to_path_buf() })?;
        let file = self.0.directory.publishing().await?;
        Ok(Publishing { turn: Arc::new(turn), _file: Arc::new(file) })
    }

    /// Opens what a map asks for, as far as that can be done. Nobody is kept from publishing meanwhile.
    async fn open_for(&self, map: &ShardMap) -> Vec<Shard> {
        let wanted = self.0.fleet.to_open(map);
        let opened = join_all(wanted.iter().map(|described| self.open_one(described, map))).await;
        let (mut green, version) = (Vec::new(), map.version().0);
        for (described, opened) in wanted.into_iter().zip(opened) {
            let shard = described.id;
            match opened {
                Ok(shards) => {
                    self.0.fleet.note_success(shard);
                    pim_core::info!("shard.taken_over", shard_id = shard, map_version = version);
                    green.extend(shards);
                }
                Err(error) => self.0.fleet.report(described, map.version(), &error),
            }
        }
        green
    }

    /// Puts what was opened for a map in its places, and routes by it, unless a newer one is in force by now.
    fn adopt(&self, turn: &Turn, next: ShardMap, mut green: Vec<Shard>) {
        let newest = if next.version() < self.0.router.version() { (*self.map()).clone() } else { next };
        let lacking = self.0.fleet.lacks(&newest);
        green.retain(|shard| lacking.iter().any(|it| it.id == shard.id() && shard.is_at(&it.endpoints)));
        let blue = self.0.fleet.put(turn, green);
        self.go_by(turn, newest, blue);
    }

    /// Looks for a newer map, and for what could not be opened. When the file that it has read was written, unless that is known.
    async fn look_for_maps(&self, known: Option<SystemTime>) -> Option<SystemTime> {
        let written = self.0.directory.map_written_at();
        // A file that cannot be read now is read at the next look.
        let newest = if written.is_some() && written == known { None } else { self.0.directory.newest_map().ok() };
        let read = newest.as_ref().and(written).filter(|written| is_settled(*written));
        let newest = newest.filter(|map| map.version() > self.0.router.version());
        let is_new = newest.is_some();
        let map = newest.unwrap_or_else(|| (*self.map()).clone());
        if is_new || !self.0.fleet.to_open(&map).is_empty() || !self.0.fleet.left_by(&map).is_empty() {
            let green = self.open_for(&map).await;
            let turn = self.0.fleet.turn().await;
            self.adopt(&turn, map, green);
        }
        self.finish_unfinished().await;
        read.or(known)
    }

    /// Has whoever follows the maps see to what is left halfway, from the next look on until it is done.
    pub(crate) fn leave_unfinished(&self) {
        self.0.is_unfinished.store(true, Ordering::Relaxed);
    }

    /// Goes on with what may have been interrupted, when no shard is missing any more: a publication that failed halfway, the
    /// fence of a move, or what [`Cluster::open`] left.
    async fn finish_unfinished(&self) {
        if !self.0.fleet.misses(&self.map()).is_empty() || !self.0.is_unfinished.swap(false, Ordering::Relaxed) {
            return;
        }
        // Whoever publishes now finishes it, too; what fails is tried at the next look.
        if let Err(error) = crate::fence::finish_interrupted(self).await {
            self.leave_unfinished();
            pim_core::warn!("cluster.not_finished", code = error.code());
        }
    }
}

/// Refuses a database that does not own what a map says; it may know a newer map by now.
async fn follows(shard: &Shard, map: &ShardMap) -> Result<(), OpenError> {
    let differing = differing_from(shard.db(), shard.id(), map).await;
    let differing = differing.map_err(|source| OpenError::Database { shard: name_of(shard.id()), source })?;
    differing.map_or(Ok(()), |bucket| Err(OpenError::Ownership { shard: shard.id(), bucket }))
}

/// Follows the maps that other processes publish for as long as the cluster is in use, also when nothing is refused: a map that
/// only names other servers refuses nobody.
pub(super) fn follow(cluster: &Arc<Inner>) {
    let (alarm, pause) = (cluster.fleet.alarm(), cluster.settings.maps_every.max(LOOK_EVERY_MIN));
    let cluster = Arc::downgrade(cluster);
    tokio::spawn(async move {
        let mut known = None;
        loop {
            let _rung = timeout(pause, alarm.notified()).await;
            let Some(cluster) = Weak::upgrade(&cluster).map(Cluster) else { return };
            known = cluster.look_for_maps(known).await;
        }
    });
}

/// Whether a file that is written again would have another time: clocks of file systems are coarse.
fn is_settled(written: SystemTime) -> bool {
    written.elapsed().is_ok_and(|age| age > Duration::from_secs(1))
}
