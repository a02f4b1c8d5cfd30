//! Units that wait while others are written to a server, or are ready with others that are on their way, go together: one call, one transaction, one commit.
//!
//! Alone, each unit would cost its server a trip, a flush, and every expression of its functions prepared anew, on a connection
//! whose memory has left the processor's cache since.

mod lull;
mod queue;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

pub(crate) use self::queue::Batches;
pub(super) use self::queue::{Place, Ticket};
use super::message::Part;
use super::{Unit, UnitError};
use crate::backend::{DbError, ReadGuard, Row};
use crate::cluster::{Need, Shard};

/// Most units of one batch.
pub(crate) const BATCH_MAX: usize = 8;

/// A unit that can be sent.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) unit: Unit,
    pub(super) parts: Vec<Part>,
    pub(super) until: Instant,
    /// Since when it waits to be sent.
    pub(super) since: Instant,
}

/// Whose turn it is.
#[derive(Debug)]
pub(super) enum Turn {
    /// The unit's own: it goes alone, and others may go when it gives up its place.
    Alone(Box<Ready>, Place),
    /// It was sent with others: to the key's number after it, or what became of it.
    Sent(Box<Ready>, Result<u64, UnitError>),
}

/// A unit that waits, with the way back to whoever waits for it.
#[derive(Debug)]
struct Seat {
    ready: Box<Ready>,
    /// Whether it goes by itself: it was refused, or would be, among others.
    alone: bool,
    /// How long it waits for others while it could go, and some are being written.
    patient_until: Instant,
    /// When half of its time is over. The rest is for being written.
    hurried_from: Instant,
    /// Whether it is being sent. Until then its caller may take it back.
    sent: Arc<AtomicBool>,
    reply: oneshot::Sender<Turn>,
    runtime: Handle,
}

impl Ready {
    fn home(&self) -> Uuid {
        self.unit.home.uuid()
    }

    fn table(&self) -> Option<&'static str> {
        self.unit.writes.first().map(|pending| pending.table.name)
    }
}

impl Batches {
    /// Waits for the unit's turn, at most until its deadline.
    ///
    /// # Errors
    /// [`UnitError::Deadline`] and [`DbError::Busy`] when it was not sent; [`UnitError::Unknown`] when it may have been.
    pub(super) async fn join(&self, mut ready: Ready, alone: bool) -> Result<Turn, UnitError> {
        let (now, until) = (Instant::now(), ready.until);
        let hurried_from = now + until.saturating_duration_since(now) / 2;
        let patient_until = now + self.gather_max().min(hurried_from - now);
        ready.unit.ticket.get_or_insert_with(|| self.ticket());
        // Dropped after `turn`: whoever leaves while the others run leaves no seat behind, and what the seat keeps alive.
        let _swept = Swept(self);
        let (reply, mut turn) = oneshot::channel();
        let sent = Arc::<AtomicBool>::default();
        let runtime = Handle::current();
        let seat = Seat {
            ready: Box::new(ready),
            alone,
            patient_until,
            hurried_from,
            sent: Arc::clone(&sent),
            reply,
            runtime,
        };
        if self.wait(seat)? {
            // Those who were told with this one, of their last unit, come along with the next. Where there is nobody else, yielding would
            // wake a thread for nothing.
            if self.has_others() {
                yield_now().await;
            }
            self.depart();
        }
        let mut told = timeout_at(patient_until, &mut turn).await;
        if told.is_err() {
            self.depart();
            // Whoever was to say that a lull is over may be on a runtime that stands still.
            told = timeout_at(hurried_from, &mut turn).await;
        }
        if told.is_err() {
            self.depart();
            told = timeout_at(until, turn).await;
        }
        match told {
            Ok(Ok(turn)) => Ok(turn),
            // The task that was to send it is gone, with its runtime or by a panic.
            Ok(Err(_gone)) if sent.swap(true, Ordering::AcqRel) => Err(UnitError::Unknown(DbError::Abandoned)),
            Ok(Err(_gone)) => Err(DbError::Closed.into()),
            Err(_late) if sent.swap(true, Ordering::AcqRel) => Err(UnitError::Unknown(DbError::Unanswered)),
            Err(_late) => Err(DbError::Late.into()),
        }
    }
}

