//! One outbox, one lease, one loop.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use pim_core::clock::{Clock, Timestamp};
use pim_core::signal::SpanKind;
use pim_data::backend::{DbError, Row, Statement};
use tokio::time::Instant;
use uuid::Uuid;

use super::RelaySettings;
use super::hold::{self, Held};
use crate::bus::{Ack, BusError, NewRecord, Publisher};
use crate::outbox::Source;
use crate::outbox::cursor::Cursor;
use crate::outbox::row::{self, Entry, OutboxRow};
use crate::pace::{Pace, Stop, rest, sleep};
use crate::signals::{EventSignals, LeaseChange};

/// How often a relay looks for held keys that an operator wants sent again.
const RETRY_LOOK: Duration = Duration::from_millis(500);
/// How often a lease is renewed for one batch. With a bus that stands still for longer another relay has its chance.
const RENEWALS_MAX: u32 = 180;

pub(super) struct Task {
    source: Source,
    bus: Arc<dyn Publisher>,
    settings: RelaySettings,
    owner: Uuid,
    clock: Clock,
    pub(super) signals: EventSignals,
    stop: Stop,
}

/// What a relay knows while it holds the lease.
struct Tenure {
    cursor: Cursor,
    renewed: Instant,
    shared: Instant,
    held: Held,
    looked: Instant,
}

/// Why a tenure goes no further now.
#[derive(Debug, thiserror::Error)]
enum TaskError {
    #[error("use the outbox")]
    Db(#[from] DbError),
    #[error("publish")]
    Bus(#[from] BusError),
    #[error("the lease is another relay's, or of another era")]
    Lost,
    #[error("too many held keys")]
    Full,
    #[error("the bus has not answered before the end")]
    Unanswered,
    #[error("the bus panicked")]
    Panicked,
}

impl TaskError {
    const fn code(&self) -> &'static str {
        match self {
            Self::Db(_) => "outbox",
            Self::Bus(_) => "bus",
            Self::Lost => "lease_lost",
            Self::Full => "held_keys",
            Self::Unanswered => "bus_silent",
            Self::Panicked => "bus_panicked",
        }
    }
}

impl Task {
    pub(super) fn new(
        source: Source,
        bus: Arc<dyn Publisher>,
        settings: RelaySettings,
        owner: Uuid,
        stop: Stop,
    ) -> Self {
        Self { source, bus, settings, owner, clock: Clock::system(), signals: EventSignals::unbound(), stop }
    }

    /// Runs until stopped. Failures are logged and retried with growing pauses; nothing ends it, no panic either.
    pub(super) async fn run(mut self) {
        let mut stop = self.stop.clone();
        // To have the lease is no success yet: only a turn that goes well ends the growth of these pauses.
        let mut pace = Pace::new(Duration::from_millis(self.settings.pause_max_ms));
        while !stop.is_set() {
            // What it had leased is taken again by its name, and what may have been sent is sent again.
            let working = AssertUnwindSafe(self.work(&mut pace, &mut stop)).catch_unwind();
            if working.await.is_err() {
                pim_core::error!("relay.panicked", shard_id = self.source.origin.shard());
                sleep(pace.pause(), &mut stop).await;
            }
        }
    }

    async fn work(&mut self, pace: &mut Pace, stop: &mut Stop) {
        while !stop.is_set() {
            match self.acquire().await {
                Ok(Some(tenure)) => {
                    self.signals.lease(LeaseChange::Taken);
                    if let Err(error) = self.serve(tenure, pace, stop).await {
                        pim_core::warn!("relay.pauses", shard_id = self.source.origin.shard(), code = error.code());
                        sleep(pace.pause(), stop).await;
                    }
                }
                Ok(None) => sleep(pace.pause(), stop).await,
                Err(error) => {
                    pim_core::warn!("relay.without_lease", shard_id = self.source.origin.shard(), code = error.code());
                    sleep(pace.pause(), stop).await;
                }
            }
        }
    }

    async fn acquire(&self) -> Result<Option<Tenure>, TaskError> {
        let taken = Cursor::take(&self.source.db, self.owner, self.settings.lease()).await?;
        let Some(cursor) = taken else { return Ok(None) };
        let held = Held::load(&self.source.db).await?;
        let now = Instant::now();
        Ok(Some(Tenure { cursor, renewed: now, shared: now, held, looked: now }))
    }

