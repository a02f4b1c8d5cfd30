//! Copying keys between two shards until both say the same, whatever is written meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pim_core::shard::{Bucket, ShardId};
use tokio::try_join;
use uuid::Uuid;

use super::MoveError;
use super::batch::{self, generated};
use super::compare::Agreed;
use super::layout::{KeyPart, Layout, Role, list_of};
use super::records::Known;
use super::stamp::Stamp;
use super::tally::Tally;
use crate::backend::{ColumnError, Db, DbError, Engine, Row, Statement, Value};

/// Keys that are read and written together.
const KEYS_PER_BATCH: usize = 16;

/// One end of a move.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) shard: ShardId,
    pub(super) db: Db,
}

/// Where a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) bucket: Bucket,
    /// Zero for rows without a number, which only hand-typed SQL makes.
    pub(super) n: u64,
    pub(super) stamp: Stamp,
}

/// Each key and where it stands.
pub(super) type Heads = BTreeMap<Uuid, Head>;

/// A key when it was the same at both ends, as the source told it, and what it came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct SettledKey {
    head: Head,
    pub(super) tally: Tally,
}

impl SettledKey {
    /// Whether both ends are where they were; the stamps of two servers cannot be compared.
    pub(super) fn is_still(&self, here: Option<&Head>, there: Option<&Head>) -> bool {
        here == Some(&self.head) && there.is_some_and(|there| there.n == self.head.n)
    }
}

/// What is known to be the same at both ends: for each key its number then and what it came to, and every record.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub(super) keys: HashMap<Uuid, SettledKey>,
    pub(super) records: HashMap<&'static str, Known>,
}

/// Copies some buckets from one shard to another.
#[derive(Clone, Debug)]
pub(super) struct Copier {
    pub(super) layout: Layout,
    pub(super) source: End,
    pub(super) target: End,
    pub(super) buckets: Vec<Bucket>,
}

/// What is replaced together: a row with its past, or a key's part of another table. Its group, its id, its key.
pub(super) type Piece = (usize, Uuid, Uuid);

/// Everything that some keys have in a shard.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    found: BTreeMap<Piece, (Vec<(usize, Row)>, Tally)>,
    /// Of keys that have rows, where the engine has stamps.
    stamps: HashMap<Uuid, Stamp>,
}

impl Pieces {
    fn tally(&self, piece: &Piece) -> Tally {
        self.found.get(piece).map(|(_, tally)| *tally).unwrap_or_default()
    }

    pub(super) fn add(&mut self, piece: Piece, index: usize, table: &str, row: Row) {
        let (rows, tally) = self.found.entry(piece).or_default();
        tally.add(table, &row, 1);
        rows.push((index, row));
    }

    pub(super) fn stamp(&mut self, key: Uuid, stamp: Stamp) {
        self.stamps.insert(key, stamp);
    }

    /// Whether a piece has its row, and not a past alone: the row's table comes before that of its history.
    fn has_row(&self, piece: &Piece) -> bool {
        self.found.get(piece).is_some_and(|(rows, _)| rows.iter().any(|(index, _)| *index == piece.0))
    }

    fn of_key(&self, key: Uuid) -> Tally {
        let mut all = Tally::default();
        self.found.iter().filter(|((_, _, of), _)| *of == key).for_each(|(_, (_, tally))| all.join(*tally));
        all
    }
}

/// Keys by rows of key, bucket, number and stamp. A key may have two: one with its number, one of its rows.
pub(super) fn heads_of(rows: Vec<Row>) -> Result<Heads, MoveError> {
    let mut heads = Heads::new();
    for row in rows {
        let bucket = u16::try_from(row.int(1)?).ok().and_then(|number| Bucket::new(number).ok());
        let bucket = bucket.ok_or(ColumnError { index: 1, wanted: "a bucket" })?;
        let (n, stamp) = (row.count(2)?, Stamp::of(row.text(3)?));
        let known = heads.entry(row.uuid(0)?).or_insert(Head { bucket, n, stamp });
        known.n = known.n.max(n);
        known.stamp = known.stamp.max(stamp);
    }
    Ok(heads)
}

