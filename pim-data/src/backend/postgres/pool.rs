//! A bounded set of connections to one endpoint.
//!
//! Each is opened by a task of its own: a caller who gives up does not throw away a connection that is nearly there, and
//! a slow server cannot use up more slots than there are. The connection string is asked for each time. The endpoint may be
//! exchanged while calls are under way: connections remember by which target they were opened.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::conn::Conn;
use super::opening;
use super::target::Target;
use crate::backend::{DbError, Demand, Dial};

#[derive(Clone, Debug)]
pub(super) struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dial: Dial,
    target: watch::Sender<Target>,
    slots: Arc<Semaphore>,
    /// Places of those who write, where they may not have every connection.
    writes: Option<Arc<Semaphore>>,
    idle: Mutex<Idle>,
    /// Whether its transactions need wait for no standby.
    alone: AtomicBool,
}

#[derive(Debug, Default)]
struct Idle {
    /// The one used last stands last and is used first, so that the others grow old and are checked.
    conns: VecDeque<Conn>,
    /// When a connection was lost: those that were used last before may be gone too, and are asked first.
    lost_at: Option<std::time::Instant>,
    /// Whether none stands here any more.
    is_drained: bool,
}

/// What a connection is lent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    Read,
    /// Commits may wait for a lost standby, and leave some connections to whoever reads.
    Write,
}

/// The place of a connection, free again when it is dropped.
#[derive(Debug)]
struct Slot {
    _of_all: OwnedSemaphorePermit,
    _of_writes: Option<OwnedSemaphorePermit>,
}

/// A connection on loan; goes back by itself.
#[derive(Debug)]
pub(super) struct Lent {
    conn: Option<Conn>,
    pool: Pool,
    slot: Option<Slot>,
    /// When whoever asked for it gives up; without it each call has the settings' own bound.
    until: Option<Instant>,
    target: watch::Receiver<Target>,
    era: u64,
}

