//! Keys of commands that were set back: what the log has of them now is gone through again, in order.

use pim_data::backend::{DbError, Statement, Transaction};
use uuid::Uuid;

use super::{LOCK_PARTITION, UnparkError};
use crate::bus::{Record, Subscriber};
use crate::consumer::ledger::{self, Hold, Place};
use crate::consumer::{CommandHandler, Head, HoldReason, Superseded, TooMany};
use crate::event::Event;
use crate::projection::ReadStore;

/// Records that are read at once.
const BATCH_MAX: usize = 2000;
/// Most events of one key that are gone through again: a tenth of what a consumer holds unless it is told otherwise.
const EVENTS_MAX: usize = 10_000;

impl ReadStore {
    /// As [`ReadStore::unpark`], for a consumer of commands, whose rewound keys go on as well: the events that the log has of
    /// the key, without those whose numbers were given out again, are handled once more from the first. Commands that were
    /// committed are found in the inbox of their shard and not repeated; those that were set back with it happen again, and
    /// what a handler had nothing to do for is decided on once more. What a lost event has commanded on another shard stays.
    /// The log of the key's partition is read from its start.
    ///
    /// # Errors
    /// [`UnparkError`]; a gap fills itself.
    pub async fn unpark_command(
        &self,
        bus: &dyn Subscriber,
        handler: &dyn CommandHandler,
        key: Uuid,
    ) -> Result<(), UnparkError> {
        match self.unpark(handler.name(), key).await {
            Err(UnparkError::Rewound) => self.go_through_again(bus, handler, key).await,
            outcome => outcome,
        }
    }

    async fn go_through_again(
        &self,
        bus: &dyn Subscriber,
        handler: &dyn CommandHandler,
        key: Uuid,
    ) -> Result<(), UnparkError> {
        let consumer = handler.name();
        let part =
            Statement::same("SELECT part FROM held_key WHERE consumer = ? AND home_key = ? AND reason = 'rewound'")
                .bind(consumer)
                .bind(key);
        let rows = self.db().query(part.clone()).await?;
        let partition = rows.first().ok_or(UnparkError::NotHeld)?.int(0).map_err(DbError::from)?;
        let partition = u16::try_from(partition).map_err(|_| UnparkError::NotHeld)?;
        let place = Place { consumer, topic: handler.topic().to_owned(), partition };
        let mut history = History { key, superseded: Superseded::of([key], EVENTS_MAX), records: Vec::new() };
        let position = |rows: &[pim_data::backend::Row]| rows.first().map_or(Ok(0), |row| row.count(0));
        let upto = position(&self.db().query(ledger::position(&place)).await?).map_err(DbError::from)?;
        history.read(bus, &place, 0, upto).await?;
        // From here on the partition stands still; what was taken meanwhile is little.
        let lock = Statement::of(LOCK_PARTITION).bind(consumer).bind(consumer).bind(key);
        let (mut tx, answers) = self.db().begin_with(&[lock, part, ledger::position(&place)]).await?;
        let [_, still, now] = &answers[..] else { return Err(DbError::Closed.into()) };
        let written = if still.is_empty() {
            Err(UnparkError::NotHeld)
        } else {
            let now = position(now).map_err(DbError::from)?;
            match history.read(bus, &place, upto, now).await {
                Ok(()) => self.let_wait(&mut tx, &place, &history).await,
                Err(error) => Err(error),
            }
        };
        match written {
            Ok(()) => Ok(tx.commit().await?),
            Err(error) => {
                tx.rollback().await?;
                Err(error)
            }
        }
    }

    /// Has the key's held sequence be what the log has of it, and its head stand before that.
    async fn let_wait(&self, tx: &mut Transaction, place: &Place, history: &History) -> Result<(), UnparkError> {
        let (consumer, key, now) = (place.consumer, history.key, self.clock().now());
        for text in [
            "DELETE FROM held_event WHERE consumer = ? AND home_key = ?",
            "DELETE FROM inbox_head WHERE consumer = ? AND home_key = ?",
        ] {
            tx.query(Statement::same(text).bind(consumer).bind(key)).await?;
        }
        let mut last = Head::START;
        for (record, event) in history.events() {
            if last == Head::START && event.n > 1 {
                // The log does not go back to the first one.
                let head = Head { epoch: event.owner_epoch, n: event.n - 1 };
                tx.query(ledger::save_heads(consumer, &[(key, head, None)], now)).await?;
            }
            last = last.max(Head { epoch: event.owner_epoch, n: event.n });
            let hold = Hold { record, event, reason: HoldReason::Draining, code: "rewound", last };
            for statement in ledger::hold(place, &hold, now) {
                tx.query(statement).await?;
            }
        }
        tx.query(ledger::set_reason(consumer, key, (HoldReason::Draining, "rewound"), now)).await?;
        Ok(())
    }
}

/// What a log has of one key.
struct History {
    key: Uuid,
    superseded: Superseded,
    records: Vec<(Record, Event)>,
}

impl History {
    async fn read(&mut self, bus: &dyn Subscriber, place: &Place, from: u64, upto: u64) -> Result<(), UnparkError> {
        let mut at = from;
        while at < upto {
            let batch = bus.fetch(&place.topic, place.partition, at, BATCH_MAX).await.map_err(UnparkError::Bus)?;
            let Some(last) = batch.last() else { break };
            at = last.offset + 1;
            for record in batch.into_iter().filter(|record| record.key == self.key && record.offset < upto) {
                let Ok(event) = record.event() else { continue };
                self.superseded.note(&event).map_err(|TooMany| UnparkError::TooLong { most: EVENTS_MAX })?;
                self.records.push((record, event));
            }
        }
        Ok(())
    }

    fn events(&self) -> impl Iterator<Item = (&Record, &Event)> {
        self.records.iter().map(|(record, event)| (record, event)).filter(|(_, event)| !self.superseded.covers(event))
    }
}
