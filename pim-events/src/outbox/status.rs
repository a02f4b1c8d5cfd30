//! What an outbox still has to send, and what it holds. Positions are compared, rows never counted.

use std::time::Duration;

use pim_core::clock::Timestamp;
use pim_data::backend::{DbError, Statement};
use uuid::Uuid;

use super::Source;

/// One outbox.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct OutboxStatus {
    /// Which one: `shard/N` or `control`.
    pub origin: String,
    /// The newest event.
    pub last_event: u64,
    /// The cursor: everything up to here is on the bus, or held.
    pub last_sent: u64,
    /// Events behind the cursor.
    pub backlog: u64,
    /// Age of the oldest unsent event in milliseconds, held ones included; zero when there is none.
    pub oldest_unsent_ms: u64,
    /// Events that the bus refused, with their successors.
    pub held: u64,
    /// Whether a relay holds the lease.
    pub leased: bool,
    /// How often the lease was taken.
    pub lease_epoch: u64,
}

/// An outbox that does not answer.
#[derive(Debug, thiserror::Error)]
#[error("read outbox {origin}")]
#[non_exhaustive]
pub struct OutboxError {
    /// Which one.
    pub origin: crate::event::Origin,
    /// Why.
    #[source]
    pub source: DbError,
}

impl Source {
    /// What this outbox still has to send.
    ///
    /// # Errors
    /// [`OutboxError`] when the database does not answer.
    pub async fn status(&self, now: Timestamp) -> Result<OutboxStatus, OutboxError> {
        self.read_status(now).await.map_err(|source| OutboxError { origin: self.origin, source })
    }

    async fn read_status(&self, now: Timestamp) -> Result<OutboxStatus, DbError> {
        let asked = [
            Statement::sqlite("SELECT coalesce(max(seq), 0) FROM outbox_event"),
            Statement::sqlite(
                "SELECT last_seq, epoch, owner IS NOT NULL AND lease_until_ms >= CAST(unixepoch('subsec') * 1000 AS INTEGER)
                 FROM outbox_cursor",
            ),
            Statement::sqlite(
                "SELECT at FROM outbox_event WHERE seq > (SELECT last_seq FROM outbox_cursor) ORDER BY seq LIMIT 1",
            ),
            Statement::sqlite("SELECT count(*), min(e.at) FROM outbox_held h JOIN outbox_event e ON e.seq = h.seq"),
        ];
        let answers = self.db.read().await?.snapshot(&asked).await?;
        let [newest, cursor, unsent, held] = &answers[..] else { return Err(DbError::Closed) };
        let (Some(newest), Some(cursor), Some(held)) = (newest.first(), cursor.first(), held.first()) else {
            return Err(DbError::Closed);
        };
        let (last_event, last_sent) = (newest.count(0)?.max(cursor.count(0)?), cursor.count(0)?);
        let oldest = [unsent.first().and_then(|row| row.time(0).ok()), held.time(1).ok()].into_iter().flatten().min();
        let age = oldest.map_or(Duration::ZERO, |at| now.since(at));
        Ok(OutboxStatus {
            origin: self.origin.to_string(),
            last_event,
            last_sent,
            backlog: last_event.saturating_sub(last_sent),
            oldest_unsent_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            held: held.count(0)?,
            leased: cursor.int(2)? != 0,
            lease_epoch: cursor.count(1)?,
        })
    }

    /// Marks the held events of a key to be sent again; the relay does so in order. False when none is held.
    ///
    /// # Errors
    /// [`OutboxError`] when the database does not answer.
    pub async fn retry_held(&self, key: Uuid) -> Result<bool, OutboxError> {
        let mark = Statement::sqlite("UPDATE outbox_held SET retry = 1 WHERE home_key = ? RETURNING 1").bind(key);
        let marked = async {
            let (tx, answers) = self.db.begin_with(&[mark]).await?;
            tx.commit().await?;
            Ok(answers.first().is_some_and(|rows| !rows.is_empty()))
        };
        marked.await.map_err(|source| OutboxError { origin: self.origin, source })
    }
}
