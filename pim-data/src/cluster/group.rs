//! The servers of one shard: which of them takes writes, which may answer a read, and waiting for either.

mod round;
#[cfg(all(test, feature = "postgres"))]
mod tests;
mod watch;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pim_core::shard::{Endpoint as Described, ShardId};
use serde::Serialize;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

pub(super) use watch::watch;

use super::endpoint::{Endpoint, EndpointFinding, EndpointHealth, RELEASE};
use super::lag::Marks;
use crate::backend::{Db, DbError, ServerSettings};
use crate::degradation::{Degraded, DegradedStage};
use crate::retry::{Budget, random};
use crate::signals::{DataSignals, Parked};
use crate::unit::Batches;

/// Most calls of one shard that wait for a primary at the same time.
const PARKED_MAX: usize = 1024;

/// The servers of one shard.
#[derive(Debug)]
pub(crate) struct Group {
    shard: ShardId,
    keyspace: String,
    endpoints: Vec<Endpoint>,
    /// Leads to whichever endpoint is the primary.
    writer: Db,
    /// The same with the owner's rights, where this program has them.
    owner: Option<Db>,
    standing: tokio::sync::watch::Sender<Standing>,
    marks: Mutex<Marks>,
    /// How many rounds of probes have begun.
    rounds: AtomicU64,
    alarm: Arc<Notify>,
    budget: Budget,
    /// Reads that a replica might have answered and the primary has to.
    fallen_back: Arc<Semaphore>,
    parked: Semaphore,
    batches: Batches,
    settings: ServerSettings,
    signals: DataSignals,
}

/// Who the primary is, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    endpoint: usize,
    term: u64,
    state: PrimaryState,
    /// What it acknowledges alone; as it was last known while it is silent.
    degraded: Option<Degraded>,
    /// The last round of probes that has ended.
    round: u64,
    /// Whether a map names other servers by now: nobody is kept waiting for these.
    left: bool,
}

/// Whether a shard's primary can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PrimaryState {
    /// It takes reads and writes.
    Ready,
    /// Its commits wait for a synchronous standby that is not there; reads go on.
    NoStandby,
    /// It does not answer, and nobody has taken its place yet.
    Silent,
}

/// What a call needs of the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Read,
    Write,
}

impl Standing {
    fn serves(&self, need: Need) -> bool {
        match self.state {
            PrimaryState::Ready => true,
            PrimaryState::NoStandby => need == Need::Read,
            PrimaryState::Silent => false,
        }
    }
}

/// What a group is made of.
pub(super) struct Members {
    pub(super) shard: ShardId,
    pub(super) keyspace: String,
    pub(super) endpoints: Vec<Endpoint>,
    /// Which endpoint is the primary so far.
    pub(super) primary: usize,
    pub(super) writer: Db,
    pub(super) owner: Option<Db>,
    pub(super) alarm: Arc<Notify>,
    pub(super) settings: ServerSettings,
    pub(super) signals: DataSignals,
}

impl Group {
    pub(super) fn new(members: Members) -> Self {
        let Members { shard, keyspace, endpoints, primary, writer, owner, alarm, settings, signals } = members;
        let standing =
            Standing { endpoint: primary, term: 0, state: PrimaryState::Ready, degraded: None, round: 0, left: false };
        Self {
            shard,
            keyspace,
            endpoints,
            writer,
            owner,
            standing: tokio::sync::watch::Sender::new(standing),
            marks: Mutex::default(),
            rounds: AtomicU64::new(0),
            alarm,
            budget: Budget::new(Instant::now()),
            fallen_back: Arc::new(Semaphore::new(settings.connections_max.div_ceil(2))),
            parked: Semaphore::new(PARKED_MAX),
            batches: Batches::new(settings.writers_max.min(settings.writes_max()), settings.gather_max),
            settings,
            signals,
        }
    }

    /// Which of its servers an error names: by the secret, or its owner's.
    pub(super) fn index_of(&self, place: &str) -> Option<usize> {
        let name = place.strip_suffix("-owner").unwrap_or(place);
        self.endpoints.iter().position(|it| it.dsn_ref == name || it.id == name)
    }

