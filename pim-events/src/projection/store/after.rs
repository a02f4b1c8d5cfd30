//! Reading one's own writes from read models: rows that are at least as new as what the caller has seen.

use std::collections::HashMap;
use std::time::Duration;

use pim_data::backend::{DbError, Row, Statement};
use pim_data::consistency::ConsistencyToken;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use super::{ReadStore, StoreError};
use crate::consumer::HoldReason;
use crate::consumer::ledger::{KeyState, states, states_of};

/// Shortest and longest pause between two looks at a read model that is behind.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(50));

/// How a read model stands to what a caller has seen, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Reached,
    Behind,
    /// Behind, and an operator has to see to it first.
    Held,
}

/// What a look found.
enum Found {
    Rows(Vec<Row>),
    Not(Standing),
}

fn standing(known: &HashMap<Uuid, KeyState>, seen: &ConsistencyToken) -> Standing {
    let of = |(key, n): (Uuid, u64)| match known.get(&key) {
        // What was applied is not what the key has now, however far it is.
        Some(KeyState { hold: Some(HoldReason::Rewound), .. }) => Standing::Held,
        Some(state) if state.head.n >= n => Standing::Reached,
        Some(KeyState { hold: Some(HoldReason::Poison), .. }) => Standing::Held,
        // A gap fills by itself, and what drains is being applied.
        _ => Standing::Behind,
    };
    seen.entries().map(of).max().unwrap_or(Standing::Reached)
}

impl ReadStore {
    /// Runs one reading statement over the read model of `consumer`, once that has applied all that `seen` tells of.
    ///
    /// Waits until `until` for a consumer that is behind, though not where the events of a key are held for an operator. Of keys
    /// that fell out of the token nothing is known; a token of keys whose events the consumer does not read is never met, and
    /// neither is one of events that were given up since, by a restore or with a primary, until the key has as many again.
    ///
    /// ```no_run
    /// # use pim_data::{backend::Statement, consistency::ConsistencyToken, unit::Committed};
    /// # use pim_events::{ReadStore, StoreError};
    /// # use tokio::time::{Duration, Instant};
    /// # async fn f(reads: &ReadStore, committed: Committed) -> Result<(), StoreError> {
    /// let select = Statement::same("SELECT event_type, events FROM count_by_type");
    /// let until = Instant::now() + Duration::from_secs(1);
    /// let rows = reads.query_after("count_by_type", &committed.token, until, select).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Behind`], [`StoreError::Db`].
    pub async fn query_after(
        &self,
        consumer: &str,
        seen: &ConsistencyToken,
        until: Instant,
        statement: Statement,
    ) -> Result<Vec<Row>, StoreError> {
        if seen.entries().len() == 0 {
            return Ok(self.db().read_until(until).await?.query(statement).await?);
        }
        let ((mut pause, pause_max), mut has_stood) = (LOOKS, false);
        loop {
            let found = timeout_at(until, self.look(consumer, seen, until, &statement)).await;
            let standing = match found.unwrap_or(Err(StoreError::Db(DbError::Late))) {
                Ok(Found::Rows(rows)) => return Ok(rows),
                Ok(Found::Not(standing)) => standing,
                // It has said where it stands: what ended is the patience of who waits.
                Err(StoreError::Db(DbError::Late | DbError::Unanswered)) if has_stood => Standing::Behind,
                Err(error) => return Err(error),
            };
            has_stood = true;
            if standing == Standing::Held || Instant::now() + pause > until {
                return Err(StoreError::Behind { consumer: consumer.to_owned(), held: standing == Standing::Held });
            }
            sleep(pause).await;
            pause = (pause * 2).min(pause_max);
        }
    }

    /// One look: the rows, if the consumer is as far before they are read and still is afterwards. Not in one snapshot: on a server
    /// that would not see the rows of a read model that is swapped for another meanwhile.
    async fn look(
        &self,
        consumer: &str,
        seen: &ConsistencyToken,
        until: Instant,
        statement: &Statement,
    ) -> Result<Found, StoreError> {
        let asked = states(consumer, seen.entries().map(|(key, _)| key));
        let mut conn = self.db().read_until(until).await?;
        let before = standing(&states_of(&conn.query(asked.clone()).await?)?, seen);
        if before != Standing::Reached {
            return Ok(Found::Not(before));
        }
        let rows = conn.query(statement.clone()).await?;
        Ok(match standing(&states_of(&conn.query(asked).await?)?, seen) {
            Standing::Reached => Found::Rows(rows),
            after => Found::Not(after),
        })
    }
}