    /// Serves the outbox until stopped, or until something fails; then the lease is given back if it can be.
    async fn serve(&mut self, mut tenure: Tenure, failing: &mut Pace, stop: &mut Stop) -> Result<(), TaskError> {
        let mut pace = Pace::new(Duration::from_millis(self.settings.pause_max_ms));
        let outcome = loop {
            if stop.is_set() {
                break Ok(());
            }
            self.source.commits.mark_unchanged();
            let turn = self.turn(&mut tenure).await;
            if turn.is_ok() {
                failing.reset();
            }
            match turn {
                Ok(true) => pace.reset(),
                Ok(false) => {
                    let due = self.due(&tenure).saturating_duration_since(Instant::now());
                    let pause = pace.pause().min(due.max(Duration::from_millis(1)));
                    rest(pause, &mut self.source.commits, stop).await;
                }
                Err(error) => break Err(error),
            }
        };
        // A failure that ended the tenure must neither lose what is known nor keep the next relay waiting.
        let outcome = match outcome {
            Err(TaskError::Lost) => outcome,
            _ => match self.save(&mut tenure, Vec::new()).await {
                Ok(()) => outcome,
                Err(TaskError::Lost) => Err(TaskError::Lost),
                Err(error) => return Err(error),
            },
        };
        if matches!(outcome, Err(TaskError::Lost)) {
            self.signals.lease(LeaseChange::Lost);
        }
        // Of several lanes only some may be lost, and of another era none.
        tenure.cursor.release(&self.source.db).await?;
        outcome
    }

    /// One look: true when there was something to send.
    async fn turn(&self, tenure: &mut Tenure) -> Result<bool, TaskError> {
        if tenure.shared.elapsed() >= self.settings.lease() / 3 {
            self.share(tenure).await?;
        }
        // What an operator marked goes first: it is the way out of too many held keys.
        if tenure.held.is_full() || (!tenure.held.is_empty() && tenure.looked.elapsed() >= RETRY_LOOK) {
            tenure.looked = Instant::now();
            self.retry(tenure).await?;
        }
        if tenure.held.is_full() {
            return Err(TaskError::Full);
        }
        let rows = tenure.cursor.behind(&self.source.db, self.settings.batch_max).await?.ok_or(TaskError::Lost)?;
        let rows = self.entries(&rows)?;
        let Some(last) = rows.last().map(|row| row.seq) else {
            if Instant::now() >= self.due(tenure) {
                self.save(tenure, Vec::new()).await?;
            }
            return Ok(false);
        };
        let holds = self.send(tenure, &rows).await?;
        let before = (!holds.is_empty()).then(|| tenure.cursor.clone());
        tenure.cursor.pass(last);
        if let Some(before) = before {
            // Held events leave the cursor behind them only together with the note that they are held: should that note not
            // be written, nothing that is saved later may move past them.
            if let Err(error) = self.save(tenure, holds).await {
                tenure.cursor = before;
                return Err(error);
            }
        } else if Instant::now() >= self.due(tenure) {
            self.save(tenure, Vec::new()).await?;
        }
        Ok(true)
    }

    /// Leases no more and no less than its share among the relays that are alive.
    async fn share(&self, tenure: &mut Tenure) -> Result<(), TaskError> {
        tenure.shared = Instant::now();
        let shared = tenure.cursor.share(&self.source.db, self.settings.lease()).await?;
        if shared.ok_or(TaskError::Lost)? {
            // The keys of a new lane may be held.
            tenure.held = Held::load(&self.source.db).await?;
        }
        Ok(())
    }

    fn entries(&self, rows: &[Row]) -> Result<Vec<Entry>, DbError> {
        rows.iter().map(|row| Entry::of(row, self.source.origin)).collect()
    }

    /// Publishes in order; answers the notes on what has to be held.
    async fn send(&self, tenure: &mut Tenure, rows: &[Entry]) -> Result<Vec<Statement>, TaskError> {
        let now: Timestamp = self.clock.now();
        let mut holds = Vec::new();
        let mut sending = Vec::with_capacity(rows.len());
        for entry in rows {
            match &entry.read {
                Ok(row) if !tenure.held.contains(entry.home) => sending.push((entry, row)),
                read => {
                    if let Err(error) = read {
                        self.tell_unreadable(entry, error.code());
                    }
                    holds.push(tenure.held.hold(entry, Ack::Behind, now));
                }
            }
        }
        if sending.is_empty() {
            return Ok(holds);
        }
        let batch = sending.iter().map(|(_, row)| NewRecord::of(&row.event, &row.topic)).collect();
        let began = Instant::now();
        let acks = self.publish(tenure, batch).await?;
        let acknowledged = self.clock.now();
        for ((entry, row), ack) in sending.into_iter().zip(acks) {
            if matches!(ack, Ack::Stored { .. }) {
                self.signals.published(acknowledged.since(row.event.time));
                self.settings.spans.keep(row.event.span(SpanKind::Producer, "publish", (now, began.elapsed())));
            } else {
                self.tell_held(row);
                holds.push(tenure.held.hold(entry, ack, now));
            }
        }
        Ok(holds)
    }

    fn tell_held(&self, row: &OutboxRow) {
        pim_core::warn!(
            "relay.holds",
            request_id = row.event.correlation,
            trace_id = row.event.trace.trace_id(),
            span_id = row.event.trace.span_id(),
            shard_id = self.source.origin.shard(),
            seq = row.event.seq,
        );
    }

