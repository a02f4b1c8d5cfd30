//! What an outbox still has to send, and what it holds. Positions are compared, rows never counted.

use std::time::Duration;

use pim_core::clock::Timestamp;
use pim_data::backend::{DbError, Engine, SqlPair, Statement};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::Source;
use super::lease::{lasts, now_ms};

pub(super) const NEWEST: &str = "SELECT coalesce(max(seq), 0) FROM outbox_event";
/// Position, epoch, and whether all of it is leased. On a server the position is one of snapshots, and no number.
pub(super) const CURSOR: SqlPair = SqlPair::of(
    "SELECT 0::bigint AS last_seq, max(epoch) AS epoch,
       bool_and(owner IS NOT NULL AND pim_outbox_lasts(lease_until_ms, lease_ms)) FROM outbox_cursor",
    concat!("SELECT last_seq, epoch, owner IS NOT NULL AND ", lasts!(), " FROM outbox_cursor"),
);
/// When the oldest unsent event was written; on a server also how many there are, up to a bound, and the first.
pub(super) const UNSENT: SqlPair = SqlPair::of(
    "SELECT min(at), count(*), min(seq) FROM pim_outbox_unsent(100000)",
    "SELECT min(at), 0, 0 FROM
     (SELECT at FROM outbox_event WHERE seq > (SELECT last_seq FROM outbox_cursor) ORDER BY seq LIMIT 1)",
);
pub(super) const HELD: &str = "SELECT count(*), min(e.at) FROM outbox_held h JOIN outbox_event e ON e.seq = h.seq";

/// One outbox.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct OutboxStatus {
    /// Which one: `shard/N` or `control`.
    pub origin: String,
    /// The newest event.
    pub last_event: u64,
    /// Everything up to here is on the bus, or held.
    pub last_sent: u64,
    /// Events behind the cursor; a server counts no more than 100,000.
    pub backlog: u64,
    /// Age of the oldest unsent event in milliseconds, held ones included; zero when there is none.
    pub oldest_unsent_ms: u64,
    /// Events that the bus refused or the relay cannot read, with their successors.
    pub held: u64,
    /// Whether relays hold the lease, on a server those of all lanes.
    pub leased: bool,
    /// How often the lease was taken, on a server that of the lane with most changes.
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

    /// The same, but waits no longer than until an instant.
    pub(crate) async fn status_until(&self, now: Timestamp, until: Instant) -> Result<OutboxStatus, OutboxError> {
        let late = |_| Err(OutboxError { origin: self.origin, source: DbError::Unanswered });
        timeout_at(until, self.status(now)).await.unwrap_or_else(late)
    }

    async fn read_status(&self, now: Timestamp) -> Result<OutboxStatus, DbError> {
        let asked = [Statement::same(NEWEST), Statement::of(CURSOR), Statement::of(UNSENT), Statement::same(HELD)];
        let answers = self.db.read().await?.snapshot(&asked).await?;
        let first = |index: usize| answers.get(index).and_then(|rows| rows.first()).ok_or(DbError::Closed);
        let (newest, cursor, unsent, held) = (first(0)?, first(1)?, first(2)?, first(3)?);
        // Rows that are removed are those that were sent.
        let last_event = newest.count(0)?.max(cursor.count(0)?);
        let (backlog, last_sent) = if self.db.engine() == Engine::Postgres {
            (unsent.count(1)?, unsent.count(2).map_or(last_event, |seq| seq.saturating_sub(1)))
        } else {
            (last_event.saturating_sub(cursor.count(0)?), cursor.count(0)?)
        };
        let oldest = [unsent.time(0).ok(), held.time(1).ok()].into_iter().flatten().min();
        let age = oldest.map_or(Duration::ZERO, |at| now.since(at));
        Ok(OutboxStatus {
            origin: self.origin.to_string(),
            last_event,
            last_sent,
            backlog,
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
        let mark = Statement::same("UPDATE outbox_held SET retry = 1 WHERE home_key = ? RETURNING 1").bind(key);
        let marked = async {
            let (tx, answers) = self.db.begin_with(&[mark]).await?;
            tx.commit().await?;
            Ok(answers.first().is_some_and(|rows| !rows.is_empty()))
        };
        marked.await.map_err(|source| OutboxError { origin: self.origin, source })
    }
}
