//! What to do with each record of a batch, decided before anything is written.

use std::collections::{BTreeMap, HashMap};

use pim_core::clock::Timestamp;
use pim_data::backend::Statement;
use uuid::Uuid;

use super::{ApplyError, Disposition, Engine, Event, Hold, HoldReason, KeyState, Place, Record, Sink, ledger};
use crate::consumer::guarded_call;
use crate::consumer::head::Head;
use crate::event::{EnvelopeError, UpcastError};
use crate::signals::{ConsumerKind, EventSignals, RecordFate};

/// A record, read once however often its batch is tried.
pub(super) struct Item<'a> {
    pub(super) record: &'a Record,
    pub(super) event: Result<Event, EnvelopeError>,
    ready: Ready,
    is_superseded: bool,
}

impl<'a> Item<'a> {
    pub(super) fn read<S: Sink>(record: &'a Record, engine: &Engine<S>) -> Self {
        let event = record.event();
        let ready = event.as_ref().map_or(Ready::IGNORED, |event| Ready::of(event, engine));
        let superseded = |event: &Event| engine.superseded.covers(event);
        let is_superseded = event.as_ref().is_ok_and(superseded);
        Self { record, event, ready, is_superseded }
    }

    pub(super) fn home(&self) -> Option<Uuid> {
        self.event.as_ref().ok().map(|event| event.home)
    }

    /// What to do with its event, as its key stands.
    fn take(&self, event: &Event, state: &mut KeyState) -> Disposition {
        if self.is_superseded {
            return Disposition::Duplicate;
        }
        state.take(event.owner_epoch, event.n, event.id)
    }

    /// How its event, which could not be applied, is held as its key stands now: it was tried before the key was locked, and
    /// may have been applied by another worker, or its key be rewound.
    pub(super) fn held(&'a self, event: &'a Event, known: KeyState, code: &'static str) -> Option<Hold<'a>> {
        let mut state = known;
        let (reason, code) = match self.take(event, &mut state) {
            Disposition::Duplicate => return None,
            Disposition::Hold(reason) => (reason, "order"),
            Disposition::Apply => {
                state = known;
                state.park(event.owner_epoch, event.n);
                (HoldReason::Poison, code)
            }
        };
        let last = state.held_last.unwrap_or(state.head);
        Some(Hold { record: self.record, event, reason, code, last })
    }
}

/// An event in its newest version, if its consumer handles the type.
pub(super) struct Ready(Result<Option<Event>, Unready>);

/// Why it cannot be had.
enum Unready {
    Refused(UpcastError),
    Panicked,
}

impl Ready {
    const IGNORED: Self = Self(Ok(None));

    /// What is asked is code of the embedding program. A panic of it is the event's fault, and must not end the worker.
    pub(super) fn of<S: Sink>(event: &Event, engine: &Engine<S>) -> Self {
        let asked = guarded_call(|| {
            let handled = engine.sink.handles(&event.event_type).then(|| engine.registry.upcast(event.clone()));
            handled.transpose().map_err(Unready::Refused)
        });
        Self(asked.unwrap_or(Err(Unready::Panicked)))
    }

    pub(super) fn event(&self) -> Result<Option<&Event>, ApplyError> {
        match &self.0 {
            Ok(event) => Ok(event.as_ref()),
            Err(Unready::Refused(error)) => Err(error.clone().into()),
            Err(Unready::Panicked) => Err(ApplyError::Panicked),
        }
    }
}

/// A batch with everything decided.
pub(super) struct Attempt<'a> {
    pub(super) apply: Vec<Event>,
    pub(super) dead: Vec<(&'a Record, &'static str)>,
    /// By key, and the event that each is the head of.
    heads: BTreeMap<Uuid, (Head, Uuid)>,
    holds: Vec<(&'a Item<'a>, HoldReason, Head)>,
    /// Keys held for a gap that this batch fills.
    filled: Vec<Uuid>,
    duplicates: u64,
    ignored: u64,
}

impl<'a> Attempt<'a> {
    /// Takes the records in order. Heads move over types that nobody handles, too.
    pub(super) fn plan(items: &'a [Item<'a>], states: &mut HashMap<Uuid, KeyState>) -> Result<Self, ApplyError> {
        let mut plan = Self {
            apply: Vec::new(),
            dead: Vec::new(),
            heads: BTreeMap::new(),
            holds: Vec::new(),
            filled: Vec::new(),
            duplicates: 0,
            ignored: 0,
        };
        for item in items {
            let event = match &item.event {
                Ok(event) => event,
                Err(_) => {
                    plan.dead.push((item.record, "envelope"));
                    continue;
                }
            };
            let state = states.entry(event.home).or_default();
            match item.take(event, state) {
                Disposition::Duplicate => plan.duplicates += 1,
                Disposition::Hold(reason) => {
                    plan.holds.push((item, reason, state.held_last.unwrap_or(state.head)));
                }
                Disposition::Apply => {
                    match item.ready.event()? {
                        Some(event) => plan.apply.push(event.clone()),
                        None => plan.ignored += 1,
                    }
                    plan.heads.insert(event.home, (state.head, event.id));
                    if state.hold == Some(HoldReason::Gap) {
                        plan.filled.push(event.home);
                    }
                }
            }
        }
        plan.filled.sort_unstable();
        plan.filled.dedup();
        Ok(plan)
    }

    /// Of what there is more than before.
    pub(super) fn adds(&self) -> ledger::Added {
        ledger::Added { held: !self.holds.is_empty(), dead: !self.dead.is_empty() }
    }

    /// Tells what became of the records, once it is committed.
    pub(super) fn tell(&self, kind: ConsumerKind, signals: &EventSignals, now: Timestamp) {
        let of_reason = |reason| self.holds.iter().filter(|(_, it, _)| *it == reason).count() as u64;
        let behind = of_reason(HoldReason::Poison) + of_reason(HoldReason::Draining);
        for (fate, count) in [
            (RecordFate::Applied, self.apply.len() as u64),
            (RecordFate::Ignored, self.ignored),
            (RecordFate::Duplicate, self.duplicates),
            (RecordFate::Gap, of_reason(HoldReason::Gap)),
            (RecordFate::Rewound, of_reason(HoldReason::Rewound)),
            (RecordFate::Behind, behind),
            (RecordFate::Unreadable, self.dead.len() as u64),
        ] {
            signals.records(kind, fate, count);
        }
        for event in &self.apply {
            signals.applied(kind, now.since(event.time));
        }
    }

    /// The writes of the decision, all but the effects themselves.
    pub(super) fn statements(&self, place: &Place, states: &HashMap<Uuid, KeyState>, now: Timestamp) -> Vec<Statement> {
        let mut all = Vec::new();
        if !self.heads.is_empty() {
            let heads: Vec<_> = self.heads.iter().map(|(key, (head, event))| (*key, *head, Some(*event))).collect();
            all.push(ledger::save_heads(place.consumer, &heads, now));
        }
        for (item, reason, last) in &self.holds {
            if let Ok(event) = &item.event {
                let hold = Hold { record: item.record, event, reason: *reason, code: "order", last: *last };
                all.extend(ledger::hold(place, &hold, now));
            }
        }
        for key in &self.filled {
            // A rewound successor in the same batch outranks the filled gap.
            if states.get(key).is_some_and(|state| state.hold == Some(HoldReason::Gap)) {
                all.push(ledger::gap_filled(place.consumer, *key, now));
            }
        }
        all
    }
}
