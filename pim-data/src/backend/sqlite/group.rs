//! One COMMIT for all who wait: members enter one transaction one after another, each in a savepoint of its own.

#[cfg(test)]
mod tests;

use std::any::Any;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio::time::{Instant, timeout_at};

use super::{Conn, Db, Transaction};
use crate::backend::{DbError, Row, Statement};

/// Most members of one transaction.
pub(crate) const MEMBERS_MAX: usize = 64;
/// Nobody enters a transaction that is older: the first member waits for the last, and so does the next writer.
/// A busy machine makes no test late.
pub(crate) const AGE_MAX: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 10 });
/// Most members that wait for one database.
pub(crate) const WAITING_MAX: usize = 4_096;

/// Something that looks, decides what to write, and commits or not.
pub(crate) trait Member: Send + 'static {
    /// What it wants to know first.
    fn look(&self) -> Statement;
    /// What it writes, or `None` to write nothing; the reason stays with the member.
    fn decide(&mut self, rows: &[Row]) -> Option<Vec<Statement>>;
    /// Called once its writes are durable, also when nobody waits for the outcome any more.
    fn committed(&self);
}

/// How it ended for one member. All but a panic are told when everything that it may rest on is durable.
#[derive(Debug)]
pub(crate) enum End {
    /// Its writes are durable.
    Committed,
    /// It wrote nothing, of its own will.
    Refused,
    /// It wrote nothing, unless the error is about the commit itself.
    Failed(DbError),
    /// It panicked while it decided, and wrote nothing.
    Panicked(Box<dyn Any + Send>),
}

/// The members that wait for the writer of one database.
#[derive(Default)]
pub(super) struct Line(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    seats: VecDeque<Box<dyn Seated>>,
    /// Whether a task serves this line.
    is_served: bool,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("waiting", &self.lock().seats.len()).finish()
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a seat; says whether somebody must begin to serve.
    fn join(&self, seat: Box<dyn Seated>) -> Result<bool, DbError> {
        let mut waiting = self.lock();
        if waiting.seats.len() >= WAITING_MAX {
            return Err(DbError::Busy);
        }
        waiting.seats.push_back(seat);
        Ok(!std::mem::replace(&mut waiting.is_served, true))
    }

    /// The next member that still wants to be served; from now on it cannot leave.
    fn next(&self) -> Option<Box<dyn Seated>> {
        let mut waiting = self.lock();
        while let Some(seat) = waiting.seats.pop_front() {
            if seat.claim() {
                return Some(seat);
            }
        }
        None
    }

    fn is_empty(&self) -> bool {
        self.lock().seats.is_empty()
    }

    /// Whether serving ends here, because nobody waits.
    fn close(&self) -> bool {
        let mut waiting = self.lock();
        waiting.is_served = !waiting.seats.is_empty();
        !waiting.is_served
    }
}

/// A member with its way back to whoever waits for it.
struct Seat<M> {
    member: M,
    claimed: Arc<AtomicBool>,
    reply: oneshot::Sender<(M, End)>,
}

trait Seated: Send {
    /// Takes the member from its caller; `false` when the caller left before.
    fn claim(&self) -> bool;
    fn look(&self) -> Statement;
    fn decide(&mut self, rows: &[Row]) -> Result<Option<Vec<Statement>>, Box<dyn Any + Send>>;
    fn conclude(self: Box<Self>, end: End);
}

impl<M: Member> Seated for Seat<M> {
    fn claim(&self) -> bool {
        !self.claimed.swap(true, Ordering::AcqRel)
    }

    fn look(&self) -> Statement {
        self.member.look()
    }

    fn decide(&mut self, rows: &[Row]) -> Result<Option<Vec<Statement>>, Box<dyn Any + Send>> {
        // The others of the transaction have no part in a panic of this one.
        catch_unwind(AssertUnwindSafe(|| self.member.decide(rows)))
    }

