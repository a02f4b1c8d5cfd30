//! What a shard's outbox has yet to send of some buckets: they change hands only when it is nothing.

use async_trait::async_trait;
use pim_core::shard::Bucket;
use pim_data::backend::{Db, DbError, SqlPair, Statement, Value};
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
        let held = format!(
            "SELECT 1 FROM outbox_held h JOIN outbox_event e ON e.seq = h.seq WHERE e.bucket IN ({list}) LIMIT 1"
        );
        // One statement, and so one snapshot: an event leaves the backlog and becomes a held one in one transaction. Writers may
        // be waiting, and this is one trip.
        let ask = |behind: String| format!("SELECT ({held}), ({behind})");
        let asked = SqlPair::joined(
            SqlPair::generated_postgres(ask(format!(
                "SELECT 1 FROM pim_outbox_unsent(NULL) u WHERE u.bucket IN ({list}) LIMIT 1"
            ))),
            SqlPair::generated_sqlite(ask(format!(
                "SELECT 1 FROM outbox_event WHERE seq > (SELECT last_seq FROM outbox_cursor) AND bucket IN ({list}) LIMIT 1"
            ))),
        );
        let rows = shard.query(Statement::of(asked)).await?;
        let found = |index: usize| rows.first().is_some_and(|row| !matches!(row.get(index), Value::Null));
        Ok(match (found(0), found(1)) {
            (true, _) => Outflow::Parked,
            (false, true) => Outflow::Waiting,
            (false, false) => Outflow::Dry,
        })
    }
}
