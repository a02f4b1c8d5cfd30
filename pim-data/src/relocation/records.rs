//! Records that are written once and belong to a bucket, not to a key: their identities tell what is missing.

use std::collections::{BTreeMap, HashMap};

use super::MoveError;
use super::copy::{Copier, End, generated, insert};
use super::layout::{BucketPart, list_of};
use super::tally::Tally;
use crate::backend::{Row, Statement, Value};

/// Records that are read and written together.
const BATCH: usize = 64;

/// Records of one table that are known to be the same at both ends: by the digest of their identity, what they came to.
pub(super) type Known = HashMap<u128, (u16, Tally)>;

impl Copier {
    /// Brings the records of a table to the target that are not known to be there; how many had to be written.
    pub(super) async fn records(&self, part: &BucketPart, known: &mut Known) -> Result<u64, MoveError> {
        let here = self.identities(&self.source, part).await?;
        known.retain(|it, _| here.contains_key(it));
        let missing: Vec<&Vec<Value>> =
            here.iter().filter(|(it, _)| !known.contains_key(it)).map(|(_, it)| it).collect();
        let mut written = 0;
        for some in missing.chunks(BATCH) {
            let (given, had) =
                (self.fetch(&self.source, part, some).await?, self.fetch(&self.target, part, some).await?);
            let differs = |it: &&u128| had.get(it).map(|(_, tally)| tally) != given.get(it).map(|(_, tally)| tally);
            let differing: Vec<u128> = given.keys().filter(differs).copied().collect();
            if !differing.is_empty() {
                let replaced = differing.iter().flat_map(|it| {
                    let (row, _) = &given[it];
                    [delete(part, &here[it]), insert(part.table, &part.columns, row, part.identity.len() + 1)]
                });
                self.change(&self.target, replaced.collect()).await?;
                written += differing.len() as u64;
                let identities: Vec<&Vec<Value>> = differing.iter().map(|it| &here[it]).collect();
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
        if self.count_records(&self.target, part).await? != known.len() as u64 {
            self.drop_surplus(part, known).await?;
        }
        Ok(written)
    }

    /// Removes what the source does not have any more.
    async fn drop_surplus(&self, part: &BucketPart, known: &Known) -> Result<(), MoveError> {
        let there = self.identities(&self.target, part).await?;
        let surplus: Vec<_> = there.iter().filter(|(it, _)| !known.contains_key(it)).map(|(_, it)| it).collect();
        for some in surplus.chunks(BATCH) {
            self.change(&self.target, some.iter().map(|it| delete(part, it)).collect()).await?;
        }
        Ok(())
    }

    /// How many an end has.
    pub(super) async fn count_records(&self, end: &End, part: &BucketPart) -> Result<u64, MoveError> {
        let (table, list) = (part.table, list_of(&self.buckets));
        let asked = [generated(format!("SELECT COUNT(*) FROM {table} WHERE bucket IN ({list})"))];
        let answers = self.look(end, &asked).await?;
        Ok(answers.first().and_then(|rows| rows.first()).map_or(Ok(0), |row| row.count(0))?)
    }

    async fn identities(&self, end: &End, part: &BucketPart) -> Result<BTreeMap<u128, Vec<Value>>, MoveError> {
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
        let text = format!(
            "SELECT {}, bucket, {} FROM {table} WHERE {}",
            identity.join(", "),
            columns.join(", "),
            same(identity)
        );
        let of = |values: &&Vec<Value>| generated(text.clone()).bind_all((*values).iter().cloned());
        let asked: Vec<Statement> = identities.iter().map(of).collect();
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

fn delete(part: &BucketPart, identity: &[Value]) -> Statement {
    generated(format!("DELETE FROM {} WHERE {}", part.table, same(part.identity))).bind_all(identity.iter().cloned())
}

fn same(columns: &[&str]) -> String {
    columns.iter().map(|column| format!("{column} = ?")).collect::<Vec<_>>().join(" AND ")
}