    fn conclude(self: Box<Self>, end: End) {
        if matches!(end, End::Committed) {
            self.member.committed();
        }
        // A caller that left after the claim is not told; its idempotency record tells the retry.
        let _left = self.reply.send((self.member, end));
    }
}

/// Keeps a member of a caller that is gone out of the transaction.
struct Leave(Arc<AtomicBool>);

impl Leave {
    /// Whether the member had not been taken yet, and now never will.
    fn now(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.now();
    }
}

impl Db {
    /// Lets a member take part in the next transaction that is shared by all who wait, and returns it with its end.
    ///
    /// # Errors
    /// [`DbError::Late`] when its turn did not come until `until`, [`DbError::Busy`] when too many wait,
    /// [`DbError::Closed`] or [`DbError::Abandoned`] when the runtime that served it is gone.
    pub(crate) async fn share<M: Member>(&self, until: Instant, member: M) -> Result<(M, End), DbError> {
        let (reply, told) = oneshot::channel();
        let leave = Leave(Arc::new(AtomicBool::new(false)));
        let seat = Seat { member, claimed: Arc::clone(&leave.0), reply };
        let mut duty = Duty(None);
        let mut is_next = false;
        if self.line().join(Box::new(seat))? {
            let writer = Arc::clone(self.writer()).try_lock_owned().ok();
            is_next = writer.is_some();
            duty.0 = Some(Box::pin(serve(self.clone(), writer)));
        }
        let mut outcome = pin!(duty.until_told(told));
        // A timer costs another thread a wake-up, so only those who wait set one.
        if !is_next {
            match timeout_at(until, &mut outcome).await {
                Ok(outcome) => return outcome.map_err(|_| lost(&leave)),
                Err(_late) if leave.now() => return Err(DbError::Late),
                Err(_late) => {}
            }
        }
        outcome.await.map_err(|_| lost(&leave))
    }
}

/// The serving of a line, done by the caller that found it unserved while it waits for its own outcome: a task of its own
/// would cost a lone caller the way to another thread and back.
struct Duty(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Duty {
    async fn until_told<T>(mut self, told: oneshot::Receiver<T>) -> Result<T, RecvError> {
        let mut told = pin!(told);
        poll_fn(|cx| {
            // Taken out meanwhile, so that serving that panicked is not gone on with.
            if let Some(mut serving) = self.0.take()
                && serving.as_mut().poll(cx).is_pending()
            {
                self.0 = Some(serving);
            }
            told.as_mut().poll(cx)
        })
        .await
    }
}

impl Drop for Duty {
    /// A caller may be dropped at any instant, and must not take the others' commit with it: a task goes on from here.
    fn drop(&mut self) {
        if let (Some(rest), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(rest);
        }
    }
}

fn lost(leave: &Leave) -> DbError {
    if leave.now() { DbError::Closed } else { DbError::Abandoned }
}

/// Serves the line until nobody waits.
async fn serve(db: Db, mut writer: Option<OwnedMutexGuard<Conn>>) {
    let mut serving = Serving { db: &db, is_closed: false };
    while !serving.is_closed {
        // Asked for anew each time: writers with a transaction of their own wait in the same queue.
        let writer = match writer.take() {
            Some(writer) => writer,
            None => Arc::clone(db.writer()).lock_owned().await,
        };
        if let Some(first) = db.line().next() {
            Shared::run(&db, writer, first).await;
        }
        serving.is_closed = db.line().close();
    }
}

/// Sends everybody away when serving is dropped, so that nobody waits for it.
struct Serving<'a> {
    db: &'a Db,
    is_closed: bool,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        if !self.is_closed {
            let mut waiting = self.db.line().lock();
            waiting.is_served = false;
            let seats = std::mem::take(&mut waiting.seats);
            drop(waiting);
            drop(seats);
        }
    }
}

/// A transaction and those who have been in it.
struct Shared {
    tx: Transaction,
    /// Who is told after the commit.
    held: Vec<(Box<dyn Seated>, End)>,
    written: usize,
}

