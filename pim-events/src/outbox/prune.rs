//! Removing from an outbox what is on the bus and old; never what is unpublished or held.

use pim_core::clock::Timestamp;
use pim_data::backend::{DbError, Engine, SqlPair, Statement};

use super::{OutboxError, Source};
use crate::pace::GoesOn;

pub(super) const PRUNE: SqlPair = SqlPair::postgres("SELECT last, is_old, removed FROM pim_outbox_prune(?, ?, ?)");

/// Most pages that one sweep of an outbox looks at.
const PAGES_MAX: usize = 10_000;

const YOUNGEST: SqlPair = SqlPair::same("SELECT youngest_at FROM outbox_pruned WHERE youngest_at IS NOT NULL");

impl Source {
    /// When the youngest event was written that has gone from this outbox, if any has. A log that is a copy of before then
    /// misses events that nobody can send it again.
    ///
    /// # Errors
    /// [`OutboxError`] when the database does not answer.
    pub async fn pruned_until(&self) -> Result<Option<Timestamp>, OutboxError> {
        let asked = async {
            let rows = self.db.query(Statement::of(YOUNGEST)).await?;
            Ok(rows.first().map(|row| row.time(0)).transpose()?)
        };
        asked.await.map_err(|source| OutboxError { origin: self.origin, source })
    }

    /// Removes events written before `before`, in pages of `page_max` rows a transaction, as long as it is to go on; answers how
    /// many went.
    pub(crate) async fn prune(&self, before: Timestamp, page_max: usize, goes_on: GoesOn<'_>) -> Result<u64, DbError> {
        if self.db.engine() == Engine::Postgres {
            return self.prune_windows(before, page_max, goes_on).await;
        }
        let (mut after, mut removed) = (0, 0);
        for _ in (0..PAGES_MAX).take_while(|_| goes_on()) {
            let Some((last, is_old)) = self.page_end(after, before, page_max).await? else { break };
            // What may go is decided again where it goes: cursor and holds move together, by one transaction.
            let remove = Statement::sqlite(
                "DELETE FROM outbox_event WHERE seq > ? AND seq <= ? AND at < ?
                   AND seq <= (SELECT last_seq FROM outbox_cursor)
                   AND NOT EXISTS (SELECT 1 FROM outbox_held h WHERE h.seq = outbox_event.seq)
                 RETURNING at",
            );
            let (tx, answers) = self.db.begin_with(&[remove.bind(after).bind(last).bind(before)]).await?;
            let gone = answers.first().map_or(&[][..], Vec::as_slice);
            let times = gone.iter().map(|row| row.time(0)).collect::<Result<Vec<_>, _>>()?;
            let note = times.into_iter().max().map(|youngest| {
                let note = "UPDATE outbox_pruned SET youngest_at = max(coalesce(youngest_at, ?), ?)";
                Statement::sqlite(note).bind(youngest).bind(youngest)
            });
            tx.commit_with(note.into_iter().collect()).await?;
            removed += gone.len() as u64;
            if !is_old {
                break;
            }
            after = last;
            // Units that wait for the writer come first.
            tokio::task::yield_now().await;
        }
        Ok(removed)
    }

    /// The same on a server, where the owner's function decides and removes.
    async fn prune_windows(&self, before: Timestamp, page_max: usize, goes_on: GoesOn<'_>) -> Result<u64, DbError> {
        let (mut after, mut removed) = (0, 0);
        for _ in (0..PAGES_MAX).take_while(|_| goes_on()) {
            let prune = Statement::of(PRUNE).bind(after).bind(before).bind(page_max as u64);
            let (tx, answers) = self.db.begin_with(&[prune]).await?;
            tx.commit().await?;
            let row = answers.first().and_then(|rows| rows.first()).ok_or(DbError::Closed)?;
            removed += row.count(2)?;
            // Without a page there is no last number, and nothing in it is old.
            if row.int(1).unwrap_or(0) == 0 {
                break;
            }
            after = row.count(0)?;
        }
        Ok(removed)
    }

    /// The last seq of the page behind `after`, and whether it is old as well, so that another page is worth a look.
    async fn page_end(&self, after: u64, before: Timestamp, max: usize) -> Result<Option<(u64, bool)>, DbError> {
        let text = format!(
            "SELECT seq, at FROM (SELECT seq, at FROM outbox_event WHERE seq > ? ORDER BY seq LIMIT {max})
             ORDER BY seq DESC LIMIT 1"
        );
        let rows = self.db.query(Statement::of(SqlPair::generated(text)).bind(after)).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some((row.count(0)?, row.time(1)? < before)))
    }
}
