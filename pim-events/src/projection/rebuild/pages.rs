//! The rows of a table that nobody else writes, page by page: each page begins behind the key of the last row before it, so that
//! a table of any size is read once. Pages by number read again what is before them: only where a table has no key that is known.

use pim_data::backend::{DbError, Engine, Row, SqlPair, Statement, Transaction, Value};

use crate::projection::ReadTable;

/// Each row of a table once.
pub(super) struct Pages {
    /// How many columns of a row are the table's; its key stands behind them.
    columns: usize,
    max: u64,
    from: From,
}

enum From {
    /// Behind a key, which is none at first.
    Key { first: String, next: String, behind: Option<Vec<Value>> },
    /// Behind so many rows.
    Number { select: String, read: u64 },
    /// A server's own place.
    Cursor { fetch: String, close: String },
}

/// What SQLite calls a row's number, unless a column has the name.
const ROW_NUMBERS: [&str; 3] = ["rowid", "_rowid_", "oid"];

impl Pages {
    /// Pages of at most `max` rows. The cursor has a number: a table's name may be longer, or quoted.
    pub(super) async fn open(
        tx: &mut Transaction,
        engine: Engine,
        (index, table): (usize, &ReadTable),
        max: u64,
    ) -> Result<Self, DbError> {
        let (columns, name) = (table.columns.join(", "), table.name);
        if engine != Engine::Sqlite {
            let cursor = format!("pim_pages_{index}");
            tx.script(&format!("DECLARE {cursor} NO SCROLL CURSOR FOR SELECT {columns} FROM {name}")).await?;
            let fetch = format!("FETCH FORWARD {max} FROM {cursor}");
            let from = From::Cursor { fetch, close: format!("CLOSE {cursor}") };
            return Ok(Self { columns: table.columns.len(), max, from });
        }
        let from = match key_of(tx, name).await? {
            Some(key) => {
                let (marks, key) = (vec!["?"; key.len()].join(", "), key.join(", "));
                let select = format!("SELECT {columns}, {key} FROM {name}");
                From::Key {
                    first: format!("{select} ORDER BY {key} LIMIT ?"),
                    next: format!("{select} WHERE ({key}) > ({marks}) ORDER BY {key} LIMIT ?"),
                    behind: None,
                }
            }
            None => From::Number { select: format!("SELECT {columns} FROM {name} LIMIT ? OFFSET ?"), read: 0 },
        };
        Ok(Self { columns: table.columns.len(), max, from })
    }

    /// The next page; none behind the last one. The table's columns are the first of a row.
    pub(super) async fn next(&mut self, tx: &mut Transaction) -> Result<Vec<Row>, DbError> {
        let (first, next, behind) = match &mut self.from {
            From::Cursor { fetch, .. } => {
                return tx.query(Statement::of(SqlPair::generated_postgres(fetch.clone()))).await;
            }
            From::Number { select, read } => {
                let page = Statement::of(SqlPair::generated(select.clone())).bind(self.max).bind(*read);
                let rows = tx.query(page).await?;
                *read += rows.len() as u64;
                return Ok(rows);
            }
            From::Key { first, next, behind } => (first, next, behind),
        };
        let page = match behind.take() {
            None => Statement::of(SqlPair::generated(first.clone())),
            Some(key) => Statement::of(SqlPair::generated(next.clone())).bind_all(key),
        };
        let rows = tx.query(page.bind(self.max)).await?;
        *behind = rows.last().map(|row| (self.columns..row.len()).map(|index| row.get(index).clone()).collect());
        Ok(rows)
    }

    /// A table that a cursor is open on gets no index.
    pub(super) async fn close(self, tx: &mut Transaction) -> Result<(), DbError> {
        match self.from {
            From::Key { .. } | From::Number { .. } => Ok(()),
            From::Cursor { close, .. } => tx.script(&close).await,
        }
    }
}

/// A table's name as the engines keep it, which may be quoted in statements.
pub(in crate::projection) fn plain(name: &str) -> String {
    let quoted = name.strip_prefix('"').and_then(|name| name.strip_suffix('"'));
    quoted.map_or_else(|| name.to_owned(), |name| name.replace("\"\"", "\""))
}

