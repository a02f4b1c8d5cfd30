//! Runs commands outside the consumer's own transaction and remembers what became of them for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use pim_core::context::RequestContext;
use pim_core::deadline::Deadline;
use pim_core::identity::Actor;
use pim_core::signal::{Span, SpanKind, Spans};
use pim_data::backend::{Db, DbError, Transaction};
use pim_data::cluster::{CONTROL, Cluster};
use pim_data::unit::{Tries, UnitError};
use tokio::time::timeout_at;
use uuid::Uuid;

use super::{CommandHandler, CommandSettings, Effect, Target};
use crate::consumer::inbox::{self, InboxPart};
use crate::consumer::{Ahead, ApplyError, FailureClass, PATIENCE, Sink, guarded, guarded_call};
use crate::event::Event;
use crate::pace::GoesOn;
use crate::signals::ConsumerKind;

/// Most keys whose commands run at the same time.
const LANES_MAX: usize = 8;
/// Most outcomes that are remembered; forgetting only costs another look into the inbox.
const MEMO_MAX: usize = 8192;

/// The code of a command that did something and said that there was nothing to do.
const NOTHING_OF_SOMETHING: &str = "nothing_of_something";

/// What became of a command.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Done,
    Failed { class: FailureClass, code: &'static str },
}

pub(super) struct CommandSink {
    pub(super) handler: Arc<dyn CommandHandler>,
    pub(super) cluster: Cluster,
    pub(super) service: Actor,
    pub(super) patience: Duration,
    spans: Spans,
    /// By event, each with its home key. It lasts no longer than its batch is tried: whatever is remembered beyond that may have
    /// been set back with its shard.
    memo: Mutex<HashMap<Uuid, (Uuid, Outcome)>>,
}

impl CommandSink {
    pub(super) fn new(handler: Arc<dyn CommandHandler>, cluster: Cluster, settings: &CommandSettings) -> Self {
        let (service, spans) = (settings.service.clone(), settings.consumer.spans.clone());
        Self { handler, cluster, service, patience: settings.patience, spans, memo: Mutex::default() }
    }

