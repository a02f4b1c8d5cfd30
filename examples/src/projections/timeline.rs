//! What happened with a patient, one line an event, in the order of their n.

use async_trait::async_trait;
use pim_core::clock::Timestamp;
use pim_data::backend::{Row, SqlPair, Statement};
use pim_data::scope::ScopedTable;
use pim_events::{ApplyError, DomainEvent as _, Event, Projection, ReadTable, ReadTx};
use serde::Serialize;
use serde_json::Value as Json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::sight::{QueryError, Sight};
use crate::ids::PatientId;
use crate::patient::PatientRegistered;

/// Folds every event of appointments, encounters and the patient's registration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timeline;

const COLUMNS: &[&str] = &["patient_id", "n", "at", "event_type", "entity", "entity_id", "facility_id", "code"];

#[async_trait]
impl Projection for Timeline {
    fn name(&self) -> &'static str {
        "encounter_timeline"
    }

    fn schema(&self) -> SqlPair {
        SqlPair::of(
            "CREATE TABLE encounter_timeline (
                patient_id uuid NOT NULL, n bigint NOT NULL, at bigint NOT NULL, event_type text NOT NULL,
                entity text NOT NULL, entity_id uuid NOT NULL, facility_id uuid, code text, PRIMARY KEY (patient_id, n)
            )",
            "CREATE TABLE encounter_timeline (
                patient_id BLOB NOT NULL, n INTEGER NOT NULL, at INTEGER NOT NULL, event_type TEXT NOT NULL,
                entity TEXT NOT NULL, entity_id BLOB NOT NULL, facility_id BLOB, code TEXT, PRIMARY KEY (patient_id, n)
            ) WITHOUT ROWID;",
        )
    }

    fn tables(&self) -> &'static [ReadTable] {
        &[ReadTable { name: "encounter_timeline", columns: COLUMNS }]
    }

    fn scopes(&self) -> &'static [ScopedTable] {
        &[ScopedTable { name: "encounter_timeline", home: Some("patient_id"), facility: Some("facility_id") }]
    }

    fn handles(&self, event_type: &str) -> bool {
        let of_care = ["appointment.", "encounter."].iter().any(|aggregate| event_type.starts_with(aggregate));
        of_care || event_type == PatientRegistered::TYPE
    }

    async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError> {
        let statements: Vec<Statement> = batch.iter().map(statement_of).collect();
        tx.hop(&statements).await?;
        Ok(())
    }
}

fn statement_of(event: &Event) -> Statement {
    // Only two members matter, and each kind of event has its own others.
    let told: Json = serde_json::from_str(event.payload.get()).unwrap_or(Json::Null);
    let facility = told["facility_id"].as_str().and_then(|text| Uuid::try_parse(text).ok());
    let code = told["code"].as_str().map(str::to_owned);
    let insert = Statement::same("INSERT INTO encounter_timeline VALUES (?, ?, ?, ?, ?, ?, ?, ?)").bind(event.home);
    let insert = insert.bind(event.n).bind(event.time).bind(event.event_type.as_str()).bind(event.aggregate.as_str());
    insert.bind(event.aggregate_id).bind(facility).bind(code)
}

/// One line.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TimelineEntry {
    /// The patient's number of the event.
    pub n: u64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// What happened.
    pub event: String,
    /// To what.
    pub entity: String,
    /// To which.
    #[schema(value_type = String, format = "uuid")]
    pub entity_id: Uuid,
    /// Its code, when it has one.
    pub code: Option<String>,
}

/// A patient's timeline behind `after`, within the scope.
///
/// # Errors
/// [`QueryError`].
pub async fn timeline(
    sight: &Sight<'_>,
    id: PatientId,
    after: u64,
    limit: u32,
) -> Result<Vec<TimelineEntry>, QueryError> {
    let text = format!(
        "SELECT n, at, event_type, entity, entity_id, code FROM encounter_timeline \
         WHERE patient_id = ? AND n > ? ORDER BY n LIMIT {limit}"
    );
    let select = Statement::of(SqlPair::generated(text)).bind(id.uuid()).bind(after);
    let entry = |row: &Row| {
        Ok(TimelineEntry {
            n: row.count(0)?,
            at: row.time(1)?,
            event: row.text(2)?.to_owned(),
            entity: row.text(3)?.to_owned(),
            entity_id: row.uuid(4)?,
            code: row.text_or_null(5)?.map(str::to_owned),
        })
    };
    sight.query_of(id.uuid(), &Timeline, select).await?.iter().map(entry).collect()
}
