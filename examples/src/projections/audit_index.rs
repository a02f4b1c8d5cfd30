//! Which request and which user caused which event: the way into the audit trail.

use async_trait::async_trait;
use pim_core::clock::Timestamp;
use pim_core::rbac::{Permit, Read, Scope};
use pim_data::backend::{Row, SqlPair, Statement, Value};
use pim_events::{ApplyError, Event, Projection, ReadStore, ReadTable, ReadTx};
use serde::Serialize;
use uuid::Uuid;

use super::sight::QueryError;

/// Folds every event.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuditIndex;

#[async_trait]
impl Projection for AuditIndex {
    fn name(&self) -> &'static str {
        "audit_index"
    }

    fn schema(&self) -> SqlPair {
        SqlPair::of(
            "CREATE TABLE audit_index (
                event_id uuid PRIMARY KEY, request_id uuid NOT NULL, user_id text NOT NULL, role text NOT NULL, at bigint NOT NULL,
                event_type text NOT NULL, entity text NOT NULL, entity_id uuid NOT NULL, home uuid NOT NULL
            );
            CREATE INDEX audit_index_request ON audit_index (request_id, at);
            CREATE INDEX audit_index_user ON audit_index (user_id, at);",
            "CREATE TABLE audit_index (
                event_id BLOB PRIMARY KEY, request_id BLOB NOT NULL, user_id TEXT NOT NULL, role TEXT NOT NULL, at INTEGER NOT NULL,
                event_type TEXT NOT NULL, entity TEXT NOT NULL, entity_id BLOB NOT NULL, home BLOB NOT NULL
            ) WITHOUT ROWID;
            CREATE INDEX audit_index_request ON audit_index (request_id, at);
            CREATE INDEX audit_index_user ON audit_index (user_id, at);",
        )
    }

    fn tables(&self) -> &'static [ReadTable] {
        const COLUMNS: &[&str] =
            &["event_id", "request_id", "user_id", "role", "at", "event_type", "entity", "entity_id", "home"];
        &[ReadTable { name: "audit_index", columns: COLUMNS }]
    }

    fn handles(&self, _event_type: &str) -> bool {
        true
    }

    async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError> {
        let enter = |event: &Event| {
            let insert = Statement::same("INSERT INTO audit_index VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)").bind(event.id);
            let insert = insert.bind(event.correlation.uuid()).bind(event.actor.as_str()).bind(event.role.as_str());
            let insert = insert.bind(event.time).bind(event.event_type.as_str()).bind(event.aggregate.as_str());
            insert.bind(event.aggregate_id).bind(event.home)
        };
        let statements: Vec<Statement> = batch.iter().map(enter).collect();
        tx.hop(&statements).await?;
        Ok(())
    }
}

/// One event of a request or user.
#[derive(Clone, Debug, Serialize)]
pub struct AuditLine {
    /// The event.
    pub event_id: Uuid,
    /// Which request.
    pub request_id: Uuid,
    /// Which user.
    pub user_id: String,
    /// In which role.
    pub role: String,
    /// When.
    pub at: Timestamp,
    /// What happened.
    pub event: String,
    /// To what.
    pub entity: String,
    /// To which.
    pub entity_id: Uuid,
}

/// The events of a request or a user, oldest first, at most a thousand; none unless the permit reaches every row, since a
/// request or a user is not bound to one patient.
///
/// # Errors
/// [`QueryError`].
pub async fn audit_lines(
    store: &ReadStore,
    permit: &Permit<Read>,
    request: Option<Uuid>,
    user: Option<&str>,
) -> Result<Vec<AuditLine>, QueryError> {
    if *permit.scope() != Scope::All {
        return Ok(Vec::new());
    }
    const SELECT: &str = "SELECT event_id, request_id, user_id, role, at, event_type, entity, entity_id FROM audit_index \
                          WHERE request_id = coalesce(?, request_id) AND user_id = coalesce(?, user_id) ORDER BY at, event_id LIMIT 1000";
    let select = Statement::same(SELECT).bind(request);
    let user = user.map_or(Value::Null, Value::from);
    let line = |row: &Row| {
        Ok(AuditLine {
            event_id: row.uuid(0)?,
            request_id: row.uuid(1)?,
            user_id: row.text(2)?.to_owned(),
            role: row.text(3)?.to_owned(),
            at: row.time(4)?,
            event: row.text(5)?.to_owned(),
            entity: row.text(6)?.to_owned(),
            entity_id: row.uuid(7)?,
        })
    };
    store.query(select.bind(user)).await?.iter().map(line).collect()
}
