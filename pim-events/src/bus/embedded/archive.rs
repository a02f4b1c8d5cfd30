//! The archive: what every consumer has passed and is old leaves the live file in segments, and is still read by offset.
//!
//! A segment is a file of its own, complete and synced before the live log names it; only then do the records behind it go.
//! A crash in between leaves a file that the next attempt completes, or records that the next sweep removes. A file that has
//! other records is of another life of the log, of which a copy was put back: it stays as it is, and the segment gets another name.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use pim_core::clock::Timestamp;
use pim_data::backend::{Db, DbError, DbSettings, Row, SqlPair, Statement};

use super::{BusError, EmbeddedBus, Inner, Log, first_offset, records_from};
use crate::pace::GoesOn;

/// Most segments that are held open for reading.
const OPEN_MAX: usize = 4;
/// Most segments of one log that one sweep makes.
const SEGMENTS_PER_SWEEP_MAX: usize = 16;
/// Most files of other lives of a log that one of its segments goes round.
const LEFTOVERS_MAX: usize = 100;
/// Readers of one segment.
const READERS_MAX: usize = 4;

const SEGMENT_SCHEMA: &str = "CREATE TABLE IF NOT EXISTS bus_record (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL, at INTEGER NOT NULL, headers TEXT NOT NULL, payload TEXT NOT NULL
);";

/// What stays in the live file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    /// Everything that some consumer has not read: from this offset on.
    pub(crate) passed: u64,
    /// Everything taken at or after this instant, unless there is too much.
    pub(crate) since: Timestamp,
    /// What is too much: records of one partition.
    pub(crate) records_max: u64,
    /// Records of one segment; fewer never leave.
    pub(crate) segment_records: u64,
    /// Rows that one transaction moves or removes.
    pub(crate) batch_max: usize,
}

/// The folder of segments, and those that are open.
#[derive(Debug)]
pub(super) struct Archive {
    folder: PathBuf,
    open: Mutex<Vec<(String, Db)>>,
}

impl Archive {
    /// The archive of a log file: `bus.db` has `bus.archive` beside it.
    pub(super) fn beside(log: &Path) -> Self {
        Self { folder: log.with_extension("archive"), open: Mutex::default() }
    }

    fn opened(&self) -> std::sync::MutexGuard<'_, Vec<(String, Db)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A segment for reading; `None` when its file is gone.
    async fn segment(&self, file: &str) -> Result<Option<Db>, DbError> {
        let path = self.folder.join(file);
        // An open file that somebody has moved away would answer still, but not after a restart: better told now.
        if !path.is_file() {
            self.opened().retain(|(name, _)| name != file);
            return Ok(None);
        }
        if let Some((_, db)) = self.opened().iter().find(|(name, _)| name == file) {
            return Ok(Some(db.clone()));
        }
        let db = Db::open(&path, DbSettings { readers_max: READERS_MAX, ..DbSettings::default() }).await?;
        let mut open = self.opened();
        open.insert(0, (file.to_owned(), db.clone()));
        open.truncate(OPEN_MAX);
        Ok(Some(db))
    }

    /// A segment for writing, made unless an earlier attempt has.
    async fn begin(&self, file: &str) -> Result<Db, BusError> {
        std::fs::create_dir_all(&self.folder).map_err(BusError::Folder)?;
        let db = Db::open(&self.folder.join(file), DbSettings { readers_max: 1, ..DbSettings::default() }).await?;
        let mut tx = db.begin().await?;
        tx.script(SEGMENT_SCHEMA).await?;
        tx.commit().await?;
        Ok(db)
    }
}

/// What a file has of the records that it is to have.
enum Filled {
    /// All of them.
    Whole,
    /// Others in their place.
    Otherwise,
    /// Those before this offset. The live file does not have the next one: another sweeper was faster, or it is damaged.
    Upto(u64),
    /// Some of them: it was not to go on.
    Begun,
}

impl Inner {
    /// Records from `offset` on, when that offset is in the archive.
    pub(super) async fn archived(
        &self,
        log: &Log,
        (partition, offset): (u16, u64),
        max: usize,
    ) -> Result<Option<Vec<Row>>, BusError> {
        let asked = Statement::sqlite(
            "SELECT file, next_offset FROM bus_segment WHERE log = ? AND first_offset <= ? AND next_offset > ?",
        );
        let rows = self.db.query(asked.bind(log.id).bind(offset).bind(offset)).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        // What a file may have behind the end of its segment is not of it.
        let left = row.count(1).map_err(DbError::from)? - offset;
        let max = usize::try_from(left).unwrap_or(usize::MAX).min(max);
        let file = row.text(0).map_err(DbError::from)?;
        let Some(segment) = self.archive.segment(file).await? else {
            return Err(BusError::SegmentMissing { partition, offset, file: file.to_owned() });
        };
        let rows = segment.query(records_from(log, offset, max)).await?;
        if first_offset(rows.first())? != Some(offset) {
            return Err(BusError::Corrupt { partition, offset });
        }
        Ok(Some(rows))
    }

    /// The first offset that the archive does not have.
    async fn archived_upto(&self, log: &Log) -> Result<u64, DbError> {
        let asked =
            Statement::sqlite("SELECT coalesce(max(next_offset), 0) FROM bus_segment WHERE log = ?").bind(log.id);
        Ok(self.db.query(asked).await?.first().map_or(Ok(0), |row| row.count(0))?)
    }