/// Has those who wait sent when it is dropped, and those who left taken out.
struct Swept<'b>(&'b Batches);

impl Drop for Swept<'_> {
    fn drop(&mut self) {
        self.0.depart();
    }
}

/// How a shared call ended.
enum End {
    /// A row for each.
    Answered(Vec<Row>),
    /// Whether anything was written is not known.
    Ambiguous(Arc<DbError>),
    /// Nothing was written.
    Refused,
}

/// Sends several units, in a task of its own: each of those who wait may be dropped at any instant.
async fn go_together(mut seats: Vec<Seat>, mut place: Place) {
    let Some((shard, mut conn)) = connection(&seats).await else {
        return place.give_back(seats);
    };
    // Whoever left while there was no connection is not sent, and cannot leave any more from here on.
    seats.retain(|seat| !seat.reply.is_closed() && !seat.sent.swap(true, Ordering::AcqRel));
    if seats.len() < 2 {
        return place.give_back(seats);
    }
    if let Some(Seat { ready, .. }) = seats.first() {
        ready.unit.cluster.0.settings.signals.called(seats.iter().map(|seat| seat.ready.since.elapsed()));
    }
    // Whoever waits for a lane holds none that comes after it.
    seats.sort_by_key(|seat| seat.ready.unit.route.bucket.lane().get());
    place.call();
    match send(&shard, &mut conn, &seats).await {
        End::Refused => place.refuse(seats),
        End::Answered(rows) => {
            place.went_well();
            drop((conn, place));
            for (Seat { ready, reply, .. }, row) in seats.into_iter().zip(&rows) {
                let reached = ready.unit.reached(std::slice::from_ref(row));
                if reached.is_ok() {
                    ready.unit.tell_committed();
                }
                let _left = reply.send(Turn::Sent(ready, reached));
            }
        }
        End::Ambiguous(error) => {
            drop((conn, place));
            for Seat { ready, reply, .. } in seats {
                let _left = reply.send(Turn::Sent(ready, Err(DbError::Commit(Arc::clone(&error)).into())));
            }
        }
    }
}

/// A connection to the primary, if it can be used now; whoever goes alone finds out why not.
async fn connection(seats: &[Seat]) -> Option<(Shard, ReadGuard)> {
    let unit = seats.first().map(|seat| &seat.ready.unit)?;
    let shard = unit.cluster.shard(unit.route.shard)?.clone();
    let serves = || shard.group().is_some_and(|group| group.serves(Need::Write));
    if !serves() {
        return None;
    }
    // Whose deadline is earlier does not wait so long. Its unit goes on: cut short, nobody would know what became of the others.
    let until = seats.iter().map(|seat| seat.ready.until).max()?;
    let conn = shard.db().write_until(until).await.ok()?;
    if serves() { Some((shard, conn)) } else { None }
}

/// One call for all of them.
async fn send(shard: &Shard, conn: &mut ReadGuard, seats: &[Seat]) -> End {
    let first = seats.first().and_then(|seat| seat.ready.unit.writes.first().map(|write| (seat, write)));
    let calls = first.and_then(|(seat, write)| seat.ready.unit.cluster.schema().calls(write.table));
    let Some(call) = calls.and_then(|calls| calls.together.get(seats.len() - 2)) else {
        return End::Refused;
    };
    // Looked at once: the call judges all of them by the first.
    let (term, alone) = (shard.db().demand().term, shard.db().stands_alone());
    let units = seats.iter().flat_map(|Seat { ready, .. }| {
        ready.unit.writes.iter().map(|pending| {
            let mut message = ready.unit.message(&ready.parts);
            message.context.term = Some(term);
            message.context.alone = alone;
            (pending, message)
        })
    });
    let statement = Unit::bound_together(call.clone(), units.collect());
    match conn.query(statement).await {
        Ok(rows) if rows.len() == seats.len() => End::Answered(rows),
        Ok(_) => End::Ambiguous(Arc::new(DbError::Closed)),
        Err(error) if error.is_ambiguous() => End::Ambiguous(Arc::new(error)),
        Err(_) => End::Refused,
    }
}
