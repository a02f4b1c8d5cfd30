//! Reading one's own writes from read models: rows that are at least as new as what the caller has seen.

use std::collections::HashMap;
use std::time::Duration;

use pim_data::backend::{Row, Statement};
use pim_data::consistency::ConsistencyToken;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{ReadStore, StoreError};
use crate::consumer::ledger::{KeyState, states, states_of};

/// Shortest and longest pause between two looks at a read model that is behind.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(50));

/// How a read model stands to what a caller has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Reached,
    Behind,
    /// Behind, and an operator has to see to it first.
    Held,
}

fn standing(known: &HashMap<Uuid, KeyState>, seen: &ConsistencyToken) -> Standing {
    let of = |(key, n): (Uuid, u64)| match known.get(&key) {
        Some(state) if state.head.n >= n => Standing::Reached,
        Some(state) if state.hold.is_some() => Standing::Held,
        _ => Standing::Behind,
    };
    let worst = |one, other| match (one, other) {
        (Standing::Held, _) | (_, Standing::Held) => Standing::Held,
        (Standing::Behind, _) | (_, Standing::Behind) => Standing::Behind,
        _ => Standing::Reached,
    };
    seen.entries().map(of).fold(Standing::Reached, worst)
}

impl ReadStore {
    /// Runs one reading statement over the read model of `consumer`, once that has applied all that `seen` tells of. What it
    /// has applied and what the statement finds are of one snapshot.
    ///
    /// Waits until `until` for a consumer that is behind, though not where the events of a key are held. Of keys that fell out
    /// of the token nothing is known; a token of keys whose events the consumer does not read is never met.
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
            return self.query(statement).await;
        }
        let asked = [states(consumer, seen.entries().map(|(key, _)| key)), statement];
        let (mut pause, pause_max) = LOOKS;
        loop {
            let answers = self.db().read().await?.snapshot(&asked).await?;
            let [known, rows] = <[Vec<Row>; 2]>::try_from(answers).unwrap_or_default();
            let standing = standing(&states_of(&known)?, seen);
            if standing == Standing::Reached {
                return Ok(rows);
            }
            if standing == Standing::Held || Instant::now() + pause > until {
                return Err(StoreError::Behind { consumer: consumer.to_owned(), held: standing == Standing::Held });
            }
            sleep(pause).await;
            pause = (pause * 2).min(pause_max);
        }
    }
}
