//! Who waits for one shard, and who goes next.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::lull::Lull;
use super::{BATCH_MAX, Seat, Turn, go_together};
use crate::backend::DbError;

/// Most units that wait for one shard.
const WAITING_MAX: usize = 4_096;

/// The units of one shard that are on their way to its server. Clones are of the same shard.
#[derive(Clone)]
pub(crate) struct Batches(Arc<Inner>);

struct Inner {
    writers_max: usize,
    gather_max: Duration,
    /// How many units are on their way, or are being written.
    tickets: AtomicUsize,
    state: Mutex<State>,
}

/// Of a unit that is on its way: from when it first reads here until it has been answered, or is given up. Whoever waits knows by
/// it that others are likely to come.
#[derive(Debug)]
pub(in crate::unit) struct Ticket(Batches);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.0.tickets.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who waits is nobody else's to see.
impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batches").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    /// How many calls are under way.
    calls: usize,
    /// Of whom: whoever waits for a key that is being written would keep everybody else in its batch waiting.
    homes: BTreeSet<Uuid>,
    waiting: VecDeque<Seat>,
    /// How many may go together now: half as many after a refusal, one more after a call that was not refused.
    most: usize,
    /// Whether somebody is sending those who wait, and whether a place has become free meanwhile.
    departing: bool,
    again: bool,
    lull: Lull,
}

/// What is to be done.
#[derive(Default)]
struct Next {
    /// Those who go.
    seats: Vec<Seat>,
    /// Those who have left meanwhile.
    gone: Vec<Seat>,
    /// Until when nobody goes, and where somebody can wait for that; none if somebody does already.
    rest: Option<(Instant, Handle)>,
}

/// One of the calls that may be under way. Whoever waits goes when it is dropped.
#[derive(Debug)]
pub(in crate::unit) struct Place {
    batches: Batches,
    homes: Vec<Uuid>,
    /// Since when its call is under way.
    called: Option<Instant>,
}

impl Place {
    /// Its call is sent now.
    pub(in crate::unit) fn call(&mut self) {
        self.called = Some(Instant::now());
    }

    /// The database refused all of them: each goes alone next, and fewer together for a while.
    pub(super) fn refuse(self, mut seats: Vec<Seat>) {
        for seat in &mut seats {
            seat.ready.since = Instant::now();
        }
        {
            let mut state = self.batches.lock();
            state.most = (state.most / 2).max(2);
        }
        self.give_back(seats);
    }

    /// They were answered.
    pub(super) fn went_well(&self) {
        let mut state = self.batches.lock();
        state.most = (state.most + 1).min(BATCH_MAX);
    }

    /// They were not sent: each goes alone next, and finds out why.
    pub(super) fn give_back(self, seats: Vec<Seat>) {
        let mut state = self.batches.lock();
        for mut seat in seats.into_iter().rev() {
            seat.alone = true;
            seat.sent.store(false, Ordering::Release);
            state.waiting.push_front(seat);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut state = self.batches.lock();
            state.calls -= 1;
            let is_last = state.calls == 0;
            state.lull.ended(self.called.map(|called| called.elapsed()), is_last);
            for home in &self.homes {
                state.homes.remove(home);
            }
        }
        self.batches.depart();
    }
}

impl State {
    /// Those who go next, in their order: one that goes by itself, or units of one entity and of different keys, none of them
    /// being written. Those who have left are taken out, and if nobody goes yet it is said until when.
    fn next(&mut self, inner: &Inner) -> Next {
        let (mut able, mut homes, mut next) = (Vec::<usize>::new(), BTreeSet::new(), Next::default());
        if self.calls >= inner.writers_max {
            return next;
        }
        let (enough, share) = self.shares(inner);
        let mut index = 0;
        while able.len() < share
            && let Some(seat) = self.waiting.get(index)
        {
            let (home, is_single) = (seat.ready.home(), seat.alone);
            if seat.reply.is_closed() {
                next.gone.extend(self.waiting.remove(index));
                continue;
            }
            let first = able.first().and_then(|&first| self.waiting.get(first));
            let is_alike = first.is_none_or(|first| !is_single && first.ready.table() == seat.ready.table());
            if is_alike && !self.homes.contains(&home) && homes.insert(home) {
                able.push(index);
                if is_single {
                    break;
                }
            }
            index += 1;
        }
        let Some(first) = able.first().and_then(|&first| self.waiting.get(first)) else { return next };
        if let Some(until) = self.gathers(&able, enough, inner.gather_max) {
            next.rest = (self.calls == 0 && self.lull.begin(able.len())).then(|| (until, first.runtime.clone()));
            return next;
        }
        if self.calls == 0 {
            self.lull.over(able.len());
        }
        next.seats.extend(able.iter().rev().filter_map(|&index| self.waiting.remove(index)));
        next.seats.reverse();
        // Whoever comes behind its key's writer has most likely been overtaken, so that it would be refused.
        for seat in &mut self.waiting {
            seat.alone |= homes.contains(&seat.ready.home());
        }
        self.calls += 1;
        self.homes.append(&mut homes);
        next
    }

