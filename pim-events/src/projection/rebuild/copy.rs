//! Putting the new tables in the place of the live ones, within the transaction of the swap.

use pim_data::backend::{Engine, Row, SqlPair, Statement, Transaction, Value};

use super::green::Green;
use super::pages::Pages;
use super::{Rebuild, RebuildError, indexes};
use crate::consumer::ledger;
use crate::projection::ReadTable;
use crate::projection::store::schema_of;

/// Most rows that are copied at once from a file, and most values: of a statement SQLite binds 32,766.
const COPY_ROWS: usize = 1000;
const COPY_VALUES: usize = 32_000;

impl Rebuild {
    /// Puts the new tables, heads, positions and held events in the place of the old ones.
    pub(super) async fn copy(
        &self,
        green: &Green,
        tx: &mut Transaction,
        same_version: bool,
    ) -> Result<(), RebuildError> {
        let name = self.projection.name();
        if same_version {
            for table in self.projection.tables() {
                tx.script(&format!("DELETE FROM {}", table.name)).await?;
            }
        } else {
            for table in self.projection.tables() {
                tx.script(&format!("DROP TABLE IF EXISTS {}", table.name)).await?;
            }
            tx.script(&schema_of(self.projection.as_ref(), &green.live)?).await?;
        }
        for table in self.projection.tables() {
            copy_table(green, tx, table, None).await?;
            if same_version {
                // Its script may have got some since the live table was made.
                indexes::add_missing(green, tx, table).await?;
            }
        }
        for table in LEDGER_TABLES {
            tx.query(
                Statement::of(SqlPair::generated(format!("DELETE FROM {} WHERE consumer = ?", table.name))).bind(name),
            )
            .await?;
            copy_table(green, tx, table, Some(name)).await?;
        }
        // The holds are as young as the rebuild: none of them stops the model that has them now.
        tx.query(ledger::answered_for(name, self.store.clock().now())).await?;
        let enter = Statement::same(
            "INSERT INTO projection_version (name, version, state, at) VALUES (?, ?, 'live', ?)
             ON CONFLICT (name) DO UPDATE SET version = excluded.version, state = 'live', at = excluded.at",
        );
        tx.query(enter.bind(name).bind(self.projection.version()).bind(self.store.clock().now())).await?;
        Ok(())
    }
}

/// What the consumer of the new tables remembers.
const LEDGER_TABLES: &[ReadTable] = &[
    ReadTable {
        name: "projection_checkpoint",
        columns: &["consumer", "topic", "part", "next_offset", "event_at", "at"],
    },
    ReadTable { name: "inbox_head", columns: &["consumer", "home_key", "owner_epoch", "n", "event_id", "at"] },
    ReadTable {
        name: "held_key",
        columns: &["consumer", "home_key", "part", "reason", "code", "tries", "since", "last_epoch", "last_n"],
    },
    ReadTable {
        name: "held_event",
        columns: &[
            "consumer",
            "home_key",
            "owner_epoch",
            "n",
            "event_id",
            "event_type",
            "event_at",
            "causation",
            "part",
            "pos",
            "digest",
            "headers",
            "payload",
            "at",
        ],
    },
    ReadTable {
        name: "dead_record",
        columns: &["consumer", "topic", "part", "pos", "home_key", "code", "digest", "headers", "payload", "at"],
    },
];

async fn copy_table(
    green: &Green,
    tx: &mut Transaction,
    table: &ReadTable,
    consumer: Option<&str>,
) -> Result<(), RebuildError> {
    let columns = table.columns.join(", ");
    if let Some(schema) = green.schema() {
        let which = if consumer.is_some() { " WHERE consumer = ?" } else { "" };
        let text = format!("INSERT INTO {0} ({columns}) SELECT {columns} FROM {schema}.{0}{which}", table.name);
        let copy = Statement::of(SqlPair::generated_postgres(text)).bind_all(consumer.map(Value::from));
        tx.query(copy).await?;
        return Ok(());
    }
    // Of the file nothing is but this consumer's.
    let mut from = green.store.db().begin().await?;
    copy_from_file(&mut from, tx, table).await?;
    from.rollback().await?;
    Ok(())
}

async fn copy_from_file(from: &mut Transaction, tx: &mut Transaction, table: &ReadTable) -> Result<(), RebuildError> {
    let (columns, width) = (table.columns.join(", "), table.columns.len());
    let row = format!("({})", vec!["?"; width].join(", "));
    let most = COPY_ROWS.min(COPY_VALUES / width.max(1)) as u64;
    let mut pages = Pages::open(from, Engine::Sqlite, (0, table), most).await?;
    // Bounded by the rows of a table that nobody else writes.
    loop {
        let rows = pages.next(from).await?;
        if rows.is_empty() {
            return Ok(());
        }
        let text =
            format!("INSERT INTO {} ({columns}) VALUES {}", table.name, vec![row.as_str(); rows.len()].join(", "));
        let values = rows.iter().flat_map(|row: &Row| (0..width).map(|index| row.get(index).clone()));
        tx.query(Statement::of(SqlPair::generated(text)).bind_all(values)).await?;
    }
}
