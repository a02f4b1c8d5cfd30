//! Looking records up by request, user or entity.

use pim_core::clock::Timestamp;
use pim_core::context::RequestContext;
use pim_core::rbac::{Permit, Read};
use serde::Serialize;
use serde_json::Value as Json;
use uuid::Uuid;

use crate::backend::{DbError, SqlPair, Statement, Value};
use crate::cluster::{CONTROL, Cluster};

const ENTRIES_MAX: i64 = 1_000;

/// What to look for.
#[derive(Clone, Debug)]
pub enum AuditFilter {
    /// Everything that a request changed.
    Request(Uuid),
    /// Everything that a user changed.
    User(String),
    /// Every change of one row.
    Entity(Uuid),
}

/// One record.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct AuditEntry {
    /// Where it stands; `None` for the control database.
    pub shard: Option<u16>,
    /// Its lane.
    pub lane: u64,
    /// Its number in the lane.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Everything that was recorded.
    pub body: Json,
}

impl Cluster {
    /// Records that match, oldest first, at most a thousand a shard. Looks on every shard: the trail of a request or a user
    /// is not bound to one key. The permit must reach every row.
    ///
    /// # Errors
    /// [`DbError`] of the first shard that fails; [`DbError::Refused`] when the permit's scope is narrower.
    pub async fn audit(
        &self,
        _cx: &RequestContext,
        permit: &Permit<Read>,
        filter: &AuditFilter,
    ) -> Result<Vec<AuditEntry>, DbError> {
        if *permit.scope() != pim_core::rbac::Scope::All {
            return Err(DbError::Refused {
                rule: "the audit trail needs a permit for every row".to_owned(),
                unique: false,
            });
        }
        let (column, value) = match filter {
            AuditFilter::Request(request) => ("request_id", Value::from(*request)),
            AuditFilter::User(user) => ("user_id", Value::from(user.as_str())),
            AuditFilter::Entity(entity) => ("entity_id", Value::from(*entity)),
        };
        self.is_whole().await?;
        let by = records_by(column);
        let mut entries = Vec::new();
        for source in self.sources() {
            let Some(db) = self.database(source) else { continue };
            let select = Statement::of(by.clone()).bind(value.clone());
            for row in db.query(select).await? {
                entries.push(AuditEntry {
                    shard: (source != CONTROL).then_some(source.0),
                    lane: row.count(0)?,
                    seq: row.count(1)?,
                    at: row.time(2)?,
                    body: serde_json::from_str(row.text(3)?).unwrap_or(Json::Null),
                });
            }
        }
        entries.sort_by_key(|entry| (entry.at, entry.shard, entry.lane, entry.seq));
        Ok(entries)
    }
}

fn records_by(column: &'static str) -> SqlPair {
    SqlPair::generated(format!(
        "SELECT lane, seq, at, body FROM audit WHERE {column} = ? ORDER BY at, lane, seq LIMIT {ENTRIES_MAX}"
    ))
}

/// Every statement of this room.
pub(super) fn pairs() -> [SqlPair; 3] {
    ["request_id", "user_id", "entity_id"].map(records_by)
}
