//! A server's end of a move, read in one trip however many tables there are.

use uuid::Uuid;

use super::MoveError;
use super::batch;
use super::compare::{Census, Count, Counts};
use super::copy::{Copier, End, Pieces, heads_of};
use super::layout::{KeyPart, Role, list_of};
use super::stamp::{self, Stamp};
use crate::backend::{ColumnError, Row, SqlPair, Statement, Value};

/// What the mover is asked with: the owner sees every row inside of this function.
const LOOK: SqlPair = SqlPair::postgres("SELECT a, b, c, d FROM pim_look(?, ?)");

impl Copier {
    async fn ask(&self, end: &End, question: String, keys: &[Uuid]) -> Result<Vec<Row>, MoveError> {
        let look = Statement::of(LOOK).bind(question).bind(batch::list_of_ids(keys));
        end.db.query(look).await.map_err(|source| MoveError::Shard { shard: end.shard, source })
    }

    /// Everything of some keys, in one snapshot. Each row is its key and, as JSON, all of its columns.
    pub(super) async fn collect(&self, end: &End, keys: &[Uuid]) -> Result<Pieces, MoveError> {
        let of_part = |(index, part): (usize, &KeyPart)| {
            let KeyPart { table, key, columns, .. } = part;
            let id = if part.role == Role::Plain { "NULL::uuid" } else { "t.id" };
            let place = if part.role == Role::History { "t.history_seq" } else { "0::bigint" };
            let columns = columns.iter().map(|column| format!("t.{column}")).collect::<Vec<_>>().join(", ");
            format!(
                "SELECT {index}::bigint AS part, t.{key} AS key, {id} AS id, {place} AS place, \
                 (SELECT to_jsonb(one.*) FROM (SELECT {columns}) one)::text AS data FROM {table} t WHERE t.{key} = ANY ($1)"
            )
        };
        let stamps = format!(
            "SELECT {}::bigint, home_key, NULL::uuid, 0::bigint, {} FROM ({}) rows GROUP BY home_key",
            self.layout.keys.len(),
            stamp::COLUMNS,
            self.all_rows("home_key = ANY ($1)"),
        );
        let parts =
            self.layout.keys.iter().enumerate().map(of_part).chain([stamps]).collect::<Vec<_>>().join(" UNION ALL ");
        let question = format!("SELECT part, key, id, data FROM ({parts}) found ORDER BY part, place");
        let mut pieces = Pieces::default();
        for row in self.ask(end, question, keys).await? {
            let index = usize::try_from(row.count(0)?).unwrap_or(usize::MAX);
            let Some(part) = self.layout.keys.get(index) else {
                pieces.stamp(row.uuid(1)?, Stamp::of(row.text(3)?));
                continue;
            };
            let (key, id) = (row.uuid(1)?, row.uuid_or_null(2)?.unwrap_or(Uuid::nil()));
            let whole = Row::new(vec![key.into(), Value::Json(row.text(3)?.to_owned())]);
            pieces.add((part.group, id, key), index, &part.table, whole);
        }
        Ok(pieces)
    }

    /// The rows of all entities; a program may have none.
    fn all_rows(&self, which: &str) -> String {
        let of_part =
            |part: &KeyPart| format!(" UNION ALL SELECT bucket, home_key, xmin FROM {} WHERE {which}", part.table);
        let none = "SELECT bucket, key AS home_key, xmin FROM key_head WHERE false".to_owned();
        none + &self.layout.rows().map(of_part).collect::<String>()
    }

    /// Key, bucket, number and stamp of every key of the buckets; number zero for a key that has rows.
    pub(super) async fn collect_heads(&self, end: &End) -> Result<Vec<Row>, MoveError> {
        self.ask(end, self.asked_for_keys(), &[]).await?.iter().map(head_of).collect()
    }

    /// Bucket, key, nothing, and number as text; then, of its rows, its stamp behind a zero.
    fn asked_for_keys(&self) -> String {
        let which = format!("bucket IN ({})", list_of(&self.buckets));
        format!(
            "SELECT bucket, key, NULL::uuid, n::text FROM key_head WHERE {which} UNION ALL \
             SELECT bucket, home_key, NULL::uuid, '0 ' || {} FROM ({}) rows GROUP BY bucket, home_key",
            stamp::COLUMNS,
            self.all_rows(&which),
        )
    }

    /// What an end has: heads, and counts in rows without a key. Of records two sums of hashes tell which they are, so that
    /// one in another's stead is seen.
    pub(super) async fn collect_census(&self, end: &End) -> Result<Census, MoveError> {
        let list = list_of(&self.buckets);
        let of_table = |(index, (table, identity)): (usize, (&str, &[&str]))| {
            let sum = |seed: u8| format!("sum(hashtextextended(ROW({})::text, {seed}))", identity.join(", "));
            let which =
                if identity.is_empty() { String::new() } else { format!(" || ' ' || {} || ' ' || {}", sum(0), sum(1)) };
            // Twelve bits of the bucket beside the table's number.
            format!(
                " UNION ALL SELECT {index} * 4096 + bucket, NULL::uuid, NULL::uuid, count(*)::text{which} FROM {table} \
                 WHERE bucket IN ({list}) GROUP BY bucket"
            )
        };
        let counts: String = self.layout.counted().enumerate().map(of_table).collect();
        let told = self.ask(end, format!("({}){counts}", self.asked_for_keys()), &[]).await?;
        let (counts, keys): (Vec<Row>, Vec<Row>) = told.into_iter().partition(|row| matches!(row.get(1), Value::Null));
        let heads = keys.iter().map(head_of).collect::<Result<_, _>>()?;
        let (row_tables, tables) = (self.layout.rows().count(), self.layout.counted().count());
        let counts_of_tables = std::iter::repeat_with(Counts::new).take(tables).collect();
        let mut census = Census { heads: heads_of(heads)?, counts: counts_of_tables, row_tables };
        for row in counts {
            let place = row.count(0)?;
            let table = usize::try_from(place / 4096).ok().and_then(|index| census.counts.get_mut(index));
            if let (Some(table), Ok(bucket)) = (table, u16::try_from(place % 4096)) {
                table.insert(bucket, count_of(&row)?);
            }
        }
        Ok(census)
    }
}

/// Key, bucket, number and stamp.
fn head_of(row: &Row) -> Result<Row, MoveError> {
    let (n, stamp) = row.text(3)?.split_once(' ').unwrap_or((row.text(3)?, ""));
    Ok(Row::new(vec![row.uuid(1)?.into(), row.int(0)?.into(), number_in(n)?.into(), stamp.into()]))
}

fn count_of(row: &Row) -> Result<Count, MoveError> {
    let (rows, which) = row.text(3)?.split_once(' ').map_or((row.text(3)?, None), |(rows, which)| (rows, Some(which)));
    Ok(Count { rows: number_in(rows)?, which: which.map(str::to_owned) })
}

fn number_in(text: &str) -> Result<u64, MoveError> {
    text.parse().map_err(|_| ColumnError { index: 3, wanted: "a number" }.into())
}