    fn tell_unreadable(&self, entry: &Entry, code: &'static str) {
        pim_core::warn!("relay.unreadable", shard_id = self.source.origin.shard(), seq = entry.seq, code = code);
    }

    /// Publishes, and renews the lease meanwhile: a bus that takes longer than a lease lasts would have each relay send what the
    /// others have sent, and none of them move the cursor.
    async fn publish(&self, tenure: &mut Tenure, batch: Vec<NewRecord>) -> Result<Vec<Ack>, TaskError> {
        let (sent, (stopper, mut answered)) = (batch.len(), Stop::pair());
        let publishing = async {
            let acks = AssertUnwindSafe(async { self.bus.publish(batch).await }).catch_unwind().await;
            stopper.stop();
            // As any failure: nothing is lost, and the lease is given back to whoever has a publisher that does not.
            acks.map_err(|_| TaskError::Panicked)
        };
        let renewing = async {
            let third = self.settings.lease() / 3;
            let mut due = tenure.renewed + third;
            for _ in 0..RENEWALS_MAX {
                sleep(due.saturating_duration_since(Instant::now()), &mut answered).await;
                if answered.is_set() {
                    break;
                }
                match self.save(tenure, Vec::new()).await {
                    Err(TaskError::Lost) => return Err(TaskError::Lost),
                    // Whoever saves after the bus has answered will see whether the lease outlasted it.
                    Ok(()) | Err(_) => due = Instant::now() + third,
                }
            }
            Ok(())
        };
        let mut stop = self.stop.clone();
        let ending = async {
            stop.wait().await;
            // Half of the time, so that the other half is there to give the lease back.
            tokio::time::sleep(self.settings.ending_max() / 2).await;
        };
        // Whoever shuts down waits for no bus: what may have been stored by now is sent again, and does no harm.
        let (acks, ()) = tokio::select! {
            done = async { tokio::try_join!(publishing, renewing) } => done?,
            () = ending => return Err(TaskError::Unanswered),
        };
        let acks = acks?;
        // What is not spoken of would be passed as if it were stored.
        if acks.len() == sent { Ok(acks) } else { Err(BusError::Acks { sent, answered: acks.len() }.into()) }
    }

    /// Sends held events again, for keys that an operator has marked.
    async fn retry(&self, tenure: &mut Tenure) -> Result<(), TaskError> {
        let rows = self.source.db.query(row::to_retry(tenure.cursor.lanes(), self.settings.batch_max)).await?;
        let rows = self.entries(&rows)?;
        if rows.is_empty() {
            return Ok(());
        }
        let now = self.clock.now();
        // Whoever marked a key did not see what was held at the same moment.
        let keys: BTreeSet<Uuid> = rows.iter().map(|entry| entry.home).collect();
        let mut notes: Vec<Statement> = keys.into_iter().map(hold::whole_key).collect();
        let (mut sending, mut unreadable) = (Vec::with_capacity(rows.len()), BTreeSet::<Uuid>::new());
        for entry in &rows {
            match &entry.read {
                Ok(row) if !unreadable.contains(&entry.home) => sending.push((entry, row)),
                _ => {
                    // Nothing of the key overtakes it.
                    unreadable.insert(entry.home);
                    notes.extend([tenure.held.hold(entry, Ack::Behind, now), hold::not_now(entry)]);
                }
            }
        }
        let batch: Vec<NewRecord> = sending.iter().map(|(_, row)| NewRecord::of(&row.event, &row.topic)).collect();
        let acks = if batch.is_empty() { Vec::new() } else { self.publish(tenure, batch).await? };
        for ((entry, row), ack) in sending.into_iter().zip(acks) {
            if matches!(ack, Ack::Stored { .. }) {
                self.signals.published(self.clock.now().since(row.event.time));
                notes.push(hold::sent(entry));
            } else {
                notes.extend([tenure.held.hold(entry, ack, now), hold::not_now(entry)]);
            }
        }
        self.save(tenure, notes).await?;
        tenure.held = Held::load(&self.source.db).await?;
        Ok(())
    }

    /// When the cursor has to be written, or the lease renewed, at the latest.
    fn due(&self, tenure: &Tenure) -> Instant {
        let third = self.settings.lease() / 3;
        let is_unsaved = tenure.cursor.is_unsaved();
        tenure.renewed + if is_unsaved { self.settings.cursor_delay().min(third) } else { third }
    }

    async fn save(&self, tenure: &mut Tenure, with: Vec<Statement>) -> Result<(), TaskError> {
        let length = self.settings.lease();
        if !tenure.cursor.save(&self.source.db, length, with).await? {
            return Err(TaskError::Lost);
        }
        tenure.renewed = Instant::now();
        Ok(())
    }
}
