//! Whether an event still lies ahead of its consumer. Effects in other stores are made without a lock, and another worker may pass
//! the event meanwhile.

use pim_data::backend::{Db, DbError};
use tokio::time::{Instant, timeout_at};

use super::{Event, HoldReason, Place, ledger};

/// How a consumer stood when its events were planned.
pub(crate) struct Ahead<'a> {
    pub(super) db: &'a Db,
    pub(super) place: &'a Place,
    /// Where its partition stood; of held sequences, which lie behind it, only their keys tell.
    pub(super) position: Option<u64>,
}

impl Ahead<'_> {
    /// Whether nobody has applied the event since, passed it, or put it aside; [`DbError::Late`] without an answer until `until`.
    pub(crate) async fn has(&self, event: &Event, until: Instant) -> Result<bool, DbError> {
        let asked = [ledger::position(self.place), ledger::states(self.place.consumer, [event.home])];
        let answers = async { self.db.read_until(until).await?.snapshot(&asked).await };
        let answers = timeout_at(until, answers).await.unwrap_or(Err(DbError::Late))?;
        let [position, states] = &answers[..] else { return Err(DbError::Closed) };
        let position = position.first().map(|row| row.count(0)).transpose()?;
        let state = ledger::states_of(states)?.remove(&event.home).unwrap_or_default();
        let is_parked = matches!(state.hold, Some(HoldReason::Poison | HoldReason::Rewound));
        Ok(self.position.is_none_or(|then| position == Some(then)) && state.head.n < event.n && !is_parked)
    }
}