/// Why a member's writes failed.
enum Failure {
    /// They were taken back, and the transaction goes on.
    Own(DbError),
    /// The engine took the whole transaction back.
    All(DbError),
}

impl Shared {
    async fn run(db: &Db, writer: OwnedMutexGuard<Conn>, first: Box<dyn Seated>) {
        let begun = Instant::now();
        let (tx, answers) = match Transaction::begin(writer, &[first.look()]).await {
            Ok(begun) => begun,
            Err(error) => return first.conclude(End::Failed(error)),
        };
        let mut shared = Self { tx, held: Vec::new(), written: 0 };
        let (mut seat, mut rows) = (first, answers.into_iter().next().unwrap_or_default());
        for members in 1.. {
            match seat.decide(&rows) {
                Ok(Some(statements)) if shared.written == 0 && db.line().is_empty() => {
                    return shared.commit_alone(seat, statements).await;
                }
                Ok(Some(statements)) => match shared.write(statements).await {
                    Ok(()) => {
                        shared.written += 1;
                        shared.held.push((seat, End::Committed));
                    }
                    Err(Failure::Own(error)) => shared.hold(seat, End::Failed(error)),
                    Err(Failure::All(error)) => return shared.undo(seat, error),
                },
                Ok(None) => shared.hold(seat, End::Refused),
                Err(panic) => seat.conclude(End::Panicked(panic)),
            }
            if members >= MEMBERS_MAX || begun.elapsed() >= AGE_MAX {
                break;
            }
            let Some(next) = db.line().next() else { break };
            seat = next;
            rows = match shared.tx.query(seat.look()).await {
                Ok(rows) => rows,
                Err(error) => return shared.undo(seat, error),
            };
        }
        shared.commit().await;
    }

    /// Nobody else is in the transaction and nobody waits: the last writes and the commit are one hop.
    async fn commit_alone(self, seat: Box<dyn Seated>, statements: Vec<Statement>) {
        let end = self.tx.commit_with(statements).await.map_or_else(End::Failed, |_| End::Committed);
        seat.conclude(end);
    }

    async fn write(&mut self, mut statements: Vec<Statement>) -> Result<(), Failure> {
        statements.insert(0, Statement::sqlite("SAVEPOINT member"));
        statements.push(Statement::sqlite("RELEASE member"));
        let Err(error) = self.tx.hop(&statements).await else { return Ok(()) };
        // A full disk and the like end the whole transaction. Then there is no savepoint any more, and a member that
        // went on would commit each of its statements alone.
        let back = [Statement::sqlite("ROLLBACK TO member"), Statement::sqlite("RELEASE member")];
        match self.tx.hop(&back).await {
            Ok(_) => Err(Failure::Own(error)),
            Err(_gone) => Err(Failure::All(error)),
        }
    }

    /// Tells a member that wrote nothing: at once when all that it can have seen is durable.
    fn hold(&mut self, seat: Box<dyn Seated>, end: End) {
        if self.written == 0 { seat.conclude(end) } else { self.held.push((seat, end)) }
    }

    /// Tells everybody that nothing was written, whatever they have seen.
    fn undo(self, seat: Box<dyn Seated>, error: DbError) {
        drop(self.tx);
        seat.conclude(End::Failed(error));
        for (seat, _end) in self.held {
            seat.conclude(End::Failed(DbError::Undone));
        }
    }

    async fn commit(self) {
        if self.written == 0 {
            return;
        }
        match self.tx.commit().await {
            Ok(()) => self.held.into_iter().for_each(|(seat, end)| seat.conclude(end)),
            Err(error) => {
                let error = if let DbError::Commit(why) = error { why } else { Arc::new(error) };
                for (seat, _end) in self.held {
                    seat.conclude(End::Failed(DbError::Commit(Arc::clone(&error))));
                }
            }
        }
    }
}