/// By what a table of SQLite has each row once: the number of a row, or where it has none its primary key. None of a name that
/// is written otherwise than plainly or in double quotes.
async fn key_of(tx: &mut Transaction, table: &str) -> Result<Option<Vec<String>>, DbError> {
    let name = plain(table);
    // Generated columns too: they have a name as others do.
    let asked = Statement::sqlite("SELECT name, pk FROM pragma_table_xinfo(?) ORDER BY pk").bind(name.as_str());
    let mut columns = Vec::new();
    for row in tx.query(asked).await? {
        columns.push((row.text(0)?.to_owned(), row.count(1)?));
    }
    let listed = Statement::sqlite("SELECT 1 FROM pragma_table_list(?) WHERE wr = 0").bind(name.as_str());
    let has_number = !tx.query(listed).await?.is_empty();
    let is_free = |number: &&&str| !columns.iter().any(|(column, _)| column.eq_ignore_ascii_case(number));
    if has_number {
        // Of a table that has a number, the primary key may be none.
        return Ok(ROW_NUMBERS.iter().find(is_free).map(|number| vec![(*number).to_owned()]));
    }
    let key = columns.iter().filter(|(_, place)| *place > 0);
    let key: Vec<_> = key.map(|(column, _)| format!("\"{}\"", column.replace('"', "\"\""))).collect();
    // A key may tell apart what its column takes for the same.
    let collates = "SELECT 1 FROM sqlite_schema WHERE name = ? COLLATE NOCASE AND sql LIKE '%collate%'";
    let collates = !tx.query(Statement::sqlite(collates).bind(name.as_str())).await?.is_empty();
    Ok((!key.is_empty() && !collates).then_some(key))
}

#[cfg(test)]
mod tests {
    use pim_data::backend::{Db, DbSettings};

    use super::*;

    const TABLES: &str = "
        CREATE TABLE numbered (a TEXT);
        CREATE TABLE \"odd \"\"name\" (rowid TEXT, _rowid_ INTEGER, a TEXT);
        CREATE TABLE keyed (a TEXT, b BLOB, \"c d\" INTEGER NOT NULL, PRIMARY KEY (\"c d\", b)) WITHOUT ROWID;
        CREATE TABLE full (rowid INTEGER, _rowid_ INTEGER, oid INTEGER, a TEXT, PRIMARY KEY (rowid, oid));
        CREATE TABLE [made] (a TEXT, rowid AS (5), \"_ROWID_\" AS (6) STORED);
        CREATE TABLE fine (a TEXT COLLATE NOCASE, PRIMARY KEY (a COLLATE BINARY)) WITHOUT ROWID;
        INSERT INTO made (a) VALUES (1), (2), (3), (4), (5), (6), (7);
        INSERT INTO fine VALUES ('a'), ('A'), ('b'), ('B'), ('c'), ('C'), ('d');
        WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 7) INSERT INTO numbered SELECT 'same' FROM n;
        WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 7) INSERT INTO \"odd \"\"name\" SELECT 'same', 1, i FROM n;
        WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 7)
          INSERT INTO keyed SELECT i, CAST(char(64 + i % 4) AS BLOB), i / 4 FROM n;
        WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 7) INSERT INTO full SELECT i / 3, 1, i, 'x' FROM n;";

    /// Guard: a page begins behind the key of the last row, by an index, whatever the columns are called.
    #[tokio::test]
    async fn each_row_is_read_once_and_none_is_passed_over_to_find_it() {
        let folder = std::env::temp_dir().join(format!("pim-pages-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&folder).unwrap();
        let db = Db::open(&folder.join("pages.db"), DbSettings::default()).await.unwrap();
        let mut tx = db.begin().await.unwrap();
        tx.script(TABLES).await.unwrap();
        for table in [
            ReadTable { name: "numbered", columns: &["a"] },
            ReadTable { name: "\"odd \"\"name\"", columns: &["a", "rowid"] },
            ReadTable { name: "keyed", columns: &["a", "b"] },
            ReadTable { name: "full", columns: &["a", "oid"] },
            ReadTable { name: "made", columns: &["a"] },
            ReadTable { name: "[made]", columns: &["a"] },
            ReadTable { name: "fine", columns: &["a"] },
        ] {
            let mut pages = Pages::open(&mut tx, Engine::Sqlite, (0, &table), 3).await.unwrap();
            let mut sizes = Vec::new();
            loop {
                let rows = pages.next(&mut tx).await.unwrap();
                sizes.push(rows.len());
                if rows.is_empty() {
                    break;
                }
            }
            assert_eq!(sizes, [3, 3, 1, 0], "{}", table.name);
            let From::Key { next, .. } = pages.from else { continue };
            let marks = next.matches('?').count();
            let plan = Statement::of(SqlPair::generated(format!("EXPLAIN QUERY PLAN {next}")))
                .bind_all(vec![Value::Null; marks]);
            let plan = tx.query(plan).await.unwrap();
            let steps: Vec<&str> = plan.iter().map(|row| row.text(3).unwrap()).collect();
            assert!(steps.len() == 1 && steps[0].starts_with("SEARCH "), "{}: {steps:?}", table.name);
        }
        drop(tx);
        drop(db);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