impl Copier {
    /// Brings every key that is not settled at its present number, and every missing record, to the target; how many keys
    /// had to be written.
    ///
    /// What this library writes of a key changes only together with its number, and what somebody typed changes the stamp of its
    /// rows: where both stand still nothing has to be read.
    pub(super) async fn pass(&self, settled: &mut Settled) -> Result<u64, MoveError> {
        let heads = try_join!(self.heads(&self.source), self.heads(&self.target))?;
        self.bring_over((&heads.0, &heads.1), settled).await
    }

    /// The last pass, while nobody writes: how many keys had to be written, and what both ends came to.
    ///
    /// Mostly nothing has changed since the pass before, and writers wait: it is looked first whether anything has.
    pub(super) async fn finish(&self, settled: &mut Settled) -> Result<(u64, Agreed), MoveError> {
        let ends = self.survey().await?;
        if ends.tell_which_records()
            && let Ok(agreed) = self.compare(&ends, settled)
        {
            return Ok((0, agreed));
        }
        let copied = self.bring_over(ends.heads(), settled).await?;
        Ok((copied, self.compare(&self.survey().await?, settled)?))
    }

    async fn bring_over(&self, heads: (&Heads, &Heads), settled: &mut Settled) -> Result<u64, MoveError> {
        let copied = self.keys(heads, &mut settled.keys).await?;
        for part in &self.layout.buckets {
            self.records(part, settled.records.entry(part.table).or_default()).await?;
        }
        Ok(copied)
    }

    async fn keys(
        &self,
        (here, there): (&Heads, &Heads),
        settled: &mut HashMap<Uuid, SettledKey>,
    ) -> Result<u64, MoveError> {
        let gone: Vec<Uuid> = there.keys().filter(|key| !here.contains_key(key)).copied().collect();
        for some in gone.chunks(KEYS_PER_BATCH) {
            self.bring(self.remove(self.target.db.engine(), some)).await?;
        }
        settled.retain(|key, _| here.contains_key(key));
        let is_settled = |key: &Uuid| settled.get(key).is_some_and(|it| it.is_still(here.get(key), there.get(key)));
        let open: Vec<Uuid> = here.keys().filter(|key| !is_settled(key)).copied().collect();
        let mut copied = 0;
        for some in open.chunks(KEYS_PER_BATCH) {
            copied += self.settle(some, here, settled).await?;
        }
        Ok(copied)
    }

    /// Makes some keys the same at both ends and checks by reading back; how many had to be written.
    async fn settle(
        &self,
        keys: &[Uuid],
        heads: &Heads,
        settled: &mut HashMap<Uuid, SettledKey>,
    ) -> Result<u64, MoveError> {
        let (given, had) = try_join!(self.read(&self.source, keys), self.read(&self.target, keys))?;
        let all: BTreeSet<&Piece> = given.found.keys().chain(had.found.keys()).collect();
        let differing: Vec<Piece> =
            all.into_iter().filter(|piece| given.tally(piece) != had.tally(piece)).copied().collect();
        let touched: BTreeSet<Uuid> = differing.iter().map(|(_, _, key)| *key).collect();
        if !differing.is_empty() {
            self.write(&differing, &given).await?;
            let touched: Vec<Uuid> = touched.iter().copied().collect();
            let copied = self.read(&self.target, &touched).await?;
            if let Some(key) = touched.iter().find(|key| copied.of_key(**key) != given.of_key(**key)) {
                return Err(MoveError::Differs { bucket: heads[key].bucket });
            }
        }
        for key in keys {
            let stamp = given.stamps.get(key).copied().unwrap_or_default();
            let head = Head { bucket: heads[key].bucket, n: self.number(&given, *key)?, stamp };
            settled.insert(*key, SettledKey { head, tally: given.of_key(*key) });
        }
        Ok(touched.len() as u64)
    }

