//! Held sequences: the events of a key that wait, in order, for one before them.

use pim_core::clock::Timestamp;
use pim_core::role::ClosedEnum;
use pim_data::backend::{DbError, Row, Statement};
use uuid::Uuid;

use super::{Place, digest, epoch_at, headers_text};
use crate::bus::Record;
use crate::consumer::head::Head;
use crate::consumer::hold::HoldReason;
use crate::event::{EnvelopeError, Event, Headers};

/// One event that joins its key's held sequence.
pub(crate) struct Hold<'a> {
    pub(crate) record: &'a Record,
    pub(crate) event: &'a Event,
    pub(crate) reason: HoldReason,
    pub(crate) code: &'static str,
    /// The last of the sequence after this one has joined.
    pub(crate) last: Head,
}

/// An event that waits in a held sequence.
#[derive(Clone, Debug)]
pub(crate) struct HeldEvent {
    pub(crate) at: Head,
    pub(crate) id: Uuid,
    headers: String,
    payload: String,
}

impl HeldEvent {
    pub(crate) fn event(&self) -> Result<Event, EnvelopeError> {
        let headers: Headers =
            serde_json::from_str(&self.headers).map_err(|_| EnvelopeError::Malformed { name: "headers" })?;
        Event::from_wire(&headers, &self.payload)
    }
}

/// Adds an event to its key's held sequence; the head stays where it is. A number that another event has there is one that
/// was given out again: the key was set back. That is known nowhere else, and no later event of the batch says otherwise.
pub(crate) fn hold(place: &Place, hold: &Hold<'_>, now: Timestamp) -> [Statement; 3] {
    let Hold { record, event, reason, code, last } = hold;
    let key = Statement::same(
        "INSERT INTO held_key (consumer, home_key, part, reason, code, tries, since, last_epoch, last_n)
         VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?)
         ON CONFLICT (consumer, home_key) DO UPDATE SET
           code = CASE WHEN held_key.reason IN (excluded.reason, 'rewound') THEN held_key.code ELSE excluded.code END,
           since = CASE WHEN held_key.reason IN (excluded.reason, 'rewound') THEN held_key.since ELSE excluded.since END,
           reason = CASE WHEN held_key.reason = 'rewound' THEN held_key.reason ELSE excluded.reason END, last_epoch = excluded.last_epoch, last_n = excluded.last_n",
    )
    .bind(place.consumer)
    .bind(event.home)
    .bind(place.partition)
    .bind(reason.name())
    .bind(*code)
    .bind(now)
    .bind(last.epoch.0)
    .bind(last.n);
    let row = Statement::same(
        "INSERT INTO held_event (consumer, home_key, owner_epoch, n, event_id, event_type, event_at, causation,
                                 part, pos, digest, headers, payload, at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(place.consumer)
    .bind(event.home)
    .bind(event.owner_epoch.0)
    .bind(event.n)
    .bind(event.id)
    .bind(event.event_type.as_str())
    .bind(event.time)
    .bind(event.causation)
    .bind(record.partition)
    .bind(record.offset)
    .bind(digest(&record.payload))
    .bind(headers_text(record))
    .bind(record.payload.as_str())
    .bind(now);
    let again = Statement::same(
        "UPDATE held_key SET reason = 'rewound', code = 'order', since = ?
         WHERE consumer = ? AND home_key = ? AND reason <> 'rewound' AND EXISTS (
           SELECT 1 FROM held_event e WHERE e.consumer = held_key.consumer AND e.home_key = held_key.home_key
             AND e.owner_epoch = ? AND e.n = ? AND e.event_id <> ?)",
    );
    let again = again.bind(now).bind(place.consumer).bind(event.home).bind(event.owner_epoch.0).bind(event.n);
    [key, row, again.bind(event.id)]
}

/// Changes why a key is held, which was read behind the lock of its partition. Answers a row when the key was held.
pub(crate) fn set_reason(
    consumer: &str,
    key: Uuid,
    (reason, code): (HoldReason, &'static str),
    now: Timestamp,
) -> Statement {
    Statement::same(
        "UPDATE held_key SET reason = ?, code = ?, since = ? WHERE consumer = ? AND home_key = ? RETURNING 1",
    )
    .bind(reason.name())
    .bind(code)
    .bind(now)
    .bind(consumer)
    .bind(key)
}

/// Lets a key go whose gap is filled, unless the same batch has shown that it was set back.
pub(crate) fn gap_filled(consumer: &str, key: Uuid, now: Timestamp) -> Statement {
    Statement::same(
        "UPDATE held_key SET reason = 'draining', code = 'gap_filled', since = ?
         WHERE consumer = ? AND home_key = ? AND reason = 'gap'",
    )
    .bind(now)
    .bind(consumer)
    .bind(key)
}

/// Parks a key again whose sequence could not be applied, one try more. Nobody had it locked meanwhile: it may have been
/// rewound, and what was given up is not let go by a try.
pub(crate) fn give_up(consumer: &str, key: Uuid, code: &'static str, now: Timestamp) -> Statement {
    Statement::same(
        "UPDATE held_key SET reason = 'poison', code = ?, tries = tries + 1, since = ?
         WHERE consumer = ? AND home_key = ? AND reason = 'draining' RETURNING 1",
    )
    .bind(code)
    .bind(now)
    .bind(consumer)
    .bind(key)
}

/// Asks for a few keys of a partition that are being applied again; asked before every batch, hence the fixed limit.
pub(crate) fn draining(place: &Place) -> Statement {
    Statement::same(
        "SELECT home_key FROM held_key WHERE consumer = ? AND part = ? AND reason = 'draining' ORDER BY since LIMIT 16",
    )
    .bind(place.consumer)
    .bind(place.partition)
}

/// Asks for the first `max` events of a held sequence, in order; read the answer with [`HeldEvent::of`].
pub(crate) fn held(consumer: &str, key: Uuid, max: u32) -> Statement {
    Statement::same(
        "SELECT owner_epoch, n, headers, payload, event_id FROM held_event WHERE consumer = ? AND home_key = ?
         ORDER BY owner_epoch, n LIMIT ?",
    )
    .bind(consumer)
    .bind(key)
    .bind(max)
}

impl HeldEvent {
    pub(crate) fn of(row: &Row) -> Result<Self, DbError> {
        let at = Head { epoch: epoch_at(row, 0)?, n: row.count(1)? };
        let (headers, payload) = (row.text(2)?.to_owned(), row.text(3)?.to_owned());
        Ok(Self { at, id: row.uuid(4)?, headers, payload })
    }
}

/// Removes the events up to `upto` from a held sequence; they are applied.
pub(crate) fn drop_held(consumer: &str, key: Uuid, upto: Head) -> Statement {
    Statement::same("DELETE FROM held_event WHERE consumer = ? AND home_key = ? AND n <= ? AND owner_epoch <= ?")
        .bind(consumer)
        .bind(key)
        .bind(upto.n)
        .bind(upto.epoch.0)
}

/// Ends the hold of a key whose sequence is empty; answers a row when it did.
pub(crate) fn release(consumer: &str, key: Uuid) -> Statement {
    Statement::same(
        "DELETE FROM held_key WHERE consumer = ? AND home_key = ?
         AND NOT EXISTS (SELECT 1 FROM held_event e WHERE e.consumer = held_key.consumer AND e.home_key = held_key.home_key)
         RETURNING 1",
    )
    .bind(consumer)
    .bind(key)
}
