//! The shards that are open. Others are opened beside them and take their places, and what had these before is closed when
//! nobody uses it any more: green after blue.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use pim_core::shard::{Endpoint, EndpointRole, MapVersion, Shard as Described, ShardId, ShardMap, ShardState};
use tokio::sync::{Mutex, Notify, OwnedMutexGuard, watch};
use tokio::time::{Instant, sleep};

use super::OpenError;
use super::shard::Shard;
use crate::examination::reasons;

/// How often it is looked whether somebody still uses what has left its place.
const DRAIN_LOOK: Duration = Duration::from_millis(20);
/// How soon a shard that could not be opened is tried again, at first and at most.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(10);

/// The shards that are open.
#[derive(Debug)]
pub(crate) struct Fleet {
    open: ArcSwap<Vec<Shard>>,
    changes: watch::Sender<u64>,
    turn: Arc<Mutex<()>>,
    alarm: Arc<Notify>,
    failures: std::sync::Mutex<BTreeMap<ShardId, Failure>>,
}

/// A shard that could not be opened.
#[derive(Debug)]
struct Failure {
    /// By these servers.
    endpoints: Vec<Endpoint>,
    /// Until then it is not tried again.
    until: Instant,
    pause: Duration,
    /// What it failed by, with its reasons.
    why: String,
}

/// Held by whoever opens other shards: they are opened by one map at a time.
pub(crate) type Turn = OwnedMutexGuard<()>;

/// Whether a map asks for a shard's database: one that is retired may be read for as long as the map says where it is.
pub(crate) fn is_asked_for(described: &Described) -> bool {
    let has_primary = || described.endpoints.iter().any(|endpoint| endpoint.role == EndpointRole::Primary);
    described.state != ShardState::Retired || has_primary()
}

fn asks_for(map: &ShardMap, shard: &Shard) -> bool {
    map.shards().iter().any(|described| described.id == shard.id() && is_asked_for(described))
}

impl Fleet {
    pub(super) fn new(shards: Vec<Shard>) -> Self {
        let (open, changes) = (ArcSwap::from_pointee(shards), watch::Sender::new(0));
        Self { open, changes, turn: Arc::default(), alarm: Arc::default(), failures: std::sync::Mutex::default() }
    }

    /// All of them, in order of their numbers.
    pub(crate) fn all(&self) -> Arc<Vec<Shard>> {
        self.open.load_full()
    }

    pub(crate) fn shard(&self, id: ShardId) -> Option<Shard> {
        self.open.load().iter().find(|shard| shard.id() == id).cloned()
    }

