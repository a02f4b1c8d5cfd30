//! Keys that the relay holds, because the bus refused one of their events, or because one of their rows is no event.

use std::collections::BTreeSet;

use pim_core::clock::Timestamp;
use pim_core::role::ClosedEnum;
use pim_data::backend::{Db, DbError, Statement};
use uuid::Uuid;

use crate::bus::{Ack, Refusal};
use crate::outbox::row::Entry;

/// Most held keys that are remembered; with more, the outbox stands still until an operator acts.
pub(super) const KEYS_MAX: usize = 10_000;

/// The held keys of one outbox.
#[derive(Debug, Default)]
pub(super) struct Held {
    keys: BTreeSet<Uuid>,
}

impl Held {
    pub(super) async fn load(db: &Db) -> Result<Self, DbError> {
        let asked = Statement::same("SELECT DISTINCT home_key FROM outbox_held LIMIT ?").bind(KEYS_MAX as u64);
        let rows = db.query(asked).await?;
        Ok(Self { keys: rows.iter().map(|row| row.uuid(0)).collect::<Result<_, _>>()? })
    }

    pub(super) fn contains(&self, key: Uuid) -> bool {
        self.keys.contains(&key)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.keys.len() >= KEYS_MAX
    }

    /// Holds a row that is no event, or an event that was refused or stands behind one of its key.
    pub(super) fn hold(&mut self, entry: &Entry, ack: Ack, now: Timestamp) -> Statement {
        self.keys.insert(entry.home);
        let code = match ack {
            _ if entry.read.is_err() => "unreadable",
            Ack::Refused(Refusal::TooLarge) => Refusal::TooLarge.name(),
            Ack::Refused(Refusal::UnknownTopic) => Refusal::UnknownTopic.name(),
            Ack::Behind | Ack::Stored { .. } => "behind",
        };
        Statement::same(
            "INSERT INTO outbox_held (seq, home_key, code, at, retry)
             VALUES (?, ?, ?, ?, coalesce((SELECT max(retry) FROM outbox_held WHERE home_key = ?), 0))
             ON CONFLICT (seq) DO UPDATE SET code = excluded.code",
        )
        .bind(entry.seq)
        .bind(entry.home)
        .bind(code)
        .bind(now)
        .bind(entry.home)
    }
}

/// Events of a key are sent again all or none: what the relay held while an operator marked the key was marked by neither.
pub(super) fn whole_key(key: Uuid) -> Statement {
    Statement::same("UPDATE outbox_held SET retry = 1 WHERE home_key = ?").bind(key)
}

/// An event that the bus has taken after all.
pub(super) fn sent(entry: &Entry) -> Statement {
    Statement::same("DELETE FROM outbox_held WHERE seq = ?").bind(entry.seq)
}

/// A row that cannot be sent yet: its whole key waits for the next word of an operator.
pub(super) fn not_now(entry: &Entry) -> Statement {
    Statement::same("UPDATE outbox_held SET retry = 0 WHERE home_key = ?").bind(entry.home)
}
