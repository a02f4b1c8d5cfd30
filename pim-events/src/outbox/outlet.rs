//! What a shard's outbox has yet to send of some buckets: they change hands only when it is nothing.

use async_trait::async_trait;
use pim_core::shard::Bucket;
use pim_data::backend::{Db, DbError, SqlPair, Statement};
use pim_data::relocation::{Belongs, MovedTable, Outflow, Outlet};

/// The inbox of commands goes with its bucket, so that no command happens again behind a move.
pub(super) const INBOX: MovedTable = MovedTable {
    name: "command_inbox",
    columns: &["consumer", "event_id", "target_key", "bucket", "at"],
    belongs: Belongs::Bucket(&["consumer", "event_id", "target_key"]),
};

/// The outboxes, as a mover of buckets asks for them.
#[derive(Clone, Copy, Debug, Default)]
pub struct OutboxOutlet;

#[async_trait]
impl Outlet for OutboxOutlet {
    async fn outflow(&self, shard: &Db, buckets: &[Bucket]) -> Result<Outflow, DbError> {
        let list = buckets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let held = SqlPair::generated(format!(
            "SELECT 1 FROM outbox_held h JOIN outbox_event e ON e.seq = h.seq WHERE e.bucket IN ({list}) LIMIT 1"
        ));
        let behind = SqlPair::joined(
            SqlPair::generated_postgres(format!(
                "SELECT 1 FROM pim_outbox_unsent(NULL) u WHERE u.bucket IN ({list}) LIMIT 1"
            )),
            SqlPair::generated_sqlite(format!(
                "SELECT 1 FROM outbox_event WHERE seq > (SELECT last_seq FROM outbox_cursor) AND bucket IN ({list}) LIMIT 1"
            )),
        );
        // One snapshot: an event leaves the backlog and becomes a held one in one transaction.
        let asked = [held, behind].map(Statement::of);
        let answers = shard.read().await?.snapshot(&asked).await?;
        let found = |index: usize| answers.get(index).is_some_and(|rows| !rows.is_empty());
        Ok(match (found(0), found(1)) {
            (true, _) => Outflow::Parked,
            (false, true) => Outflow::Waiting,
            (false, false) => Outflow::Dry,
        })
    }
}
