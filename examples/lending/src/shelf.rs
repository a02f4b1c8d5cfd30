//! A read model: how many books each member has at home.

use std::time::Duration;

use async_trait::async_trait;
use pim_core::id::Id;
use pim_core::rbac::{Permit, Read};
use pim_data::backend::{SqlPair, Statement};
use pim_data::consistency::ConsistencyToken;
use pim_data::scope::ScopedTable;
use pim_events::{ApplyError, DomainEvent as _, Event, Projection, ReadStore, ReadTable, ReadTx, StoreError};
use tokio::time::Instant;

use crate::loan::{LoanMoved, Member, State};

/// Folds [`LoanMoved`] into a number a member; each fact counts exactly once, whatever is repeated or killed.
#[derive(Debug)]
pub struct AtHome;

#[async_trait]
impl Projection for AtHome {
    fn name(&self) -> &'static str {
        "at_home"
    }

    fn schema(&self) -> SqlPair {
        SqlPair::of(
            "CREATE TABLE at_home (member uuid PRIMARY KEY, books bigint NOT NULL)",
            "CREATE TABLE at_home (member BLOB PRIMARY KEY, books INTEGER NOT NULL) WITHOUT ROWID",
        )
    }

    fn tables(&self) -> &'static [ReadTable] {
        &[ReadTable { name: "at_home", columns: &["member", "books"] }]
    }

    fn scopes(&self) -> &'static [ScopedTable] {
        &[ScopedTable { name: "at_home", home: Some("member"), facility: None }]
    }

    fn handles(&self, event_type: &str) -> bool {
        event_type == LoanMoved::TYPE
    }

    async fn apply(&self, tx: &mut ReadTx, batch: &[Event]) -> Result<(), ApplyError> {
        for event in batch {
            let change = match event.decode::<LoanMoved>()?.state {
                State::Out => 1_i64,
                State::Back => -1,
            };
            let fold = "INSERT INTO at_home AS a VALUES (?, ?)
                        ON CONFLICT (member) DO UPDATE SET books = a.books + excluded.books";
            tx.query(Statement::same(fold).bind(event.home).bind(change)).await?;
        }
        Ok(())
    }
}

/// How long somebody who has lent or brought a book waits for the shelf to know of it.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many books a member has at home, as far as the facts have come: at least to what `seen` tells of. `None` of a member
/// who is out of the permit's reach.
///
/// # Errors
/// [`StoreError`] when the read store does not answer, or is behind for too long.
pub async fn at_home(
    store: &ReadStore,
    permit: &Permit<Read>,
    member: Id<Member>,
    seen: &ConsistencyToken,
) -> Result<Option<i64>, StoreError> {
    let ask = Statement::same("SELECT books FROM at_home WHERE member = ?").bind(member.uuid());
    let rows = store.select_after(permit, &AtHome, seen, Instant::now() + PATIENCE, ask).await?;
    // Who has never borrowed has no row.
    let books = rows.first().map(|row| row.int(0)).transpose()?;
    Ok(permit.scope().sees(member.uuid(), None).then_some(books.unwrap_or(0)))
}
