//! Un-parking: a held sequence is applied again, in order, in steps that each commit.

use std::time::Instant;

use pim_core::clock::Timestamp;
use pim_data::backend::{DbError, Row, Statement, Transaction};
use uuid::Uuid;

use super::batch::Ready;
use super::{
    Ahead, ApplyError, Engine, Event, FailureClass, HoldReason, Place, Sink, Standing, Step, ledger, pause_before,
};
use crate::consumer::head::{Head, Order};
use crate::consumer::ledger::HeldEvent;
use crate::pace::GoesOn;
use crate::signals::RecordFate;

/// Most held events that one step reads.
const STEP_MAX: u32 = 100;

/// What one step found.
enum Found {
    /// Nothing more to do for this key.
    Done,
    /// The run of events that follows the head, oldest first.
    Run { run: Vec<HeldEvent>, events: Vec<Event> },
}

impl<S: Sink> Engine<S> {
    /// Goes one step with each of some keys of a partition that are marked for it, so that a long sequence keeps nobody else
    /// waiting; true when there was one. A consumer that is stopped goes none. Between two steps `goes_on` says whether there is
    /// time for another.
    pub(crate) async fn drain(
        &self,
        place: &Place,
        goes_on: impl Fn() -> bool + Send + Sync,
    ) -> Result<bool, ApplyError> {
        let rows = self.db.query(ledger::draining(place)).await?;
        if rows.is_empty() || matches!(self.refused(place).await?, Step::Stopped | Step::Outdated) {
            return Ok(false);
        }
        for row in rows.iter().take_while(|_| goes_on()) {
            let key = row.uuid(0).map_err(DbError::from)?;
            let outcome = self.drain_key(place, key, &goes_on).await;
            self.sink.forget(&[key].into());
            outcome?;
        }
        Ok(true)
    }

