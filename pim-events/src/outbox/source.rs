//! Where a relay reads: one database with an outbox, and the hint that something was committed there.

use pim_data::backend::Db;
use tokio::sync::watch;

use crate::event::Origin;

/// One outbox.
#[derive(Clone, Debug)]
pub struct Source {
    /// What its events name as their origin.
    pub origin: Origin,
    /// The database.
    pub db: Db,
    /// Changes after commits of this process; a hint, the relay polls besides.
    pub commits: watch::Receiver<u64>,
}