    fn memo(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, (Uuid, Outcome)>> {
        self.memo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The commands of one key, in order; the first that fails ends the lane, so that nothing overtakes it. False when it was not
    /// to go on.
    async fn lane(&self, events: Vec<&Event>, ahead: &Ahead<'_>, goes_on: GoesOn<'_>) -> Result<bool, ApplyError> {
        for event in events {
            if !goes_on() {
                return Ok(false);
            }
            if matches!(self.memo().get(&event.id), Some((_, Outcome::Done))) {
                continue;
            }
            let outcome = match self.run(event, ahead).await {
                Ok(()) => Outcome::Done,
                Err(error) if error.class() == FailureClass::Transient => return Err(error),
                Err(error) => Outcome::Failed { class: error.class(), code: error.code() },
            };
            self.memo().insert(event.id, (event.home, outcome));
            if matches!(outcome, Outcome::Failed { .. }) {
                return Ok(true);
            }
        }
        Ok(true)
    }

    /// Within this time a store answers that is not what a command has waited for.
    fn soon(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + self.patience / 4
    }

    /// Whether the command's shard answers quickly, so that it is not what a command has waited for.
    async fn answers(&self, db: &Db, event: &Event, target: Target) -> bool {
        let until = self.soon();
        let asked = inbox::is_done(db, self.handler.name(), (event.id, target.key().uuid()), until);
        matches!(timeout_at(until, asked).await, Ok(Ok(_)))
    }

    /// Runs one command until it is committed, refused, or found to be committed before.
    async fn run(&self, event: &Event, ahead: &Ahead<'_>) -> Result<(), ApplyError> {
        let consumer = self.handler.name();
        let target = guarded_call(|| self.handler.target(event))?;
        let cx = event.context(&self.service, Deadline::after(self.patience));
        let mut tries = Tries::of(&self.cluster, &cx);
        let began = (self.cluster.clock().now(), Instant::now());
        loop {
            let (shard, mut unit) = match target {
                Target::Shard(key) => (self.cluster.router().route(&key).shard, self.cluster.begin(&cx, key)),
                Target::Control(key) => (CONTROL, self.cluster.begin_control(&cx, key)),
            };
            let db = self.cluster.database(shard).ok_or(UnitError::UnknownShard(shard))?;
            if inbox::is_done(&db, consumer, (event.id, target.key().uuid()), cx.deadline().instant()).await? {
                return Ok(());
            }
            unit.part::<InboxPart>().enter(consumer, event.id);
            // Cut short it has written nothing: the unit is committed below, which nothing cuts.
            let handling = guarded(self.handler.handle(&cx, &mut unit, event));
            let handled = timeout_at(cx.deadline().instant(), handling).await;
            let handled = handled.unwrap_or(Err(ApplyError::Unit(UnitError::Deadline)));
            // If the event is not passed now, what the handler has read is of before that. A commit that is late all the same is
            // refused where a later command has written what was read. Else the plan is another one: from the start again.
            if matches!(handled, Ok(Effect::Commit)) && !ahead.has(event, self.soon()).await? {
                return Err(DbError::Busy.into());
            }
            // Right before the commit, which would only say that its time is over, again and again.
            if takes_too_long(&cx, &handled) && self.answers(&db, event, target).await {
                return Err(ApplyError::Later { code: PATIENCE });
            }
            let committed = match handled {
                Ok(Effect::Nothing) if unit.is_empty() => return Ok(()),
                // Whoever has saved or appended something meant it.
                Ok(Effect::Nothing) => Err(ApplyError::Rejected { code: NOTHING_OF_SOMETHING }),
                // A part is the program's own code. Where it panics nothing is written.
                Ok(Effect::Commit) => guarded(async { unit.commit().await.map(drop).map_err(ApplyError::from) }).await,
                Err(error) => Err(error),
            };
            match committed {
                Ok(()) => {
                    let time = (began.0, began.1.elapsed());
                    let span = Span::new(SpanKind::Consumer, consumer, cx.trace(), cx.request_id(), time);
                    self.spans.keep(span.of_event(event.id));
                    return Ok(());
                }
                // Done, if it is confirmed: looked up once more.
                Err(ApplyError::Unit(error)) if inbox::lost_race(&error) => {}
                Err(ApplyError::Unit(error)) if tries.again(&error).await => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether all of its time went before a command came to its commit.
fn takes_too_long(cx: &RequestContext, handled: &Result<Effect, ApplyError>) -> bool {
    let is_cut = matches!(
        handled,
        Ok(Effect::Commit) | Err(ApplyError::Unit(UnitError::Deadline) | ApplyError::Store(DbError::Late))
    );
    is_cut && cx.deadline().remaining().is_none()
}

#[async_trait]
impl Sink for CommandSink {
    const PREPARES: bool = true;
    const KIND: ConsumerKind = ConsumerKind::Command;

    fn handles(&self, event_type: &str) -> bool {
        self.handler.handles(event_type)
    }

    async fn prepare(&self, events: &[Event], ahead: &Ahead<'_>, goes_on: GoesOn<'_>) -> Result<bool, ApplyError> {
        if self.memo().len() > MEMO_MAX {
            self.memo().clear();
        }
        let mut lanes: BTreeMap<Uuid, Vec<&Event>> = BTreeMap::new();
        for event in events {
            lanes.entry(event.home).or_default().push(event);
        }
        let running = lanes.into_values().map(|lane| self.lane(lane, ahead, goes_on)).collect::<Vec<_>>();
        let mut running = futures_util::stream::iter(running).buffer_unordered(LANES_MAX);
        let mut is_whole = true;
        while let Some(outcome) = running.next().await {
            is_whole &= outcome?;
        }
        Ok(is_whole)
    }

    fn forget(&self, keys: &BTreeSet<Uuid>) {
        self.memo().retain(|_, (home, _)| !keys.contains(home));
    }

    async fn apply(&self, _tx: &mut Transaction, events: &[Event]) -> Result<(), ApplyError> {
        let mut memo = self.memo();
        for event in events {
            match memo.get(&event.id).map(|(_, outcome)| *outcome) {
                Some(Outcome::Done) => {}
                Some(Outcome::Failed { class: FailureClass::Capped, code }) => return Err(ApplyError::Later { code }),
                Some(Outcome::Failed { code, .. }) => return Err(ApplyError::Rejected { code }),
                // The plan has changed since it was prepared: from the start again.
                None => return Err(DbError::Busy.into()),
            }
        }
        for event in events {
            memo.remove(&event.id);
        }
        Ok(())
    }
}