    /// How many are worth waiting for and how many go together at most, when all who are on their way spread over all places:
    /// their part rounded down, so that three in two places do not wait for each other, and up.
    fn shares(&self, inner: &Inner) -> (usize, usize) {
        let tickets = inner.tickets.load(Ordering::Relaxed);
        let (enough, share) = (tickets / inner.writers_max, tickets.div_ceil(inner.writers_max));
        (enough.clamp(1, self.most), share.clamp(1, self.most))
    }

    /// Until when a place is left free, if it is: fuller calls are worth waiting for those who are on their way, as long as
    /// everybody who could go has patience. That is more while others are being written; while nobody is, and somebody waits who
    /// could not come along, there is none.
    fn gathers(&self, able: &[usize], enough: usize, gather_max: Duration) -> Option<Instant> {
        let seats = || able.iter().filter_map(|&index| self.waiting.get(index));
        if able.len() >= enough || seats().any(|seat| seat.alone) {
            return None;
        }
        let until = if self.calls > 0 {
            seats().map(|seat| seat.patient_until).min()?
        } else if able.len() == self.waiting.len() {
            let lull = self.lull.until(seats().map(|seat| seat.ready.since).min()?, gather_max);
            seats().map(|seat| seat.hurried_from).min()?.min(lull)
        } else {
            return None;
        };
        Some(until).filter(|&until| Instant::now() < until)
    }

    /// Takes out those who have left.
    fn gone(&mut self) -> VecDeque<Seat> {
        let (gone, stay) = self.waiting.drain(..).partition(|seat| seat.reply.is_closed());
        self.waiting = stay;
        gone
    }
}

impl Batches {
    /// With at most so many calls at once, of units that wait at most so long for others while they could go.
    pub(crate) fn new(writers_max: usize, gather_max: Duration) -> Self {
        let state = State {
            calls: 0,
            homes: BTreeSet::new(),
            waiting: VecDeque::new(),
            most: BATCH_MAX,
            departing: false,
            again: false,
            lull: Lull::default(),
        };
        let tickets = AtomicUsize::new(0);
        Self(Arc::new(Inner { writers_max: writers_max.max(1), gather_max, tickets, state: Mutex::new(state) }))
    }

    /// For a unit that comes here.
    pub(in crate::unit) fn ticket(&self) -> Ticket {
        self.0.tickets.fetch_add(1, Ordering::Relaxed);
        Ticket(self.clone())
    }

    /// Whether more than one unit is on its way here.
    pub(super) fn has_others(&self) -> bool {
        self.0.tickets.load(Ordering::Relaxed) > 1
    }

    pub(super) fn gather_max(&self) -> Duration {
        self.0.gather_max
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a seat, and says whether a place is free. Whoever is told so has those who wait sent, soon.
    ///
    /// # Errors
    /// [`DbError::Busy`] when too many wait.
    pub(super) fn wait(&self, mut seat: Seat) -> Result<bool, DbError> {
        // What they leave behind is dropped when nobody is kept waiting for it.
        let _gone;
        let mut state = self.lock();
        // Those who left count for nothing.
        _gone = if state.waiting.len() < WAITING_MAX { VecDeque::new() } else { state.gone() };
        if state.waiting.len() >= WAITING_MAX {
            return Err(DbError::Busy);
        }
        seat.alone |= state.homes.contains(&seat.ready.home());
        state.waiting.push_back(seat);
        Ok(state.calls < self.0.writers_max)
    }

    /// Sends those who wait, as far as there are places.
    pub(super) fn depart(&self) {
        {
            let mut state = self.lock();
            // A place that is given up on the way, by a runtime that ends, must not send the others from within.
            state.again = true;
            if std::mem::replace(&mut state.departing, true) {
                return;
            }
        }
        loop {
            let Next { mut seats, gone: _gone, .. } = {
                let mut state = self.lock();
                let next = state.next(&self.0);
                if next.seats.is_empty() && !std::mem::take(&mut state.again) {
                    state.departing = false;
                }
                let is_over = !state.departing;
                drop(state);
                if let Some((until, runtime)) = &next.rest {
                    self.watch(*until, runtime);
                }
                if is_over {
                    return;
                }
                next
            };
            let homes = seats.iter().map(|seat| seat.ready.home()).collect();
            let Some(last) = seats.pop() else { continue };
            let place = Place { batches: self.clone(), homes, called: None };
            if seats.is_empty() {
                let _left = last.reply.send(Turn::Alone(last.ready, place));
            } else {
                let runtime = last.runtime.clone();
                seats.push(last);
                drop(runtime.spawn(go_together(seats, place)));
            }
        }
    }

    /// Has those who wait sent when the lull is over.
    fn watch(&self, until: Instant, runtime: &Handle) {
        let watch = Watch { batches: self.clone(), until };
        runtime.spawn(async move {
            sleep_until(watch.until).await;
            drop(watch);
        });
    }
}

/// Sends those who wait when it is dropped: when the lull is over, or with the runtime that was to say so.
struct Watch {
    batches: Batches,
    until: Instant,
}

impl Drop for Watch {
    fn drop(&mut self) {
        {
            let mut state = self.batches.lock();
            state.lull.unwatched(self.until <= Instant::now());
        }
        self.batches.depart();
    }
}
