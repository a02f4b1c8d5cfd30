//! Reading a read model for somebody: the rows alone that a permit reaches.

use pim_core::rbac::{Permit, Read};
use pim_data::backend::{Row, Statement};
use pim_data::consistency::ConsistencyToken;
use pim_data::scope::{ScopedTable, within};
use tokio::time::Instant;

use super::{ReadStore, StoreError};
use crate::projection::Projection;

impl ReadStore {
    /// Runs one query over a read model, whose tables have the rows alone that the permit's scope reaches.
    ///
    /// [`Projection::scopes`] says by which columns a row is somebody's; of a table that it does not tell of, those alone see rows
    /// who may see all. The query names tables of the model and no other, and has `?` for its parameters.
    ///
    /// ```no_run
    /// # use pim_core::rbac::{Permit, Read};
    /// # use pim_data::backend::{Row, Statement};
    /// # use pim_events::{Projection, ReadStore, StoreError};
    /// # async fn f(reads: &ReadStore, permit: &Permit<Read>, shelf: &dyn Projection) -> Result<Vec<Row>, StoreError> {
    /// let most = Statement::same("SELECT member, books FROM at_home WHERE books >= ? ORDER BY books DESC LIMIT 10");
    /// reads.select(permit, shelf, most.bind(3_i64)).await
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Scope`] when the query is not such a one, whatever the permit; [`StoreError::Db`].
    pub async fn select(
        &self,
        permit: &Permit<Read>,
        model: &dyn Projection,
        query: Statement,
    ) -> Result<Vec<Row>, StoreError> {
        self.query(within(query, &tables_of(model), permit.scope())?).await
    }

    /// The same once the model has applied all that `seen` tells of, as [`ReadStore::query_after`] says.
    ///
    /// # Errors
    /// [`StoreError::Scope`], [`StoreError::Behind`], [`StoreError::Db`].
    pub async fn select_after(
        &self,
        permit: &Permit<Read>,
        model: &dyn Projection,
        seen: &ConsistencyToken,
        until: Instant,
        query: Statement,
    ) -> Result<Vec<Row>, StoreError> {
        let query = within(query, &tables_of(model), permit.scope())?;
        self.query_after(model.name(), seen, until, query).await
    }
}

/// Every table of a model, with whose its rows are.
fn tables_of(model: &dyn Projection) -> Vec<ScopedTable> {
    let of = |name| model.scopes().iter().find(|told| told.name == name).copied();
    let nobodys = |name| ScopedTable { name, home: None, facility: None };
    model.tables().iter().map(|table| of(table.name).unwrap_or(nobodys(table.name))).collect()
}