    async fn drain_key(&self, place: &Place, key: Uuid, goes_on: GoesOn<'_>) -> Result<(), ApplyError> {
        let (mut size, mut tries) = (STEP_MAX as usize, 0);
        // Each turn halves the step, counts a try, or ends.
        while goes_on() {
            match self.drain_step(place, key, size, goes_on).await {
                Ok(()) => return Ok(()),
                Err(error) if error.class() == FailureClass::Transient => return Err(error),
                Err(_) if size > 1 => size /= 2,
                Err(error) if error.class() == FailureClass::Capped && tries < self.settings.tries_max => {
                    tries += 1;
                    tokio::time::sleep(pause_before(tries)).await;
                }
                Err(error) => {
                    let set = ledger::give_up(place.consumer, key, error.code(), self.clock.now());
                    let (tx, answers) = self.db.begin_with(&alone(place)).await?;
                    // Another version may not fail at it.
                    if self.may_drain(&answers)? {
                        tx.commit_with(vec![set]).await?;
                    } else {
                        tx.rollback().await?;
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Applies up to `size` events of the sequence in one transaction, unless that is not this code's any more.
    pub(super) async fn drain_step(
        &self,
        place: &Place,
        key: Uuid,
        size: usize,
        goes_on: GoesOn<'_>,
    ) -> Result<(), ApplyError> {
        if S::PREPARES {
            let standing = ledger::standing(place.consumer);
            let asked = [standing, ledger::states(place.consumer, [key]), ledger::held(place.consumer, key, STEP_MAX)];
            let answers = self.db.read().await?.snapshot(&asked).await?;
            let [standing, rest @ ..] = &answers[..] else { return Err(DbError::Closed.into()) };
            // Effects in other stores would be there before the transaction below is refused.
            let standing = Standing::of(standing)?;
            if standing.stopped || self.is_outdated(standing) {
                return Ok(());
            }
            let mut ignored = Vec::new();
            let ahead = Ahead { db: &self.db, place, position: None };
            if let Found::Run { events, .. } = self.found(place, key, rest, size, &mut ignored)?
                && !self.sink.prepare(&events, &ahead, goes_on).await?
            {
                return Ok(());
            }
        }
        let began = (self.clock.now(), Instant::now());
        // Nobody else is at the key's head or hold before either is read.
        let [hasten, lock, standing] = alone(place);
        let states = ledger::states(place.consumer, [key]);
        let held = ledger::held(place.consumer, key, STEP_MAX);
        let first = [hasten, lock, standing, states, held, ledger::hurry(self.settings.apply_max())];
        let (mut tx, answers) = self.db.begin_with(&first).await?;
        if !self.may_drain(&answers)? {
            return Ok(tx.rollback().await?);
        }
        let (mut last, mut applied) = (vec![ledger::relax()], Vec::new());
        let outcome = match self.found(place, key, answers.get(3..5).unwrap_or_default(), size, &mut last) {
            Ok(Found::Done) => Ok(()),
            Ok(Found::Run { run, events }) => {
                applied.clone_from(&events);
                self.apply_run(&mut tx, place, key, (run, events), &mut last).await
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => {
                tx.commit_with(last).await?;
                self.signals.records(S::KIND, RecordFate::Applied, applied.len() as u64);
                self.tell(place, &applied, began);
                Ok(())
            }
            Err(error) => Err(self.take_back(place, tx, error).await),
        }
    }

    /// Whether the partition is locked, its consumer not stopped, and the read model of this code's version. A swap that was
    /// waited for has put another row in the place of the locked one: the next look locks that.
    fn may_drain(&self, answers: &[Vec<Row>]) -> Result<bool, DbError> {
        let [_, lock, standing, ..] = answers else { return Err(DbError::Closed) };
        let standing = Standing::of(standing)?;
        Ok(!lock.is_empty() && !standing.stopped && !self.is_outdated(standing))
    }

    async fn apply_run(
        &self,
        tx: &mut Transaction,
        place: &Place,
        key: Uuid,
        (run, events): (Vec<HeldEvent>, Vec<Event>),
        last: &mut Vec<Statement>,
    ) -> Result<(), ApplyError> {
        if !events.is_empty() {
            self.sink.apply(tx, &events).await?;
        }
        if let Some(end) = run.last() {
            last.push(ledger::save_heads(place.consumer, &[(key, end.at, Some(end.id))], self.clock.now()));
            last.push(ledger::drop_held(place.consumer, key, end.at));
            last.push(ledger::release(place.consumer, key));
        }
        Ok(())
    }

    fn found(
        &self,
        place: &Place,
        key: Uuid,
        answers: &[Vec<Row>],
        size: usize,
        last: &mut Vec<Statement>,
    ) -> Result<Found, ApplyError> {
        let [states, rows] = answers else { return Err(DbError::Closed.into()) };
        let state = ledger::states_of(states)?.remove(&key).unwrap_or_default();
        if state.hold != Some(HoldReason::Draining) {
            return Ok(Found::Done);
        }
        let held = rows.iter().map(HeldEvent::of).collect::<Result<Vec<_>, _>>()?;
        let now = self.clock.now();
        let (from, mut head) = (state.head, state.head);
        let mut run = Vec::new();
        for event in held.iter().filter(|event| event.at.n > from.n || event.at.epoch > from.epoch).take(size) {
            if head.order(event.at.epoch, event.at.n) != Order::Follows {
                break;
            }
            head = event.at;
            run.push(event.clone());
        }
        if run.is_empty() {
            last.extend(self.nothing_follows(place, key, (head, &held), now));
            return Ok(Found::Done);
        }
        let mut events = Vec::with_capacity(run.len());
        for held in &run {
            events.extend(Ready::of(&held.event()?, self).event()?.cloned());
        }
        Ok(Found::Run { run, events })
    }

    /// No held event follows the head: the hold ends, or waits for a gap or an operator.
    fn nothing_follows(
        &self,
        place: &Place,
        key: Uuid,
        (head, held): (Head, &[HeldEvent]),
        now: Timestamp,
    ) -> Vec<Statement> {
        let consumer = place.consumer;
        let mut all = vec![ledger::drop_held(consumer, key, head)];
        if let Some(next) = held.iter().find(|event| event.at.n > head.n || event.at.epoch > head.epoch) {
            let reason = match head.order(next.at.epoch, next.at.n) {
                Order::Rewound => (HoldReason::Rewound, "order"),
                _ => (HoldReason::Gap, "order"),
            };
            all.push(ledger::set_reason(consumer, key, reason, now));
        }
        all.push(ledger::release(consumer, key));
        all
    }
}

/// Locks the partition, and asks whether what is known of its consumer still holds: read the answers with `may_drain`.
fn alone(place: &Place) -> [Statement; 3] {
    [ledger::hasten_locks(), ledger::lock(place), ledger::standing(place.consumer)]
}
