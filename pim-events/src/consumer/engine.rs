//! One batch at a time: checkpoint, heads, holds and effects commit together, and a failure parks one key.

mod ahead;
mod batch;
mod drain;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pim_core::clock::{Clock, Timestamp};
use pim_core::signal::SpanKind;
use pim_data::backend::{Db, DbError, Statement, Transaction};
use uuid::Uuid;

use super::hold::{Disposition, HoldReason, KeyState};
use super::ledger::{self, Hold, Place, Standing};
use super::{ApplyError, ConsumerSettings, FailureClass, PATIENCE, Superseded};
use crate::bus::Record;
use crate::event::{Event, Registry};
use crate::pace::GoesOn;
use crate::signals::{ConsumerKind, EventSignals, RecordFate};
pub(crate) use ahead::Ahead;
use batch::{Attempt, Item};

/// Where events take effect.
#[async_trait]
pub(crate) trait Sink: Send + Sync + 'static {
    /// Whether events have to be prepared outside the transaction.
    const PREPARES: bool;
    /// What its signals call it.
    const KIND: ConsumerKind;

    /// The version of its read model, if it writes one.
    fn version(&self) -> Option<u32> {
        None
    }

    fn handles(&self, event_type: &str) -> bool;

    /// Effects in other stores, idempotent by event, of what still lies ahead. Remembers what became of each event for
    /// [`Sink::apply`]. False when it was not to go on before all of them had their turn.
    async fn prepare(&self, events: &[Event], ahead: &Ahead<'_>, goes_on: GoesOn<'_>) -> Result<bool, ApplyError>;

    /// Forgets what became of events of these keys: their shard may be set back before they come again.
    fn forget(&self, _keys: &BTreeSet<Uuid>) {}

    /// Effects in the consumer's own store.
    async fn apply(&self, tx: &mut Transaction, events: &[Event]) -> Result<(), ApplyError>;
}

/// What a batch came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Everything before this offset is applied, skipped or held.
    Next(u64),
    /// Another owner moved the checkpoint, or an operator resumed the consumer: read it again.
    Lost,
    /// The consumer is stopped.
    Stopped,
    /// The read model is of another version by now.
    Outdated,
    /// It was not to go on; the next start does what is left.
    Ended,
}

pub(crate) struct Engine<S> {
    pub(crate) sink: S,
    pub(crate) db: Db,
    pub(crate) registry: Registry,
    pub(crate) settings: ConsumerSettings,
    pub(crate) clock: Clock,
    pub(crate) signals: EventSignals,
    /// Events that are passed over, because their numbers were given out again.
    pub(crate) superseded: Arc<Superseded>,
    /// Whether it has been told that the read model is of another version.
    pub(crate) told_outdated: AtomicBool,
}

/// Within this time a store answers that is not to blame for what took too long.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Keys parked within this time count against the limit.
const PARKING_WINDOW: Duration = Duration::from_secs(60);

/// How long what is to come later is left alone before it is tried again.
fn pause_before(tries: u32) -> Duration {
    Duration::from_millis(10 << tries.min(6))
}

impl<S: Sink> Engine<S> {
    /// Where this consumer continues.
    pub(crate) async fn position(&self, place: &Place) -> Result<u64, DbError> {
        let rows = self.db.query(ledger::position(place)).await?;
        if let Some(row) = rows.first() {
            return Ok(row.count(0)?);
        }
        let mut tx = self.db.begin().await?;
        let answers = tx.hop(&ledger::enter(place, self.clock.now())).await?;
        tx.commit().await?;
        Ok(answers.last().and_then(|rows| rows.first()).map_or(Ok(0), |row| row.count(0))?)
    }

    /// Applies records that follow `from`, in order. Splits the batch around what fails, down to the one event.
    pub(crate) async fn absorb(&self, place: &Place, from: u64, records: &[Record]) -> Result<Step, ApplyError> {
        self.absorb_while(place, (from, records), &|| true).await
    }