    /// Changes whenever others are open, or another map is in force.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits until nobody else opens shards.
    pub(super) async fn turn(&self) -> Turn {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// Whoever follows maps hears it.
    pub(super) fn alarm(&self) -> Arc<Notify> {
        Arc::clone(&self.alarm)
    }

    /// Has a newer map looked for at once.
    pub(super) fn ring(&self) {
        self.alarm.notify_one();
    }

    /// What a map asks for and is not open the way it says.
    pub(crate) fn lacks<'m>(&self, map: &'m ShardMap) -> Vec<&'m Described> {
        let open = self.open.load();
        let is_open = |described: &Described| {
            open.iter().any(|shard| shard.id() == described.id && shard.is_at(&described.endpoints))
        };
        map.shards().iter().filter(|described| is_asked_for(described) && !is_open(described)).collect()
    }

    /// What a map asks for and is not open at all.
    pub(crate) fn misses(&self, map: &ShardMap) -> Vec<ShardId> {
        let lacking = self.lacks(map).into_iter().map(|described| described.id);
        lacking.filter(|id| self.shard(*id).is_none()).collect()
    }

    /// What a map does not ask for any more.
    pub(crate) fn left_by(&self, map: &ShardMap) -> Vec<Shard> {
        self.open.load().iter().filter(|shard| !asks_for(map, shard)).cloned().collect()
    }

    /// Whether nothing has to be opened that nobody has tried to.
    pub(super) fn is_ready_for(&self, map: &ShardMap) -> bool {
        let failures = self.failures();
        let is_known = |it: &&Described| failures.get(&it.id).is_some_and(|failure| failure.endpoints == it.endpoints);
        self.lacks(map).iter().all(is_known) && self.left_by(map).is_empty()
    }

    /// What a map asks for and is to be tried now.
    pub(super) fn to_open<'m>(&self, map: &'m ShardMap) -> Vec<&'m Described> {
        let (now, failures) = (Instant::now(), self.failures());
        let waits = |it: &Described| {
            failures.get(&it.id).is_some_and(|failure| failure.endpoints == it.endpoints && now < failure.until)
        };
        self.lacks(map).into_iter().filter(|it| !waits(it)).collect()
    }

    /// Takes note of a shard that could not be opened for a map, and logs it when that is news.
    pub(super) fn report(&self, described: &Described, version: MapVersion, error: &OpenError) {
        if self.note_failure(described, reasons(error)) {
            let (shard, code) = (described.id, error.code());
            pim_core::error!("shard.not_taken_over", shard_id = shard, map_version = version.0, code = code);
        }
    }

    /// Takes note of a shard that could not be opened. Whether that is news.
    fn note_failure(&self, described: &Described, why: String) -> bool {
        let mut failures = self.failures();
        let before = failures.remove(&described.id).filter(|failure| failure.endpoints == described.endpoints);
        let pause = before.as_ref().map_or(AGAIN_AFTER, |failure| (failure.pause * 2).min(AGAIN_AFTER_MAX));
        let (endpoints, until) = (described.endpoints.clone(), Instant::now() + pause);
        failures.insert(described.id, Failure { endpoints, until, pause, why });
        before.is_none()
    }

    /// What a shard could not be opened by the last time.
    pub(crate) fn why_not(&self, id: ShardId) -> Option<String> {
        self.failures().get(&id).map(|failure| failure.why.clone())
    }

    /// Takes note of one that could.
    pub(super) fn note_success(&self, id: ShardId) {
        self.failures().remove(&id);
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, BTreeMap<ShardId, Failure>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever waits for shards, or for the map that brings them.
    pub(super) fn wake(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Puts opened shards in their places. To be done before anybody is sent there.
    pub(super) fn put(&self, _turn: &Turn, green: Vec<Shard>) -> Blue {
        let before = self.all();
        let mut open = before.to_vec();
        open.retain(|shard| !green.iter().any(|it| it.id() == shard.id()));
        open.extend(green);
        self.replace(before, open)
    }

    /// As it was before others took places.
    pub(super) fn put_back(&self, _turn: &Turn, blue: Blue) -> Blue {
        self.replace(self.all(), blue.before.to_vec())
    }

    /// Lets go of those that a map does not ask for. To be done when nobody is sent there any more.
    pub(super) fn prune(&self, _turn: &Turn, map: &ShardMap, blue: Blue) -> Blue {
        let now = self.all();
        let mut pruned =
            self.replace(Arc::clone(&now), now.iter().filter(|shard| asks_for(map, shard)).cloned().collect());
        pruned.gone.extend(blue.gone);
        pruned
    }

    fn replace(&self, before: Arc<Vec<Shard>>, mut open: Vec<Shard>) -> Blue {
        open.sort_by_key(Shard::id);
        if open.len() == before.len() && open.iter().zip(before.iter()).all(|(a, b)| a.is(b)) {
            return Blue { before, gone: Vec::new() };
        }
        let gone = before.iter().filter(|shard| !open.iter().any(|it| it.is(shard))).cloned().collect();
        self.open.store(Arc::new(open));
        self.wake();
        Blue { before, gone }
    }
}

/// What was open before others took places.
#[must_use = "what has left its place is to be closed"]
pub(crate) struct Blue {
    before: Arc<Vec<Shard>>,
    gone: Vec<Shard>,
}

impl Blue {
    /// Closes what has left its place: when nobody uses it any more, or when whatever still does has had its time.
    pub(crate) fn drain(self) {
        drop(self.before);
        self.gone.into_iter().for_each(|shard| drop(tokio::spawn(drained(shard))));
    }
}

async fn drained(shard: Shard) {
    let until = Instant::now() + shard.longest_use();
    shard.leave();
    while shard.is_used() && Instant::now() < until {
        sleep(DRAIN_LOOK).await;
    }
    let is_cut_short = shard.is_used();
    if is_cut_short {
        shard.close();
    }
    pim_core::info!("shard.drained", shard_id = shard.id(), cut_short = is_cut_short);
}
