//! The patient portal: one line a patient.

use async_trait::async_trait;
use pim_core::clock::Timestamp;
use pim_data::backend::{SqlPair, Statement};
use pim_data::scope::ScopedTable;
use pim_events::{ApplyError, DomainEvent as _, Event, Projection, ReadTable, ReadTx};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::sight::{QueryError, Sight};
use crate::billing::{ClaimDrafted, ClaimMoved, LineAdded, Money, PaymentMade};
use crate::encounter::{AppointmentMade, AppointmentMoved, EncounterCompleted, EncounterScheduled};
use crate::ids::PatientId;
use crate::patient::{PatientCorrected, PatientMoved, PatientRegistered};

/// Folds everything that the portal's first page shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summaries;

const COLUMNS: &[&str] = &[
    "patient_id",
    "facility_id",
    "state",
    "appointments_open",
    "encounters",
    "encounters_completed",
    "last_completed_at",
    "claims",
    "billed_cents",
    "paid_cents",
];

#[async_trait]
impl Projection for Summaries {
    fn name(&self) -> &'static str {
        "patient_summary"
    }

    fn schema(&self) -> SqlPair {
        SqlPair::of(
            "CREATE TABLE patient_summary (
                patient_id uuid PRIMARY KEY, facility_id uuid, state text NOT NULL DEFAULT 'registered',
                appointments_open bigint NOT NULL DEFAULT 0, encounters bigint NOT NULL DEFAULT 0,
                encounters_completed bigint NOT NULL DEFAULT 0, last_completed_at bigint,
                claims bigint NOT NULL DEFAULT 0, billed_cents bigint NOT NULL DEFAULT 0,
                paid_cents bigint NOT NULL DEFAULT 0
            )",
            "CREATE TABLE patient_summary (
                patient_id BLOB PRIMARY KEY, facility_id BLOB, state TEXT NOT NULL DEFAULT 'registered',
                appointments_open INTEGER NOT NULL DEFAULT 0, encounters INTEGER NOT NULL DEFAULT 0,
                encounters_completed INTEGER NOT NULL DEFAULT 0, last_completed_at INTEGER,
                claims INTEGER NOT NULL DEFAULT 0, billed_cents INTEGER NOT NULL DEFAULT 0,
                paid_cents INTEGER NOT NULL DEFAULT 0
            ) WITHOUT ROWID;",
        )
    }

    fn tables(&self) -> &'static [ReadTable] {
        &[ReadTable { name: "patient_summary", columns: COLUMNS }]
    }

    fn scopes(&self) -> &'static [ScopedTable] {
        &[ScopedTable { name: "patient_summary", home: Some("patient_id"), facility: Some("facility_id") }]
    }

    fn handles(&self, event_type: &str) -> bool {
        [
            PatientRegistered::TYPE,
            PatientCorrected::TYPE,
            PatientMoved::TYPE,
            AppointmentMade::TYPE,
            AppointmentMoved::TYPE,
            EncounterScheduled::TYPE,
            EncounterCompleted::TYPE,
            ClaimDrafted::TYPE,
            LineAdded::TYPE,
            ClaimMoved::TYPE,
            PaymentMade::TYPE,
        ]
        .contains(&event_type)
    }

    async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError> {
        let mut statements = Vec::with_capacity(batch.len());
        for event in batch {
            statements.extend(statement_of(event)?);
        }
        tx.hop(&statements).await?;
        Ok(())
    }
}

fn statement_of(event: &Event) -> Result<Option<Statement>, ApplyError> {
    let change = |text: &'static str| Statement::same(text);
    let home = event.home;
    Ok(Some(if event.is::<PatientRegistered>() {
        let told: PatientRegistered = event.decode()?;
        change("INSERT INTO patient_summary (patient_id, facility_id) VALUES (?, ?)")
            .bind(home)
            .bind(told.facility_id.uuid())
    } else if event.is::<PatientCorrected>() {
        let told: PatientCorrected = event.decode()?;
        change("UPDATE patient_summary SET facility_id = ? WHERE patient_id = ?")
            .bind(told.facility_id.uuid())
            .bind(home)
    } else if event.is::<PatientMoved>() {
        let told: PatientMoved = event.decode()?;
        change("UPDATE patient_summary SET state = ? WHERE patient_id = ?").bind(told.to.name()).bind(home)
    } else if event.is::<AppointmentMade>() {
        change("UPDATE patient_summary SET appointments_open = appointments_open + 1 WHERE patient_id = ?").bind(home)
    } else if event.is::<AppointmentMoved>() {
        change("UPDATE patient_summary SET appointments_open = appointments_open - 1 WHERE patient_id = ?").bind(home)
    } else if event.is::<EncounterScheduled>() {
        change("UPDATE patient_summary SET encounters = encounters + 1 WHERE patient_id = ?").bind(home)
    } else if event.is::<EncounterCompleted>() {
        let told: EncounterCompleted = event.decode()?;
        change(
            "UPDATE patient_summary SET encounters_completed = encounters_completed + 1, last_completed_at = ? \
             WHERE patient_id = ?",
        )
        .bind(told.completed_at)
        .bind(home)
    } else if event.is::<ClaimDrafted>() {
        let told: ClaimDrafted = event.decode()?;
        change("UPDATE patient_summary SET claims = claims + 1, billed_cents = billed_cents + ? WHERE patient_id = ?")
            .bind(told.total.cents())
            .bind(home)
    } else if event.is::<LineAdded>() {
        let told: LineAdded = event.decode()?;
        change("UPDATE patient_summary SET billed_cents = billed_cents + ? WHERE patient_id = ?")
            .bind(told.amount.cents())
            .bind(home)
    } else if event.is::<PaymentMade>() {
        let told: PaymentMade = event.decode()?;
        change("UPDATE patient_summary SET paid_cents = paid_cents + ? WHERE patient_id = ?")
            .bind(told.amount.cents())
            .bind(home)
    } else {
        return Ok(None);
    }))
}

/// What the portal shows of a patient.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Summary {
    /// Who.
    #[schema(value_type = String, format = "uuid")]
    pub patient_id: Uuid,
    /// Where.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub facility_id: Option<Uuid>,
    /// State of the record.
    pub state: String,
    /// Appointments to come.
    pub appointments_open: u64,
    /// Encounters of any state.
    pub encounters: u64,
    /// Encounters that are over.
    pub encounters_completed: u64,
    /// When the last one ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_completed_at: Option<Timestamp>,
    /// Claims of any state.
    pub claims: u64,
    /// Sum of the claims.
    pub billed: Money,
    /// Sum of the payments.
    pub paid: Money,
}

/// A patient's summary; `None` when there is none within the scope.
///
/// # Errors
/// [`QueryError`].
pub async fn summary(sight: &Sight<'_>, id: PatientId) -> Result<Option<Summary>, QueryError> {
    let text = format!("SELECT {} FROM patient_summary WHERE patient_id = ?", COLUMNS.join(", "));
    let select = Statement::of(SqlPair::generated(text)).bind(id.uuid());
    let rows = sight.query_of(id.uuid(), &Summaries, select).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(Summary {
        patient_id: row.uuid(0)?,
        facility_id: row.uuid_or_null(1)?,
        state: row.text(2)?.to_owned(),
        appointments_open: row.count(3)?,
        encounters: row.count(4)?,
        encounters_completed: row.count(5)?,
        last_completed_at: row.int(6).ok().map(Timestamp::from_micros),
        claims: row.count(7)?,
        billed: Money::usd_cents(row.int(8)?),
        paid: Money::usd_cents(row.int(9)?),
    }))
}
