//! Read models: tables that follow the bus, each event applied once, rebuilt from the log when needed.

mod rebuild;
mod runner;
mod status;
mod store;

pub use rebuild::{Rebuild, RebuildError, RebuildReport, RebuildState, TableSummary, Verdict};
pub use runner::{ProjectionRunner, RunnerError};
pub(crate) use status::Known;
pub use status::{ConsumerStatus, PartitionStatus, StatusError};
#[cfg(test)]
pub(crate) use store::READERS_MAX;
pub use store::{READ_MODEL_BEHIND, ReadStore, StoreError};

use async_trait::async_trait;
use pim_data::backend::{SqlPair, Transaction};
use pim_data::scope::ScopedTable;

use crate::consumer::ApplyError;
use crate::event::{DOMAIN_TOPIC, Event};

/// The transaction that a projection writes in; it cannot be committed from inside.
pub type ReadTx = Transaction;

/// One table of a read model, for counting, comparing and swapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadTable {
    /// Its name.
    pub name: &'static str,
    /// Every column that carries content; those that the database fills or numbers by itself are left out. The swap of a rebuild
    /// copies rows in no particular order, so what numbers itself tells nothing of order.
    pub columns: &'static [&'static str],
}

/// A read model.
///
/// `apply` gets events in the order of each key and never twice. It must depend on nothing but the events and its own
/// tables: a rebuild runs it again, over the whole log.
///
/// ```
/// use async_trait::async_trait;
/// use pim_data::backend::{SqlPair, Statement};
/// use pim_events::{ApplyError, Event, Projection, ReadTable, ReadTx};
///
/// struct CountByType;
///
/// #[async_trait]
/// impl Projection for CountByType {
///     fn name(&self) -> &'static str {
///         "count_by_type"
///     }
///     fn schema(&self) -> SqlPair {
///         SqlPair::same("CREATE TABLE count_by_type (event_type TEXT PRIMARY KEY, events BIGINT NOT NULL)")
///     }
///     fn tables(&self) -> &'static [ReadTable] {
///         &[ReadTable { name: "count_by_type", columns: &["event_type", "events"] }]
///     }
///     fn handles(&self, _event_type: &str) -> bool {
///         true
///     }
///     async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError> {
///         for event in batch {
///             let add = Statement::same(
///                 "INSERT INTO count_by_type AS c VALUES (?, 1)
///                  ON CONFLICT (event_type) DO UPDATE SET events = c.events + 1",
///             );
///             tx.query(add.bind(event.event_type.as_str())).await?;
///         }
///         Ok(())
///     }
/// }
/// ```
#[async_trait]
pub trait Projection: Send + Sync + 'static {
    /// Stable name; also the consumer's name in heads, checkpoints and dead letters.
    fn name(&self) -> &'static str;

    /// Raised when schema or meaning changes; the model is then rebuilt from the log. Runners of another version than the stored
    /// one write nothing.
    fn version(&self) -> u32 {
        1
    }

    /// The topic it follows.
    fn topic(&self) -> &'static str {
        DOMAIN_TOPIC
    }

    /// A script that makes its tables, in a store that has none of them. An index may be added at the same version: a store that
    /// has the tables gets it by a rebuild.
    fn schema(&self) -> SqlPair;

    /// Its tables.
    fn tables(&self) -> &'static [ReadTable];

    /// Whose the rows of its tables are, for [`ReadStore::select`]. A table that is not among them is for those alone who may see
    /// every row.
    fn scopes(&self) -> &'static [ScopedTable] {
        &[]
    }

    /// Whether events of this type matter to it; heads move over the others.
    fn handles(&self, event_type: &str) -> bool;

    /// Applies events in order, within the transaction that also moves heads and checkpoint. Dropped where it waits when it takes
    /// longer than [`ConsumerSettings::apply_ms_max`](crate::ConsumerSettings): it must not keep its thread from other tasks.
    ///
    /// # Errors
    /// [`ApplyError`]; its class decides between another try and parking the key.
    async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError>;
}
