//! Whether both ends say the same, asked once of each while writers wait.

use std::collections::{BTreeMap, HashMap};

use tokio::try_join;

use super::batch::generated;
use super::copy::{Copier, End, Heads, Settled, heads_of};
use super::layout::list_of;
use super::tally::Tally;
use super::{BucketReport, MoveError};
use crate::backend::{Engine, Row, Statement};

/// How many rows of each bucket a table has.
pub(super) type Counts = BTreeMap<u16, u64>;

/// What an end has, in one snapshot.
#[derive(Debug)]
pub(super) struct Census {
    pub(super) heads: Heads,
    /// Of each table that is counted, in the layout's order: those of rows, then those of records.
    pub(super) counts: Vec<Counts>,
}

impl Copier {
    /// Compares both ends as a whole and says how many keys there are and what each bucket came to: every key settled at its
    /// number, every table as long, every record known.
    pub(super) async fn compare(&self, settled: &Settled) -> Result<(u64, Vec<BucketReport>), MoveError> {
        let (here, there) = try_join!(self.census(&self.source), self.census(&self.target))?;
        let mut tallies: BTreeMap<u16, Tally> = self.buckets.iter().map(|it| (it.get(), Tally::default())).collect();
        let surplus = there.heads.iter().filter(|(key, _)| !here.heads.contains_key(key));
        for (key, head) in here.heads.iter().chain(surplus) {
            let is_at = |heads: &Heads, n: u64| heads.get(key).is_some_and(|(_, at)| *at == n);
            let known = settled.keys.get(key).filter(|(_, n, _)| is_at(&here.heads, *n) && is_at(&there.heads, *n));
            let (bucket, _, tally) = known.ok_or(MoveError::Differs { bucket: head.0 })?;
            tallies.entry(bucket.get()).or_default().join(*tally);
        }
        for (given, taken) in here.counts.iter().zip(&there.counts) {
            if given != taken {
                let differs = |it: &&u16| given.get(it) != taken.get(it);
                let bucket = given.keys().chain(taken.keys()).find(differs);
                return Err(self.differs(bucket.copied().unwrap_or(u16::MAX)));
            }
        }
        let records = self.layout.buckets.iter().zip(here.counts.iter().skip(self.layout.rows().count()));
        for (part, counts) in records {
            let known = settled.records.get(part.table);
            if counts.values().sum::<u64>() != known.map_or(0, HashMap::len) as u64 {
                return Err(self.differs(u16::MAX));
            }
            for (bucket, tally) in known.into_iter().flat_map(HashMap::values) {
                tallies.entry(*bucket).or_default().join(*tally);
            }
        }
        let report = |(bucket, tally): (u16, Tally)| BucketReport { bucket, rows: tally.rows, checksum: tally.text() };
        Ok((here.heads.len() as u64, tallies.into_iter().map(report).collect()))
    }

    async fn census(&self, end: &End) -> Result<Census, MoveError> {
        if end.db.engine() == Engine::Postgres {
            return self.collect_census(end).await;
        }
        let mut asked = self.asked_for_heads();
        let heads = asked.len();
        asked.extend(self.layout.counted().map(|table| self.count(table)));
        let mut answers = self.look(end, &asked).await?;
        let counts = answers.split_off(heads);
        let heads = heads_of(answers.into_iter().flatten().collect())?;
        Ok(Census { heads, counts: counts.iter().map(|rows| counts_of(rows)).collect::<Result<_, _>>()? })
    }

    fn count(&self, table: &str) -> Statement {
        let list = list_of(&self.buckets);
        generated(format!("SELECT bucket, COUNT(*) FROM {table} WHERE bucket IN ({list}) GROUP BY bucket"))
    }
}

fn counts_of(rows: &[Row]) -> Result<Counts, MoveError> {
    rows.iter().map(|row| Ok((u16::try_from(row.int(0)?).unwrap_or(u16::MAX), row.count(1)?))).collect()
}
