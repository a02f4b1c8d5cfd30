//! Revenue by facility and day (UTC). Its rows are shared by patients.

use std::collections::BTreeMap;

use async_trait::async_trait;
use pim_core::clock::Timestamp;
use pim_data::backend::{Row, SqlPair, Statement};
use pim_events::{ApplyError, DomainEvent as _, Event, Projection, ReadTable, ReadTx};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::sight::{QueryError, Sight};
use crate::billing::{ClaimMoved, ClaimState, Money, PaymentMade};

/// Folds submitted claims and payments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Revenue;

/// Most lines of one answer.
const LINES_MAX: usize = 10_000;

#[async_trait]
impl Projection for Revenue {
    fn name(&self) -> &'static str {
        "revenue_by_day"
    }

    fn schema(&self) -> SqlPair {
        SqlPair::of(
            "CREATE TABLE revenue_by_day (
                facility_id uuid NOT NULL, day text COLLATE \"C\" NOT NULL, claims bigint NOT NULL, billed_cents bigint NOT NULL,
                payments bigint NOT NULL, paid_cents bigint NOT NULL, PRIMARY KEY (facility_id, day)
            )",
            "CREATE TABLE revenue_by_day (
                facility_id BLOB NOT NULL, day TEXT NOT NULL, claims INTEGER NOT NULL, billed_cents INTEGER NOT NULL,
                payments INTEGER NOT NULL, paid_cents INTEGER NOT NULL, PRIMARY KEY (facility_id, day)
            ) WITHOUT ROWID;",
        )
    }

    fn tables(&self) -> &'static [ReadTable] {
        const COLUMNS: &[&str] = &["facility_id", "day", "claims", "billed_cents", "payments", "paid_cents"];
        &[ReadTable { name: "revenue_by_day", columns: COLUMNS }]
    }

    fn handles(&self, event_type: &str) -> bool {
        [ClaimMoved::TYPE, PaymentMade::TYPE].contains(&event_type)
    }

    async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError> {
        // Folded in memory first: a busy facility is one row, and rows are touched in sorted order.
        let mut sums: BTreeMap<(Uuid, String), [i64; 4]> = BTreeMap::new();
        for event in batch {
            let (facility, change) = if event.is::<ClaimMoved>() {
                let told: ClaimMoved = event.decode()?;
                if told.to != ClaimState::Submitted {
                    continue;
                }
                (told.facility_id, [1, told.total.cents(), 0, 0])
            } else {
                let told: PaymentMade = event.decode()?;
                (told.facility_id, [0, 0, 1, told.amount.cents()])
            };
            let sum = sums.entry((facility.uuid(), day_of(event.time))).or_default();
            sum.iter_mut().zip(change).for_each(|(sum, more)| *sum += more);
        }
        const ADD: &str = "INSERT INTO revenue_by_day AS r VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (facility_id, day) DO UPDATE SET \
            claims = r.claims + excluded.claims, billed_cents = r.billed_cents + excluded.billed_cents, \
            payments = r.payments + excluded.payments, paid_cents = r.paid_cents + excluded.paid_cents";
        let add = |((facility, day), sum): ((Uuid, String), [i64; 4])| {
            Statement::same(ADD).bind(facility).bind(day).bind_all(sum.map(Into::into))
        };
        let statements: Vec<Statement> = sums.into_iter().map(add).collect();
        tx.hop(&statements).await?;
        Ok(())
    }
}

fn day_of(time: Timestamp) -> String {
    time.to_string().chars().take(10).collect()
}

/// One facility on one day.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RevenueLine {
    /// Where.
    #[schema(value_type = String, format = "uuid")]
    pub facility_id: Uuid,
    /// When, `YYYY-MM-DD` in UTC.
    pub day: String,
    /// Claims submitted.
    pub claims: u64,
    /// Their sum.
    pub billed: Money,
    /// Payments.
    pub payments: u64,
    /// Their sum.
    pub paid: Money,
}

/// Revenue from a day to a day, both included; the permit must reach every row, since a line is nobody's own.
///
/// # Errors
/// [`QueryError`], also where there are more than 10,000 lines.
pub async fn revenue(
    sight: &Sight<'_>,
    from: &str,
    to: &str,
    facility: Option<Uuid>,
) -> Result<Vec<RevenueLine>, QueryError> {
    // One more than there may be tells that they are too many.
    let asked = LINES_MAX + 1;
    let text = format!(
        "SELECT facility_id, day, claims, billed_cents, payments, paid_cents FROM revenue_by_day \
         WHERE day BETWEEN ? AND ? AND facility_id = coalesce(?, facility_id) ORDER BY day, facility_id LIMIT {asked}"
    );
    let select = Statement::of(SqlPair::generated(text)).bind(from).bind(to).bind(facility);
    let line = |row: &Row| {
        Ok(RevenueLine {
            facility_id: row.uuid(0)?,
            day: row.text(1)?.to_owned(),
            claims: row.count(2)?,
            billed: Money::usd_cents(row.int(3)?),
            payments: row.count(4)?,
            paid: Money::usd_cents(row.int(5)?),
        })
    };
    let rows = sight.query(&Revenue, select).await?;
    if rows.len() > LINES_MAX {
        return Err(QueryError::TooMany { most: LINES_MAX });
    }
    rows.iter().map(line).collect()
}
