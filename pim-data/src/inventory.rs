//! Every statement that pim-data sends, so that each can be prepared on a database and its answers compared.
//!
//! What is asked for by [`Schema::statements`] is what the rooms say of themselves; a test compares it with what a server's
//! connections were really asked to prepare.

use crate::backend::SqlPair;
use crate::entity::Table;
use crate::schema::Schema;
use crate::{
    audit, cluster, degradation, examination, fence, idempotency, migration, repository, retention, selection, unit,
};

impl Schema {
    /// Every statement that this program sends to a shard, for [`Db::describe`](crate::backend::Db::describe). Those with a
    /// text for each engine answer with the same columns on both. Those of a move name its buckets and are not among them.
    #[must_use]
    pub fn statements(&self) -> Vec<SqlPair> {
        let tables: Vec<&'static Table> = self.tables().filter(|table| !self.is_control(table)).collect();
        let reads = tables.iter().flat_map(|table| repository::pairs(table, self.calls(table)));
        let rooms = [unit::pairs(self, &tables), audit::pairs(&tables), idempotency::pairs(), cluster::pairs()];
        let rooms = rooms.into_iter().flatten().chain(fence::pairs()).chain(migration::pairs());
        let rooms = rooms.chain(retention::pairs(&tables)).chain(selection::pairs()).chain(examination::pairs());
        let rooms = rooms.chain(degradation::pairs());
        reads.chain(rooms).collect()
    }
}