    /// Whether the segment [first, next) may leave the live file.
    async fn may_leave(&self, log: &Log, (first, next): (u64, u64), keep: &Keep) -> Result<bool, DbError> {
        if next > keep.passed {
            return Ok(false);
        }
        let last = Statement::sqlite("SELECT at FROM bus_record WHERE id = ?").bind(log.record_id(next - 1));
        let end = Statement::sqlite("SELECT next_offset FROM bus_log WHERE id = ?").bind(log.id);
        let (last, end) = (self.db.query(last).await?, self.db.query(end).await?);
        let (Some(last), Some(end)) = (last.first(), end.first()) else { return Ok(false) };
        Ok(last.time(0)? < keep.since || end.count(0)?.saturating_sub(first) > keep.records_max)
    }

    /// Copies [first, next) into a file, and names it in the log once it is complete there.
    async fn seal(
        &self,
        log: &Log,
        (first, next): (u64, u64),
        batch_max: usize,
        goes_on: GoesOn<'_>,
    ) -> Result<(), BusError> {
        let mut names = (0..=LEFTOVERS_MAX).map(|round| match round {
            0 => format!("{}-{first:013}.db", log.id),
            round => format!("{}-{first:013}-{round}.db", log.id),
        });
        let file = loop {
            let file = names.next().ok_or(BusError::Corrupt { partition: log.part, offset: first })?;
            match self.fill(&file, log, (first, next), batch_max, goes_on).await? {
                Filled::Whole => break file,
                Filled::Begun => return Ok(()),
                Filled::Otherwise => {}
                Filled::Upto(_) if self.archived_upto(log).await? > first => return Ok(()),
                Filled::Upto(offset) => return Err(BusError::Corrupt { partition: log.part, offset }),
            }
        };
        // Another sweeper that was faster has written the very same records.
        let name = Statement::sqlite(
            "INSERT INTO bus_segment (log, first_offset, next_offset, file, at) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT DO NOTHING",
        );
        let name = name.bind(log.id).bind(first).bind(next).bind(file.as_str()).bind(self.clock.now());
        let tx = self.db.begin().await?;
        tx.commit_with(vec![name]).await?;
        Ok(())
    }

    /// Copies [first, next) into this file, as far as it is not there yet.
    async fn fill(
        &self,
        file: &str,
        log: &Log,
        (first, next): (u64, u64),
        batch_max: usize,
        goes_on: GoesOn<'_>,
    ) -> Result<Filled, BusError> {
        let segment = self.archive.begin(file).await?;
        let mut at = first;
        while at < next {
            if !goes_on() {
                return Ok(Filled::Begun);
            }
            let wanted = usize::try_from(next - at).unwrap_or(usize::MAX).min(batch_max);
            let rows = self.db.query(records_from(log, at, wanted)).await?;
            let ends = (first_offset(rows.first())?, first_offset(rows.last())?);
            let end = at + rows.len() as u64;
            if ends != (Some(at), end.checked_sub(1)) || end > next {
                return Ok(Filled::Upto(at));
            }
            let row = "(?, ?, ?, ?, ?)";
            let text = format!(
                "INSERT INTO bus_record (id, key, at, headers, payload) VALUES {} ON CONFLICT DO NOTHING",
                vec![row; rows.len()].join(", ")
            );
            let values = rows.iter().flat_map(|row| (0..row.len()).map(|index| row.get(index).clone()));
            let mut tx = segment.begin().await?;
            tx.query(Statement::of(SqlPair::generated(text)).bind_all(values)).await?;
            if tx.query(records_from(log, at, rows.len())).await? != rows {
                tx.rollback().await?;
                return Ok(Filled::Otherwise);
            }
            tx.commit().await?;
            at = end;
        }
        Ok(Filled::Whole)
    }

    /// Removes from the live file what the archive has, oldest first; answers how many records went.
    async fn remove(&self, log: &Log, upto: u64, batch_max: usize, goes_on: GoesOn<'_>) -> Result<u64, DbError> {
        let mut removed = 0;
        // Bounded by the records before `upto`, of which each turn removes some.
        while goes_on() {
            let text = format!(
                "DELETE FROM bus_record WHERE id IN
                 (SELECT id FROM bus_record WHERE id >= ? AND id < ? ORDER BY id LIMIT {batch_max}) RETURNING 1"
            );
            let remove = Statement::of(SqlPair::generated(text)).bind(log.record_id(0)).bind(log.record_id(upto));
            let (tx, answers) = self.db.begin_with(&[remove]).await?;
            tx.commit().await?;
            match answers.first().map_or(0, Vec::len) {
                0 => return Ok(removed),
                some => removed += some as u64,
            }
            // Publishers that wait for the writer come first.
            tokio::task::yield_now().await;
        }
        Ok(removed)
    }
}

impl EmbeddedBus {
    /// Moves whole segments of one partition to the archive, as long as it is to go on; answers how many records left the live
    /// file.
    pub(crate) async fn archive(
        &self,
        topic: &str,
        partition: u16,
        keep: &Keep,
        goes_on: GoesOn<'_>,
    ) -> Result<u64, BusError> {
        let log = self.log(topic, partition)?;
        let mut upto = self.0.archived_upto(log).await?;
        for _ in (0..SEGMENTS_PER_SWEEP_MAX).take_while(|_| goes_on()) {
            let segment = (upto, upto + keep.segment_records);
            if !self.0.may_leave(log, segment, keep).await? {
                break;
            }
            self.0.seal(log, segment, keep.batch_max, goes_on).await?;
            // Another sweeper, by other settings, may have named less.
            upto = self.0.archived_upto(log).await?;
        }
        Ok(self.0.remove(log, upto, keep.batch_max, goes_on).await?)
    }

    /// Every topic with its number of partitions.
    pub(crate) fn topics(&self) -> impl Iterator<Item = (&str, u16)> {
        self.0.topics.iter().map(|(topic, logs)| (topic.as_str(), u16::try_from(logs.len()).unwrap_or(u16::MAX)))
    }
}