    /// The number that was read together with the rows.
    fn number(&self, pieces: &Pieces, key: Uuid) -> Result<u64, MoveError> {
        let head = self.layout.keys.iter().find(|part| part.table == "key_head").map_or(0, |part| part.group);
        let found = pieces.found.get(&(head, Uuid::nil(), key)).and_then(|(rows, _)| rows.first());
        let Some((_, row)) = found else { return Ok(0) };
        if let Value::Json(whole) = row.get(1) {
            let whole: serde_json::Value = serde_json::from_str(whole).unwrap_or_default();
            return whole["n"].as_u64().ok_or_else(|| ColumnError { index: 1, wanted: "a head" }.into());
        }
        Ok(row.count(3)?)
    }

    /// Every key of the buckets: those with a number, and those that have rows without one.
    async fn heads(&self, end: &End) -> Result<Heads, MoveError> {
        heads_of(match end.db.engine() {
            Engine::Postgres => self.collect_heads(end).await?,
            Engine::Sqlite => self.look(end, &self.asked_for_heads()).await?.into_iter().flatten().collect(),
        })
    }

    /// Questions to the embedded engine that [`heads_of`] understands the answers of.
    pub(super) fn asked_for_heads(&self) -> Vec<Statement> {
        let list = list_of(&self.buckets);
        let mut asked = vec![generated(format!("SELECT key, bucket, n, '' FROM key_head WHERE bucket IN ({list})"))];
        asked.extend(self.layout.rows().map(|part| {
            generated(format!("SELECT DISTINCT home_key, bucket, 0, '' FROM {} WHERE bucket IN ({list})", part.table))
        }));
        asked
    }

    /// Everything of some keys, in one snapshot.
    async fn read(&self, end: &End, keys: &[Uuid]) -> Result<Pieces, MoveError> {
        if end.db.engine() == Engine::Postgres {
            return self.collect(end, keys).await;
        }
        let of_part = |part: &KeyPart| {
            let KeyPart { table, key, columns, order, .. } = part;
            let what = format!("{key}, {}", columns.join(", "));
            batch::select(end.db.engine(), &what, table, (key, keys), order)
        };
        let asked: Vec<_> = self.layout.keys.iter().map(of_part).collect();
        let answers = self.look(end, &asked).await?;
        let mut pieces = Pieces::default();
        for (index, rows) in answers.into_iter().enumerate() {
            let part = &self.layout.keys[index];
            for row in rows {
                let id = if part.role == Role::Plain { Uuid::nil() } else { row.uuid(1)? };
                pieces.add((part.group, id, row.uuid(0)?), index, &part.table, row);
            }
        }
        Ok(pieces)
    }

    /// Replaces some pieces at the target; those that are not given are removed.
    async fn write(&self, pieces: &[Piece], given: &Pieces) -> Result<(), MoveError> {
        let engine = self.target.db.engine();
        let parts = |role: Role| self.layout.keys.iter().enumerate().filter(move |(_, part)| part.role == role);
        let delete = |part: &KeyPart| {
            let (column, is_row) = if part.role == Role::Plain { (part.key.as_str(), false) } else { ("id", true) };
            let of_part = pieces.iter().filter(|(group, ..)| *group == part.group);
            // On a server a row that stays is written over.
            let stays = |piece: &Piece| engine == Engine::Postgres && part.role == Role::Row && given.has_row(piece);
            let of_part = of_part.filter(|piece| !stays(piece));
            let ids: Vec<Uuid> = of_part.map(|(_, id, key)| if is_row { *id } else { *key }).collect();
            if ids.is_empty() { Vec::new() } else { batch::remove(engine, &part.table, column, &ids) }
        };
        let insert = |(index, part): (usize, &KeyPart)| {
            let rows = pieces.iter().filter_map(|piece| given.found.get(piece)).flat_map(|(rows, _)| rows);
            let rows: Vec<&Row> = rows.filter(|(of, _)| *of == index).map(|(_, row)| row).collect();
            match (engine, part.role) {
                (Engine::Postgres, Role::Row) => batch::overwrite(&part.table, &part.columns, &rows, 1),
                _ => batch::insert(engine, &part.table, &part.columns, &rows, 1),
            }
        };
        let mut statements: Vec<Statement> = Vec::new();
        // What refers to others goes first and comes last.
        statements.extend(self.layout.rows().rev().flat_map(delete));
        statements.extend(parts(Role::Plain).flat_map(|(_, part)| delete(part)));
        statements.extend(parts(Role::Row).flat_map(insert));
        // The rows' own triggers have just written a history that tells of the copying.
        statements.extend(parts(Role::History).flat_map(|(_, part)| delete(part)));
        statements.extend(parts(Role::History).flat_map(insert));
        statements.extend(parts(Role::Plain).flat_map(insert));
        self.bring(statements).await
    }

