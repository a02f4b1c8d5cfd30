//! The inbox of commands: one row for each consumer, event and target, in the transaction of the command itself.

use pim_data::backend::{Db, DbError, SqlPair, Statement};
use pim_data::unit::{CommitFacts, PartCall, PartError, UnitError, UnitPart};
use tokio::time::Instant;
use uuid::Uuid;

/// The inbox row of one command, as a part of its unit.
#[derive(Debug, Default)]
pub(super) struct InboxPart {
    entry: Option<(&'static str, Uuid)>,
}

impl InboxPart {
    pub(super) const fn enter(&mut self, consumer: &'static str, event: Uuid) {
        self.entry = Some((consumer, event));
    }
}

impl UnitPart for InboxPart {
    fn facts(&self) -> u64 {
        0
    }

    fn statements(&mut self, facts: &CommitFacts<'_>) -> Result<Vec<Statement>, PartError> {
        let Some((consumer, event)) = self.entry else { return Ok(Vec::new()) };
        // No ON CONFLICT: a second commit of the same command must fail as a whole.
        let insert = Statement::sqlite(
            "INSERT INTO command_inbox (consumer, event_id, target_key, bucket, at) VALUES (?, ?, ?, ?, ?)",
        );
        let insert = insert.bind(consumer).bind(event).bind(facts.home.uuid());
        Ok(vec![insert.bind(facts.route.bucket.get()).bind(facts.at)])
    }

    fn call(&mut self, _facts: &CommitFacts<'_>) -> Result<Option<PartCall>, PartError> {
        let data = |(consumer, event)| serde_json::json!({"consumer": consumer, "event": event});
        Ok(self.entry.map(|entry| PartCall { part: "command_inbox", data: data(entry) }))
    }
}

/// After a crash a row may be there that no standby ever had. Whoever finds it on a server commits something behind it, there
/// and by the same statement, and so waits for whomever a commit waits for.
const DONE: SqlPair = SqlPair::of(
    "SELECT 1 FROM command_inbox WHERE consumer = ? AND event_id = ? AND target_key = ? AND pim_settle() IS NOT NULL",
    "SELECT 1 FROM command_inbox WHERE consumer = ? AND event_id = ? AND target_key = ?",
);

/// Whether the command has been committed before, and is as safe as if it were committed now.
pub(super) async fn is_done(
    db: &Db,
    consumer: &str,
    (event, target): (Uuid, Uuid),
    until: Instant,
) -> Result<bool, DbError> {
    let asked = Statement::of(DONE).bind(consumer).bind(event).bind(target);
    Ok(!db.read_until(until).await?.query(asked).await?.is_empty())
}

/// Whether a commit failed because another run of the same command was first. That one may not be confirmed yet.
pub(super) fn lost_race(error: &UnitError) -> bool {
    matches!(error, UnitError::Database(DbError::Refused { rule, unique: true }) if rule.contains("command_inbox"))
}
