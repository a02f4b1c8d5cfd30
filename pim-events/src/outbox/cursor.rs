//! Where a relay stands in an outbox: behind a number on the engine with one writer, in windows between snapshots on a server.

use std::time::Duration;

use pim_data::backend::{Db, DbError, Engine, Row, Statement};
use uuid::Uuid;

use super::lease::{self, Asked, Lease};
use super::row;
use super::window::Windows;

/// Lanes of an outbox.
pub(super) const LANES: u64 = 64;

/// A position that is leased.
#[derive(Clone, Debug)]
pub(super) enum Cursor {
    /// Everything up to a number has been sent.
    Sequence {
        lease: Lease,
        /// The cursor in the database may be a little behind.
        sent: u64,
    },
    /// Everything that a snapshot sees has been sent, lane by lane.
    Windows(Windows),
}

impl Cursor {
    /// Leases what is free; `None` when nothing is.
    pub(super) async fn take(db: &Db, owner: Uuid, length: Duration) -> Result<Option<Self>, DbError> {
        if db.engine() == Engine::Postgres {
            return Ok(Windows::take(db, owner, length).await?.map(Self::Windows));
        }
        Ok(match lease::acquire(db, owner, length).await? {
            Asked::Held(lease) => Some(Self::Sequence { lease, sent: lease.last_seq }),
            Asked::Taken(_) => None,
        })
    }

    /// Takes or gives back lanes, so that living relays have equal shares. `None` when the lease is another's or of another
    /// era by now, else whether there are new lanes.
    pub(super) async fn share(&mut self, db: &Db, length: Duration) -> Result<Option<bool>, DbError> {
        match self {
            Self::Sequence { .. } => Ok(Some(false)),
            Self::Windows(windows) => windows.share(db, length).await,
        }
    }

    /// The next events, at most `max`, in the order of writing. `None` when the server is not what it was when the lease was taken.
    pub(super) async fn behind(&mut self, db: &Db, max: usize) -> Result<Option<Vec<Row>>, DbError> {
        match self {
            Self::Sequence { sent, .. } => db.query(row::behind(*sent, max)).await.map(Some),
            Self::Windows(windows) => windows.next(db, max).await,
        }
    }

    /// What was read last, up to this number, is on the bus or held.
    pub(super) fn pass(&mut self, last: u64) {
        match self {
            Self::Sequence { sent, .. } => *sent = last,
            Self::Windows(windows) => windows.pass(last),
        }
    }

    /// Whether the database does not know yet how far it is.
    pub(super) fn is_unsaved(&self) -> bool {
        match self {
            Self::Sequence { lease, sent } => *sent > lease.last_seq,
            Self::Windows(windows) => windows.is_unsaved(),
        }
    }

    /// Writes the position together with `with`, and renews the lease. False when the lease is another's or of
    /// another era by now.
    pub(super) async fn save(&mut self, db: &Db, length: Duration, with: Vec<Statement>) -> Result<bool, DbError> {
        match self {
            Self::Sequence { lease, sent } => {
                let saved = lease::advance(db, lease, *sent, length, with).await?;
                if saved {
                    lease.last_seq = *sent;
                }
                Ok(saved)
            }
            Self::Windows(windows) => windows.save(db, length, with).await,
        }
    }

    /// Gives everything back that is still its own.
    pub(super) async fn release(&self, db: &Db) -> Result<(), DbError> {
        match self {
            Self::Sequence { lease, .. } => lease::release(db, lease).await,
            Self::Windows(windows) => windows.release(db).await,
        }
    }

    /// The lanes that it has, as a JSON list.
    pub(super) fn lanes(&self) -> String {
        match self {
            Self::Sequence { .. } => serde_json::json!((0..LANES).collect::<Vec<_>>()).to_string(),
            Self::Windows(windows) => windows.lanes(),
        }
    }
}