impl Pool {
    pub(super) fn new(name: &str, dial: Dial) -> Self {
        let connections_max = dial.settings.connections_max.max(1);
        let slots = Arc::new(Semaphore::new(connections_max));
        let writes = (dial.writes_max < connections_max).then(|| Arc::new(Semaphore::new(dial.writes_max)));
        let target = watch::Sender::new(Target::new(name.to_owned()));
        let dial = Dial { lookups: Dial::lookups(), ..dial };
        let (idle, alone) = (Mutex::default(), AtomicBool::default());
        Self(Arc::new(Inner { dial, target, slots, writes, idle, alone }))
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn name(&self) -> String {
        self.0.target.borrow().name.clone()
    }

    pub(super) fn demand(&self) -> Demand {
        self.0.target.borrow().demand
    }

    /// Leads to another endpoint from now on, or asks more of the same one; calls that are under way elsewhere are given up.
    pub(super) fn turn_to(&self, name: &str, demand: Demand) {
        self.0.target.send_if_modified(|target| target.turn_to(name, demand));
    }

    pub(super) fn stand_alone(&self, alone: bool) {
        self.0.alone.store(alone, Ordering::Relaxed);
    }

    pub(super) fn stands_alone(&self) -> bool {
        self.0.alone.load(Ordering::Relaxed)
    }

    /// Looks whether its name stands for something else by now. What cannot be looked up stays as it was.
    pub(super) async fn refresh(&self) -> bool {
        let name = self.name();
        // Who waits for a name service keeps nobody from being probed.
        let looked_up = timeout(self.0.dial.settings.probe_max, opening::look_up(&self.0.dial, &name)).await;
        let Ok(Ok((dsn, addresses))) = looked_up else { return false };
        self.0.target.send_if_modified(|target| target.name == name && target.stands_for(dsn, addresses))
    }

    /// Leaves behind the connections that nobody has: what they began with may hold no more.
    pub(super) fn renew(&self) {
        self.0.target.send_modify(|target| target.generation += 1);
    }

    /// Whether not all of its connections are lent or being opened.
    pub(super) fn has_room(&self) -> bool {
        self.0.slots.available_permits() > 0
    }

    /// Keeps no connection any more: each is closed when it comes back.
    pub(super) fn drain(&self) {
        let mut idle = self.idle();
        idle.is_drained = true;
        idle.conns.clear();
    }

    /// Lends no more, and gives up the calls that are under way.
    pub(super) fn close(&self) {
        self.drain();
        self.0.slots.close();
        self.0.writes.iter().for_each(|writes| writes.close());
        self.0.target.send_modify(|target| target.era += 1);
    }

    /// Lends a connection, and never takes longer than until `until`.
    pub(super) async fn lend(&self, until: Option<Instant>, errand: Errand) -> Result<Lent, DbError> {
        let settings = &self.0.dial.settings;
        let give_up = until.unwrap_or_else(|| Instant::now() + settings.call_max);
        let slot = self.slot(errand, give_up).await?;
        let mut target = self.0.target.subscribe();
        let lent = |target, era, conn, slot| Lent {
            conn: Some(conn),
            pool: self.clone(),
            slot: Some(slot),
            until,
            target,
            era,
        };
        while let Some((mut conn, is_doubtful, era)) = self.take_idle() {
            if !is_doubtful && conn.idle_for() < settings.idle_check_after {
                return Ok(lent(target, era, conn, slot));
            }
            // It may have been cut meanwhile; one that does not answer at once is not worth the wait.
            let patience = (Instant::now() + settings.connect_timeout).min(give_up);
            let generation = conn.generation();
            let answers = tokio::select! {
                biased;
                answer = timeout_at(patience, conn.ping()) => matches!(answer, Ok(Ok(()))),
                _ = target.wait_for(|target| target.generation != generation) => false,
            };
            if answers {
                return Ok(lent(target, era, conn, slot));
            }
        }
        let (answer, asked) = oneshot::channel();
        let (pool, to, mut meant) = (self.clone(), target.borrow().clone(), target.clone());
        let era = to.era;
        tokio::spawn(async move {
            let opened = tokio::select! {
                biased;
                opened = opening::open(&pool.0.dial, &to) => opened.inspect_err(|error| pool.ring(error)),
                // Nobody waits for a server that is not meant any more, and neither does the slot.
                _ = meant.wait_for(|target| target.era != era) => Err(DbError::Closed),
            };
            // Nobody waits any more: the connection is for whoever comes next, and the slot is free again.
            if let Err(Ok((conn, _slot))) = answer.send(opened.map(|conn| (conn, slot))) {
                pool.keep(conn);
            }
        });
        let opened = timeout_at(give_up, asked).await.map_err(|_| DbError::Late)?;
        let opened = opened.map_err(|_| DbError::Closed)?;
        let (conn, slot) = opened.map_err(DbError::without_effect)?;
        Ok(lent(target, era, conn, slot))
    }

    /// Waits for a place. Among those who write it is waited for first: nobody has a connection meanwhile.
    async fn slot(&self, errand: Errand, give_up: Instant) -> Result<Slot, DbError> {
        let of_writes = match &self.0.writes {
            Some(writes) if errand == Errand::Write => Some(place(writes, give_up).await?),
            _ => None,
        };
        Ok(Slot { _of_all: place(&self.0.slots, give_up).await?, _of_writes: of_writes })
    }

    /// An idle connection to the target, whether it may have been lost with others, and the target's era.
    fn take_idle(&self) -> Option<(Conn, bool, u64)> {
        let mut idle = self.idle();
        // Looked at each time: whoever waited for one that did not answer must not take those of another server for old ones.
        let (generation, era) = {
            let target = self.0.target.borrow();
            (target.generation, target.era)
        };
        // Whatever leads elsewhere is closed by being dropped.
        idle.conns.retain(|conn| conn.generation() == generation);
        let conn = idle.conns.pop_back()?;
        let is_doubtful = idle.lost_at.is_some_and(|lost_at| conn.used_at() <= lost_at);
        Some((conn, is_doubtful, era))
    }

    fn keep(&self, conn: Conn) {
        let mut idle = self.idle();
        if !idle.is_drained && conn.generation() == self.0.target.borrow().generation {
            idle.conns.push_back(conn);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Idle> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whoever looks after the endpoint that something may be wrong with its server.
    fn ring(&self, error: &DbError) {
        if matches!(error, DbError::Lost) {
            self.idle().lost_at = Some(std::time::Instant::now());
        }
        if error.speaks_of_the_server() {
            self.0.dial.alarm.notify_one();
        }
    }
}

async fn place(slots: &Arc<Semaphore>, give_up: Instant) -> Result<OwnedSemaphorePermit, DbError> {
    let slots = Arc::clone(slots);
    let place = timeout_at(give_up, slots.acquire_owned()).await;
    place.map_err(|_| DbError::Late)?.map_err(|_| DbError::Closed)
}

impl Lent {
    /// Gives up calls at `latest`, if not before.
    pub(super) fn end_by(&mut self, latest: Instant) {
        self.until = Some(self.until.map_or(latest, |until| until.min(latest)));
    }

    pub(super) fn transaction_max(&self) -> Duration {
        self.pool.0.dial.settings.transaction_max
    }

    /// Where it leads.
    pub(super) fn place(&self) -> String {
        self.conn.as_ref().map_or_else(|| self.pool.name(), |conn| conn.place().to_owned())
    }

    /// Runs a call on the connection, and gives up when it is time to, or when another server is meant by now.
    pub(super) async fn call<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Conn) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        let until = self.until.unwrap_or_else(|| Instant::now() + self.pool.0.dial.settings.call_max);
        let conn = self.conn.as_mut().ok_or(DbError::Closed)?;
        let era = self.era;
        if self.target.borrow().era != era {
            // Nothing is sent to a server that is not meant any more.
            return Err(DbError::Closed);
        }
        if !conn.begin_call() {
            return Err(DbError::Closed);
        }
        let outcome = tokio::select! {
            biased;
            outcome = timeout_at(until, work(conn)) => outcome,
            _ = self.target.wait_for(|target| target.era != era) => Ok(Err(DbError::Lost)),
        };
        match outcome {
            Ok(outcome) => {
                conn.end_call(outcome.as_ref().err());
                if let Err(error) = &outcome {
                    self.pool.ring(error);
                }
                outcome
            }
            // Whatever the server is still at, nobody will read its answer: the connection goes.
            Err(_elapsed) => Err(DbError::Unanswered),
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let (Some(mut conn), slot) = (self.conn.take(), self.slot.take()) else { return };
        if conn.is_clean() {
            self.pool.keep(conn);
            return;
        }
        // A call that was cut short, or an open transaction. Closing the socket ends the latter at once, and the former when the
        // server looks whether anybody is there. A transaction between two calls is rolled back, which keeps the connection.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if conn.is_between_calls() {
            let (pool, mut target, generation) = (self.pool.clone(), self.target.clone(), conn.generation());
            runtime.spawn(async move {
                let patience = pool.0.dial.settings.connect_timeout;
                let is_clean = tokio::select! {
                    biased;
                    // It would not be kept, and its server may be the one that is lost.
                    _ = target.wait_for(|target| target.generation != generation) => false,
                    answer = timeout(patience, conn.roll_back()) => matches!(answer, Ok(Ok(()))),
                };
                if is_clean {
                    pool.keep(conn);
                }
                drop(slot);
            });
        }
    }
}
