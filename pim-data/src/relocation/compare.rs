//! Whether both ends say the same, asked once of each while writers wait.

use std::collections::{BTreeMap, HashMap};

use tokio::try_join;

use super::batch::generated;
use super::copy::{Copier, End, Heads, Settled, SettledKey, heads_of};
use super::layout::list_of;
use super::tally::Tally;
use super::{BucketReport, MoveError};
use crate::backend::{Engine, Row, Statement};

/// What a table has of a bucket.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) rows: u64,
    /// Which records these are, order-free, where an end tells that.
    pub(super) which: Option<String>,
}

/// What a table has of each bucket.
pub(super) type Counts = BTreeMap<u16, Count>;

/// What an end has, in one snapshot.
#[derive(Debug)]
pub(super) struct Census {
    pub(super) heads: Heads,
    /// Of each table that is counted, in the layout's order: those of rows, then those of records.
    pub(super) counts: Vec<Counts>,
    /// How many of those are of rows.
    pub(super) row_tables: usize,
}

impl Census {
    fn records(&self) -> &[Counts] {
        self.counts.get(self.row_tables..).unwrap_or_default()
    }
}

/// What both ends have, asked at about the same time.
#[derive(Debug)]
pub(super) struct Ends {
    here: Census,
    there: Census,
}

impl Ends {
    pub(super) const fn heads(&self) -> (&Heads, &Heads) {
        (&self.here.heads, &self.there.heads)
    }

    /// Whether an exchange of one record for another would be seen.
    pub(super) fn tell_which_records(&self) -> bool {
        self.here.records().iter().flat_map(BTreeMap::values).all(|count| count.which.is_some())
    }
}

/// What both ends have come to: how many keys, and each bucket.
pub(super) type Agreed = (u64, Vec<BucketReport>);

impl Copier {
    pub(super) async fn survey(&self) -> Result<Ends, MoveError> {
        let (here, there) = try_join!(self.census(&self.source), self.census(&self.target))?;
        Ok(Ends { here, there })
    }

    /// Compares both ends as a whole and says how many keys there are and what each bucket came to: every key settled where it
    /// stands, every table as long, every record known.
    pub(super) fn compare(&self, Ends { here, there }: &Ends, settled: &Settled) -> Result<Agreed, MoveError> {
        let mut tallies: BTreeMap<u16, Tally> = self.buckets.iter().map(|it| (it.get(), Tally::default())).collect();
        let surplus = there.heads.iter().filter(|(key, _)| !here.heads.contains_key(key));
        for (key, head) in here.heads.iter().chain(surplus) {
            let is_still = |it: &&SettledKey| it.is_still(here.heads.get(key), there.heads.get(key));
            let known = settled.keys.get(key).filter(is_still).ok_or(MoveError::Differs { bucket: head.bucket })?;
            tallies.entry(head.bucket.get()).or_default().join(known.tally);
        }
        for (given, taken) in here.counts.iter().zip(&there.counts) {
            if given != taken {
                let differs = |it: &&u16| given.get(it) != taken.get(it);
                let bucket = given.keys().chain(taken.keys()).find(differs);
                return Err(self.differs(bucket.copied().unwrap_or(u16::MAX)));
            }
        }
        for (part, counts) in self.layout.buckets.iter().zip(here.records()) {
            let known = settled.records.get(part.table);
            if counts.values().map(|count| count.rows).sum::<u64>() != known.map_or(0, HashMap::len) as u64 {
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
        asked.extend(self.layout.counted().map(|(table, _)| self.count(table)));
        let mut answers = self.look(end, &asked).await?;
        let counts = answers.split_off(heads);
        let heads = heads_of(answers.into_iter().flatten().collect())?;
        let counts = counts.iter().map(|rows| counts_of(rows)).collect::<Result<_, _>>()?;
        Ok(Census { heads, counts, row_tables: self.layout.rows().count() })
    }

    fn count(&self, table: &str) -> Statement {
        let list = list_of(&self.buckets);
        generated(format!("SELECT bucket, COUNT(*) FROM {table} WHERE bucket IN ({list}) GROUP BY bucket"))
    }
}

fn counts_of(rows: &[Row]) -> Result<Counts, MoveError> {
    let count = |row: &Row| {
        let count = Count { rows: row.count(1)?, which: None };
        Ok((u16::try_from(row.int(0)?).unwrap_or(u16::MAX), count))
    };
    rows.iter().map(count).collect()
}