    /// Whether its servers are these.
    pub(super) fn is_of(&self, endpoints: &[Described]) -> bool {
        let is_one = |it: &Described| self.endpoints.iter().any(|own| own.id == it.id && own.dsn_ref == it.dsn_ref);
        endpoints.len() == self.endpoints.len() && endpoints.iter().all(is_one)
    }

    /// Keeps nobody waiting any more, and no connection that comes back.
    pub(super) fn leave(&self) {
        self.standing.send_modify(|standing| standing.left = true);
        self.pools().for_each(Db::drain);
    }

    /// Whether its primary is lost.
    pub(super) fn is_silent(&self) -> bool {
        self.standing.borrow().state == PrimaryState::Silent
    }

    /// What its primary and no other server answers.
    pub(super) async fn which_server(&self) -> Result<String, DbError> {
        let endpoint = self.standing.borrow().endpoint;
        self.endpoints[endpoint].which_server(self.settings.probe_max).await
    }

    /// What leads to its servers.
    pub(super) fn pools(&self) -> impl Iterator<Item = &Db> {
        let own = [Some(&self.writer), self.owner.as_ref()];
        own.into_iter().flatten().chain(self.endpoints.iter().flat_map(Endpoint::pools))
    }

    /// The units that are on their way to the primary.
    pub(crate) const fn batches(&self) -> &Batches {
        &self.batches
    }

    pub(crate) const fn writer(&self) -> &Db {
        &self.writer
    }

    pub(crate) const fn owner(&self) -> Option<&Db> {
        self.owner.as_ref()
    }

    pub(crate) const fn settings(&self) -> &ServerSettings {
        &self.settings
    }

    pub(crate) const fn signals(&self) -> &DataSignals {
        &self.signals
    }

    /// What repeats are paid from.
    pub(crate) const fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Whether there is a server that might be a replica.
    pub(crate) fn has_replicas(&self) -> bool {
        self.endpoints.len() > 1
    }

    /// The name of an endpoint that is another shard's.
    pub(super) fn stranger(&self) -> Option<&str> {
        let is_one = |it: &&Endpoint| it.seen().finding == Some(EndpointFinding::OtherShard);
        self.endpoints.iter().find(is_one).map(|it| it.id.as_str())
    }

    /// The term of the primary, its state, and how each server is.
    pub(crate) fn health(&self) -> (u64, PrimaryState, Vec<EndpointHealth>) {
        let standing = *self.standing.borrow();
        (standing.term, standing.state, self.endpoints.iter().map(Endpoint::health).collect())
    }

    /// The endpoint that is the primary, or was it last.
    pub(crate) fn primary(&self) -> &str {
        let endpoint = self.standing.borrow().endpoint;
        self.endpoints.get(endpoint).map_or("", |it| it.id.as_str())
    }

    /// What the primary acknowledges alone.
    pub(crate) fn degraded(&self) -> Option<Degraded> {
        self.standing.borrow().degraded
    }

    /// Ends the sessions of this program that wait for a standby in vain, and hold locks meanwhile.
    pub(crate) async fn release(&self) {
        let endpoint = self.standing.borrow().endpoint;
        let patience = self.settings.probe_max;
        self.endpoints[endpoint].release(patience).await;
        if let Some(owner) = &self.owner {
            // The owner's are another login's, which the application's may not end.
            let _released = owner.ask(tokio::time::Instant::now() + patience, RELEASE).await;
        }
    }

    /// Has the servers looked at, and waits until it is known here whether the primary acknowledges commits alone, at most
    /// until `until`.
    pub(crate) async fn heed(&self, until: tokio::time::Instant, stage: Option<DegradedStage>) {
        let mut standing = self.standing.subscribe();
        self.alarm.notify_one();
        let known = standing.wait_for(|it| it.degraded.map(|degraded| degraded.stage) == stage);
        // Whoever does not know it in time learns of it with a later round.
        let _late = tokio::time::timeout_at(until, known).await;
    }

    /// Whether the primary can be used now, as far as is known.
    pub(crate) fn serves(&self, need: Need) -> bool {
        self.standing.borrow().serves(need)
    }