    /// Removes everything of some keys.
    fn remove(&self, engine: Engine, keys: &[Uuid]) -> Vec<Statement> {
        let rows = self.layout.rows().rev();
        let rest = self.layout.keys.iter().filter(|part| part.role != Role::Row);
        rows.chain(rest).flat_map(|part| batch::remove(engine, &part.table, &part.key, keys)).collect()
    }

    /// The bucket by its number, or the first when that is none of the move's.
    pub(super) fn differs(&self, bucket: u16) -> MoveError {
        let found = self.buckets.iter().find(|it| it.get() == bucket);
        MoveError::Differs { bucket: *found.unwrap_or(&self.buckets[0]) }
    }

    /// As it is, of some of the buckets.
    pub(super) fn only(&self, buckets: Vec<Bucket>) -> Self {
        Self { buckets, ..self.clone() }
    }

    /// Removes what an end has of the buckets, in transactions of bounded size. Each makes sure that the end does not own
    /// them: `state` is what it must say of every one.
    pub(super) async fn clear(&self, end: &End, state: &'static str) -> Result<(), MoveError> {
        let keys: Vec<Uuid> = self.heads(end).await?.into_keys().collect();
        let list = list_of(&self.buckets);
        let guard = self.require(end, state);
        for some in keys.chunks(KEYS_PER_BATCH) {
            let mut statements = vec![guard.clone()];
            statements.extend(self.remove(end.db.engine(), some));
            self.change(end, statements).await?;
        }
        let mut statements = vec![guard];
        statements.extend(
            self.layout
                .buckets
                .iter()
                .map(|part| generated(format!("DELETE FROM {} WHERE bucket IN ({list})", part.table))),
        );
        self.change(end, statements).await
    }

    /// Fails the transaction unless the end says this of every bucket, and keeps it so until the transaction ends.
    fn require(&self, end: &End, state: &'static str) -> Statement {
        let list = list_of(&self.buckets);
        if end.db.engine() == Engine::Postgres {
            return generated(format!("SELECT pim_require('[{list}]', '{state}')"));
        }
        generated(format!(
            "INSERT INTO pim_guard (broken) SELECT 'owned' WHERE EXISTS \
             (SELECT 1 FROM pim_bucket_owned WHERE bucket IN ({list}) AND state <> '{state}')"
        ))
    }

    /// Asks what needs no scope.
    pub(super) async fn look(&self, end: &End, asked: &[Statement]) -> Result<Vec<Vec<Row>>, MoveError> {
        let looked = async {
            match asked {
                [one] => Ok(vec![end.db.query(one.clone()).await?]),
                several => end.db.read().await?.snapshot(several).await,
            }
        };
        looked.await.map_err(|source| MoveError::Shard { shard: end.shard, source })
    }

    /// Changes the target, as long as it is one. A call whose caller is gone goes on, and might begin when the map has changed.
    pub(super) async fn bring(&self, mut statements: Vec<Statement>) -> Result<(), MoveError> {
        statements.insert(0, self.require(&self.target, "incoming"));
        self.change(&self.target, statements).await
    }

    async fn change(&self, end: &End, statements: Vec<Statement>) -> Result<(), MoveError> {
        let changed = async {
            if end.db.engine() == Engine::Postgres {
                return end.db.query(batch::together(statements)).await.map(drop);
            }
            let mut tx = end.db.begin().await?;
            // A row may refer to one that comes later.
            tx.script("PRAGMA defer_foreign_keys = ON").await?;
            tx.commit_with(statements).await.map(drop)
        };
        changed.await.map_err(|source: DbError| MoveError::Shard { shard: end.shard, source })
    }
}
