//! Records that are written once and belong to a bucket, not to a key: their identities tell what is missing.

use std::collections::{BTreeMap, HashMap};

use tokio::try_join;

use super::MoveError;
use super::batch::{self, generated};
use super::copy::{Copier, End};
use super::layout::{BucketPart, list_of};
use super::tally::Tally;
use crate::backend::{Row, Value};

/// Records that are read and written together.
const BATCH: usize = 64;

/// Records of one table that are known to be the same at both ends: by the digest of their identity, what they came to.
pub(super) type Known = HashMap<u128, (u16, Tally)>;

/// Records that an end has: their identities by the digests of these.
type Identities = BTreeMap<u128, Vec<Value>>;

impl Copier {
    /// Brings the records of a table to the target that are not known to be there; how many had to be written.
    pub(super) async fn records(&self, part: &BucketPart, known: &mut Known) -> Result<u64, MoveError> {
        let here = self.identities(&self.source, part).await?;
        known.retain(|it, _| here.contains_key(it));
        if self.count_records(&self.target, part).await? != known.len() as u64 {
            self.look_again(part, &here, known).await?;
        }
        let missing: Vec<&Vec<Value>> =
            here.iter().filter(|(it, _)| !known.contains_key(it)).map(|(_, it)| it).collect();
        let mut written = 0;
        for some in missing.chunks(BATCH) {
            let (given, had) = try_join!(self.fetch(&self.source, part, some), self.fetch(&self.target, part, some))?;
            let differs = |it: &&u128| had.get(it).map(|(_, tally)| tally) != given.get(it).map(|(_, tally)| tally);
            let differing: Vec<u128> = given.keys().filter(differs).copied().collect();
            if !differing.is_empty() {
                let identities: Vec<&Vec<Value>> = differing.iter().map(|it| &here[it]).collect();
                let rows: Vec<&Row> = differing.iter().map(|it| &given[it].0).collect();
                let engine = self.target.db.engine();
                let mut replaced = batch::drop_records(engine, part.table, part.identity, &identities);
                let first = part.identity.len() + 1;
                replaced.extend(batch::insert(engine, part.table, &part.columns, &rows, first));
                self.bring(replaced).await?;
                written += differing.len() as u64;
                let copied = self.fetch(&self.target, part, &identities).await?;
                let is_same = |it: &u128| copied.get(it).map(|(_, tally)| tally) == Some(&given[it].1);
                if let Some(it) = differing.iter().find(|it| !is_same(it)) {
                    return Err(self.differs(bucket_of(&given[it].0, part)?));
                }
            }
            for (it, (row, tally)) in &given {
                known.insert(*it, (bucket_of(row, part)?, *tally));
            }
        }
        Ok(written)
    }

    /// Removes what the source does not have any more, and forgets what the target does not: its own sweep may have taken that.
    async fn look_again(&self, part: &BucketPart, here: &Identities, known: &mut Known) -> Result<(), MoveError> {
        let there = self.identities(&self.target, part).await?;
        known.retain(|it, _| there.contains_key(it));
        let surplus: Vec<&Vec<Value>> =
            there.iter().filter(|(it, _)| !here.contains_key(it)).map(|(_, it)| it).collect();
        for some in surplus.chunks(BATCH) {
            let dropped = batch::drop_records(self.target.db.engine(), part.table, part.identity, some);
            self.bring(dropped).await?;
        }
        Ok(())
    }

    /// How many an end has.
    async fn count_records(&self, end: &End, part: &BucketPart) -> Result<u64, MoveError> {
        let (table, list) = (part.table, list_of(&self.buckets));
        let asked = [generated(format!("SELECT COUNT(*) FROM {table} WHERE bucket IN ({list})"))];
        let answers = self.look(end, &asked).await?;
        Ok(answers.first().and_then(|rows| rows.first()).map_or(Ok(0), |row| row.count(0))?)
    }

    async fn identities(&self, end: &End, part: &BucketPart) -> Result<Identities, MoveError> {
        let (columns, table, list) = (part.identity.join(", "), part.table, list_of(&self.buckets));
        let asked = [generated(format!("SELECT {columns} FROM {table} WHERE bucket IN ({list})"))];
        let answers = self.look(end, &asked).await?;
        let identity = |row: &Row| {
            let values = (0..row.len()).map(|index| row.get(index).clone()).collect();
            (digest(row, row.len()), values)
        };
        Ok(answers.iter().flatten().map(identity).collect())
    }

    /// Whole records by identity; each row begins with the identity and the bucket.
    async fn fetch(
        &self,
        end: &End,
        part: &BucketPart,
        identities: &[&Vec<Value>],
    ) -> Result<HashMap<u128, (Row, Tally)>, MoveError> {
        let BucketPart { table, columns, identity } = part;
        let what = format!("{}, bucket, {}", identity.join(", "), columns.join(", "));
        let asked = batch::fetch(end.db.engine(), &what, table, identity, identities);
        let answers = self.look(end, &asked).await?;
        let whole = |row: Row| {
            let mut tally = Tally::default();
            tally.add(table, &row, identity.len() + 1);
            (digest(&row, identity.len()), (row, tally))
        };
        Ok(answers.into_iter().flatten().map(whole).collect())
    }
}

fn digest(row: &Row, columns: usize) -> u128 {
    let mut tally = Tally::default();
    tally.add_first("", row, columns);
    tally.sum
}

fn bucket_of(row: &Row, part: &BucketPart) -> Result<u16, MoveError> {
    Ok(u16::try_from(row.int(part.identity.len())?).unwrap_or(u16::MAX))
}