    /// Waits until the primary can be used, at most until `until`.
    ///
    /// # Errors
    /// [`DbError::NoPrimary`] or [`DbError::NoStandby`] when it cannot be until then, or too many wait already.
    pub(crate) async fn ready(&self, until: tokio::time::Instant, need: Need) -> Result<(), DbError> {
        // What is asked here first is no repeat.
        self.budget.deposit();
        if self.serves(need) { Ok(()) } else { self.park(until, need, 0).await }
    }

    /// After a call to the primary failed and did nothing: has the servers looked at and waits until the primary can be used.
    ///
    /// # Errors
    /// The error itself when it cannot be made good that way; else as [`Group::ready`].
    pub(crate) async fn recover(&self, until: tokio::time::Instant, need: Need, error: DbError) -> Result<(), DbError> {
        if !error.speaks_of_the_server() || !self.budget.withdraw(Instant::now()) {
            return Err(error);
        }
        // A round that has begun already may have looked before it happened.
        let round = self.rounds.load(Ordering::SeqCst) + 1;
        self.alarm.notify_one();
        self.park(until, need, round).await?;
        // The primary itself is set so: nothing comes of asking it again.
        let primary = self.endpoints.get(self.standing.borrow().endpoint);
        let is_set_so = primary.is_some_and(|it| it.seen().finding == Some(EndpointFinding::ReadOnly));
        if is_set_so && matches!(error, DbError::ReadOnly { .. }) { Err(error) } else { Ok(()) }
    }

    async fn park(&self, until: tokio::time::Instant, need: Need, round: u64) -> Result<(), DbError> {
        let Ok(_place) = self.parked.try_acquire() else {
            self.signals.parked(Parked::Refused);
            return Err(self.why(need));
        };
        let mut standing = self.standing.subscribe();
        let served = standing.wait_for(|it| it.left || (it.round >= round && it.serves(need)));
        if let Ok(Ok(standing)) = tokio::time::timeout_at(until, served).await {
            self.signals.parked(Parked::Resumed);
            // Whoever is told so asks for the shard again.
            return if standing.left { Err(DbError::Closed) } else { Ok(()) };
        }
        self.signals.parked(Parked::Expired);
        Err(self.why(need))
    }

    fn why(&self, need: Need) -> DbError {
        let (state, place) = (self.standing.borrow().state, self.primary().to_owned());
        match state {
            PrimaryState::NoStandby if need == Need::Write => DbError::NoStandby { place },
            _ => DbError::NoPrimary { place },
        }
    }

    /// A replica that is at most so old, if one may be asked that is not among those that have been: the better of two that
    /// are drawn.
    pub(crate) fn replica(&self, most: Option<Duration>, asked: &[usize]) -> Option<(usize, &Endpoint)> {
        let now = Instant::now();
        let may_answer = |&(index, endpoint): &(usize, &Endpoint)| {
            let lag = endpoint.lag(now);
            !asked.contains(&index)
                && lag.is_some_and(|lag| most.is_none_or(|most| lag <= most))
                && endpoint.breaker.allows(now)
        };
        let mut able: Vec<_> = self.endpoints.iter().enumerate().filter(may_answer).collect();
        let mut draw = || {
            let drawn = usize::try_from(random()).unwrap_or(0).checked_rem(able.len())?;
            Some(able.swap_remove(drawn))
        };
        let first = draw()?;
        let chosen = match draw() {
            Some(second) if second.1.load.cost() < first.1.load.cost() => second,
            _ => first,
        };
        chosen.1.breaker.begin(now);
        Some(chosen)
    }

    /// A place among the reads that the primary answers in a replica's stead; waits while there are too many.
    ///
    /// # Errors
    /// [`DbError::Late`] when none is free until `until`.
    pub(crate) async fn fall_back(&self, until: tokio::time::Instant) -> Result<OwnedSemaphorePermit, DbError> {
        let place = Arc::clone(&self.fallen_back).acquire_owned();
        tokio::time::timeout_at(until, place).await.map_err(|_| DbError::Late)?.map_err(|_| DbError::Closed)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for endpoint in &self.endpoints {
            self.signals.endpoint(endpoint.seen().finding, None);
        }
    }
}