    /// As [`Engine::absorb`], as long as it is to go on: with what fails a batch may take minutes.
    pub(crate) async fn absorb_while(
        &self,
        place: &Place,
        (from, records): (u64, &[Record]),
        goes_on: GoesOn<'_>,
    ) -> Result<Step, ApplyError> {
        let items: Vec<Item<'_>> = records.iter().map(|record| Item::read(record, self)).collect();
        let outcome = self.absorb_items(place, from, &items, goes_on).await;
        self.sink.forget(&items.iter().filter_map(Item::home).collect());
        outcome
    }

    async fn absorb_items(
        &self,
        place: &Place,
        from: u64,
        items: &[Item<'_>],
        goes_on: GoesOn<'_>,
    ) -> Result<Step, ApplyError> {
        let (mut at, mut expected, mut size, mut tries) = (0, from, items.len(), 0);
        let mut seen = None;
        // Each turn moves `at`, halves `size`, counts a try, or leaves.
        while at < items.len() && goes_on() {
            let end = (at + size.max(1)).min(items.len());
            let slice = &items[at..end];
            match self.attempt(place, (expected, slice), &mut seen, goes_on).await {
                Ok(Step::Next(next)) => {
                    (at, expected, tries) = (end, next, 0);
                    size = (size * 2).clamp(1, items.len());
                }
                Ok(other) => return Ok(other),
                Err(error) if error.class() == FailureClass::Transient => return Err(error),
                Err(_) if slice.len() > 1 => size = slice.len() / 2,
                Err(error) if error.class() == FailureClass::Capped && tries < self.settings.tries_max => {
                    tries += 1;
                    tokio::time::sleep(pause_before(tries)).await;
                }
                Err(error) => {
                    match self.park((place, expected), &slice[0], error.code(), seen).await? {
                        Step::Next(next) => (at, expected, tries) = (end, next, 0),
                        other => return Ok(other),
                    }
                    size = size.max(1);
                }
            }
        }
        Ok(Step::Next(expected))
    }

    /// Applies all of `items` or none; `seen` is how the consumer stood when they were tried.
    async fn attempt(
        &self,
        place: &Place,
        (expected, items): (u64, &[Item<'_>]),
        seen: &mut Option<Standing>,
        goes_on: GoesOn<'_>,
    ) -> Result<Step, ApplyError> {
        if S::PREPARES {
            let states = ledger::states(place.consumer, items.iter().filter_map(Item::home));
            let answers = self.db.read().await?.snapshot(&[states, ledger::standing(place.consumer)]).await?;
            let [states, standing] = &answers[..] else { return Err(DbError::Closed.into()) };
            let standing = *seen.insert(Standing::of(standing)?);
            // Effects in other stores would be there before the transaction below is refused.
            if standing.stopped || self.is_outdated(standing) {
                return self.refused(place).await;
            }
            let mut states = ledger::states_of(states)?;
            let plan = Attempt::plan(items, &mut states)?;
            let ahead = Ahead { db: &self.db, place, position: Some(expected) };
            if !self.sink.prepare(&plan.apply, &ahead, goes_on).await? {
                return Ok(Step::Ended);
            }
        }
        let began = (self.clock.now(), Instant::now());
        let Some(mut entered) = self.enter(place, expected, items, None).await? else {
            return self.refused(place).await;
        };
        if !S::PREPARES {
            *seen = Some(entered.standing);
        }
        let plan = match Attempt::plan(items, &mut entered.states) {
            Ok(plan) => plan,
            Err(error) => {
                entered.tx.rollback().await?;
                return Err(error);
            }
        };
        if !plan.apply.is_empty()
            && let Err(error) = self.sink.apply(&mut entered.tx, &plan.apply).await
        {
            return Err(self.take_back(place, entered.tx, error).await);
        }
        let now = self.clock.now();
        let mut last = vec![ledger::relax()];
        last.extend(plan.statements(place, &entered.states, now));
        last.extend(plan.dead.iter().map(|(record, code)| ledger::bury(place, record, code, now)));
        last.extend(ledger::stop_when_full(place.consumer, plan.adds(), &self.settings.hold_limits(), now));
        entered.tx.commit_with(last).await?;
        plan.tell(S::KIND, &self.signals, self.clock.now());
        self.tell(place, &plan.apply, began);
        Ok(Step::Next(entered.next))
    }

    /// Rolls back what failed, and says why it did: what was cut short may have waited for the store.
    async fn take_back(&self, place: &Place, tx: Transaction, error: ApplyError) -> ApplyError {
        if !matches!(error, ApplyError::Later { code: PATIENCE }) {
            return tx.rollback().await.map_or_else(Into::into, |()| error);
        }
        // A server may have ended a session that stood idle: that it is gone says nothing of the server.
        drop(tx);
        let until = tokio::time::Instant::now() + ANSWER_MAX;
        let asked = async { self.db.read_until(until).await?.query(ledger::standing(place.consumer)).await };
        match tokio::time::timeout_at(until, asked).await {
            Ok(Ok(_)) => self.until_free(place).await.map_or_else(Into::into, |()| error),
            Ok(Err(silent)) => silent.into(),
            Err(_) => DbError::Late.into(),
        }
    }

    /// Waits until the server has ended what was cut short: it goes on with the statement in hand, for as long as that may take, and
    /// keeps the checkpoint locked meanwhile. Less of the batch would only meet that lock.
    async fn until_free(&self, place: &Place) -> Result<(), DbError> {
        // A lock is waited for half as long as a statement may take.
        for _ in 0..2 {
            match self.db.begin_with(&[ledger::hasten_locks(), ledger::lock(place)]).await {
                Ok((tx, _)) => return tx.rollback().await,
                Err(DbError::Busy) => {}
                Err(error) => return Err(error),
            }
        }
        Err(DbError::Busy)
    }

    /// Tells of what has been committed. What was prepared outside has told of itself.
    fn tell(&self, place: &Place, events: &[Event], (began_at, began): (Timestamp, Instant)) {
        if S::PREPARES {
            return;
        }
        for event in events.iter().filter(|event| event.trace.sampled()) {
            let time = (began_at, began.elapsed());
            self.settings.spans.keep(event.span(SpanKind::Consumer, place.consumer, time));
        }
    }

    /// Puts the one event that could not be applied, or the first of its key's held ones, aside.
    ///
    /// An operator who has resumed the consumer since has mended something: the event is tried anew.
    async fn park(
        &self,
        (place, expected): (&Place, u64),
        item: &Item<'_>,
        code: &'static str,
        seen: Option<Standing>,
    ) -> Result<Step, ApplyError> {
        let alone = Some(ledger::parking(place.consumer));
        let Some(mut entered) = self.enter(place, expected, std::slice::from_ref(item), alone).await? else {
            return self.refused(place).await;
        };
        if seen.is_some_and(|seen| seen.resumes != entered.standing.resumes) {
            entered.tx.rollback().await?;
            return Ok(Step::Lost);
        }
        let now = self.clock.now();
        let mut last = Vec::new();
        let event = item.event.as_ref().ok();
        let state = event.and_then(|event| entered.states.remove(&event.home)).unwrap_or_default();
        let hold = event.and_then(|event| item.held(event, state, code));
        if let Some(hold) = &hold {
            last.extend(ledger::hold(place, hold, now));
            let since = now.minus(PARKING_WINDOW);
            last.push(ledger::stop_above(place.consumer, self.settings.parked_per_minute_max, since, now));
        }
        if event.is_none() {
            // Not even putting it aside worked before: without this the checkpoint would pass over it and it were gone.
            last.push(ledger::bury(place, item.record, code, now));
        }
        let added = ledger::Added { held: hold.is_some(), dead: event.is_none() };
        last.extend(ledger::stop_when_full(place.consumer, added, &self.settings.hold_limits(), now));
        entered.tx.commit_with(last).await?;
        let fate = match (event, hold.map(|hold| hold.reason)) {
            (Some(_), None) => RecordFate::Duplicate,
            (None, None) | (_, Some(HoldReason::Poison)) => RecordFate::Parked,
            (_, Some(HoldReason::Gap)) => RecordFate::Gap,
            (_, Some(HoldReason::Rewound)) => RecordFate::Rewound,
            (_, Some(HoldReason::Draining)) => RecordFate::Behind,
        };
        self.signals.records(S::KIND, fate, 1);
        if fate == RecordFate::Parked {
            tell_parked(place, event, code);
        }
        Ok(Step::Next(entered.next))
    }

    /// Begins the transaction whose first statement moves the checkpoint; `None` when it was refused. Unless it is to park, what is
    /// done in it has the time of a batch.
    async fn enter(
        &self,
        place: &Place,
        expected: u64,
        items: &[Item<'_>],
        before: Option<Statement>,
    ) -> Result<Option<Entered>, ApplyError> {
        let now = self.clock.now();
        let next = items.last().map_or(expected, |item| item.record.offset + 1);
        let event_at = items.last().and_then(|item| item.event.as_ref().ok()).map_or(now, |event| event.time);
        let hurry = before.is_none().then(|| ledger::hurry(self.settings.apply_max()));
        let mut first: Vec<Statement> = [ledger::hasten_locks()].into_iter().chain(before).collect();
        let begin = first.len();
        first.extend([
            ledger::advance(place, (expected, next), event_at, now),
            ledger::standing(place.consumer),
            ledger::states(place.consumer, items.iter().filter_map(Item::home)),
        ]);
        first.extend(hurry);
        let (tx, answers) = self.db.begin_with(&first).await?;
        let [moved, standing, states, ..] = answers.get(begin..).unwrap_or_default() else {
            return Err(DbError::Closed.into());
        };
        let standing = Standing::of(standing)?;
        // Asked for behind the checkpoint, which a swap of versions keeps locked until it has committed.
        if moved.is_empty() || standing.stopped || self.is_outdated(standing) {
            tx.rollback().await?;
            return Ok(None);
        }
        self.told_outdated.store(false, Ordering::Relaxed);
        Ok(Some(Entered { tx, next, standing, states: ledger::states_of(states)? }))
    }

    async fn refused(&self, place: &Place) -> Result<Step, ApplyError> {
        let standing = Standing::of(&self.db.query(ledger::standing(place.consumer)).await?)?;
        if self.is_outdated(standing) {
            self.tell_outdated(place, standing);
            return Ok(Step::Outdated);
        }
        Ok(if standing.stopped { Step::Stopped } else { Step::Lost })
    }

    /// Whether the read model has become one of another version, so that this code must not write into it; or there is one where
    /// commands run under its name, so that each would take the other's events.
    fn is_outdated(&self, standing: Standing) -> bool {
        u64::from(self.sink.version().unwrap_or_default()) != standing.version
    }

    /// Once, for all of its partitions.
    fn tell_outdated(&self, place: &Place, standing: Standing) {
        if !self.told_outdated.swap(true, Ordering::Relaxed) {
            let known = self.sink.version().unwrap_or_default();
            pim_core::warn!("consumer.outdated", consumer = place.consumer, stored = standing.version, known = known);
        }
    }
}

fn tell_parked(place: &Place, event: Option<&Event>, code: &'static str) {
    pim_core::warn!(
        "key.parked",
        request_id = event.map(|event| event.correlation),
        trace_id = event.map(|event| event.trace.trace_id()),
        span_id = event.map(|event| event.trace.span_id()),
        consumer = place.consumer,
        partition = place.partition,
        code = code,
    );
}

/// A transaction in which the checkpoint has moved.
struct Entered {
    tx: Transaction,
    next: u64,
    standing: Standing,
    states: HashMap<Uuid, KeyState>,
}
