//! The rows of the control database that say which moves there are and how far each has come.

use pim_core::clock::Timestamp;
use pim_core::context::RequestContext;
use pim_core::role::ClosedEnum as _;
use pim_core::shard::{Bucket, ShardId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::MoveError;
use crate::backend::{Db, DbError, Engine, Row, SqlPair, Statement, Value};

pim_core::closed_enum! {
    /// How far a move has come.
    pub enum MoveStep {
        /// Written down; nothing has been done.
        Planned = "planned",
        /// Rows are being copied; the source takes writes.
        Copying = "copying",
        /// The source refuses writes of the buckets.
        Fenced = "fenced",
        /// The new map is being published; there is no way back but another move.
        Activating = "activating",
        /// The target takes writes; the source still has its copy.
        Activated = "activated",
        /// The source's copy is gone.
        Done = "done",
        /// It was given up before the map changed.
        Cancelled = "cancelled",
    }
}

impl MoveStep {
    /// Its stable text form.
    #[must_use]
    pub fn text(self) -> &'static str {
        self.name()
    }

    /// Whether nothing is left to be done.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled)
    }

    /// Whether the buckets may take no writes.
    pub(super) const fn is_shut(self) -> bool {
        matches!(self, Self::Fenced | Self::Activating)
    }
}

impl Serialize for MoveStep {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

/// What a move has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct MoveReport {
    /// Home keys.
    pub keys: u64,
    /// Rows at both ends, all tables together.
    pub rows: u64,
    /// How often all keys were looked at.
    pub passes: u32,
    /// Keys that were written, some of them more than once because they changed meanwhile.
    pub keys_copied: u64,
    /// Of these, how many while the source was fenced.
    pub keys_copied_fenced: u64,
    /// How long writers of the buckets had to wait at most, in microseconds: from the fence to the map.
    pub paused_us: u64,
    /// What each bucket came to, the same at both ends.
    pub buckets: Vec<BucketReport>,
}

/// What one bucket came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BucketReport {
    /// Which.
    pub bucket: u16,
    /// Rows.
    pub rows: u64,
    /// Sum of the rows' digests, in hexadecimal: the same for the same rows in any order.
    pub checksum: String,
}

/// A move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MoveRecord {
    /// Which move.
    pub id: Uuid,
    /// What moves.
    pub buckets: Vec<Bucket>,
    /// From where.
    pub source: ShardId,
    /// To where.
    pub target: ShardId,
    /// How far it has come.
    pub step: MoveStep,
    /// The version of the map that gives the buckets to the target; zero until that is known.
    pub map_version: u64,
    /// The move that this one takes back.
    pub reverses: Option<Uuid>,
    /// What it has done so far.
    pub report: MoveReport,
    /// When it was planned.
    pub began_at: Timestamp,
    /// When its step changed last.
    pub changed_at: Timestamp,
}

const COLUMNS: &str = "id, buckets, source, target, step, map_version, reverses, report, began_at, changed_at";

impl MoveRecord {
    fn of(row: &Row) -> Result<Self, DbError> {
        let form = |index| crate::backend::ColumnError { index, wanted: "of a move" };
        let shard = |index| row.int(index).ok().and_then(|it| u16::try_from(it).ok()).map(ShardId).ok_or(form(index));
        Ok(Self {
            id: row.uuid(0)?,
            buckets: serde_json::from_str(row.text(1)?).map_err(|_| form(1))?,
            source: shard(2)?,
            target: shard(3)?,
            step: MoveStep::from_name(row.text(4)?).ok_or(form(4))?,
            map_version: row.count(5)?,
            reverses: row.uuid_or_null(6)?,
            report: serde_json::from_str(row.text(7)?).map_err(|_| form(7))?,
            began_at: row.time(8)?,
            changed_at: row.time(9)?,
        })
    }
}

/// Whoever plans a move waits for whoever plans another. The embedded engine has one writer.
const ALONE: SqlPair = SqlPair::postgres("SELECT pg_advisory_xact_lock(7464, 0)");

/// Refuses buckets that are part of a move that is not over.
pub(super) fn check_free(open: &[MoveRecord], buckets: &[Bucket]) -> Result<(), MoveError> {
    for other in open {
        if let Some(&bucket) = other.buckets.iter().find(|bucket| buckets.contains(bucket)) {
            return Err(MoveError::Taken { bucket, other: other.id });
        }
    }
    Ok(())
}

/// Writes down a new move, unless another has one of its buckets by now.
pub(super) async fn plan(control: &Db, cx: &RequestContext, record: &MoveRecord) -> Result<(), MoveError> {
    let lock = if control.engine() == Engine::Postgres { vec![Statement::of(ALONE)] } else { Vec::new() };
    let mut tx = control.begin_with(&lock).await?.0;
    // A statement of its own: it sees what whoever held the lock has written.
    let open = tx.query(Statement::of(SqlPair::generated(open_moves()))).await?;
    let open: Vec<_> = open.iter().map(MoveRecord::of).collect::<Result<_, _>>()?;
    if let Err(taken) = check_free(&open, &record.buckets) {
        tx.rollback().await?;
        return Err(taken);
    }
    tx.commit_with(vec![insert(cx, record)]).await?;
    Ok(())
}

fn insert(cx: &RequestContext, record: &MoveRecord) -> Statement {
    let text = "INSERT INTO pim_move (id, buckets, source, target, step, map_version, reverses, report, began_at, \
                changed_at, request_id, user_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let insert = Statement::same(text).bind(record.id).bind(json(&record.buckets));
    let insert = insert.bind(record.source.0).bind(record.target.0).bind(record.step.name()).bind(record.map_version);
    let insert = insert.bind(record.reverses).bind(json(&record.report)).bind(record.began_at);
    insert.bind(record.changed_at).bind(cx.request_id().uuid()).bind(cx.actor().subject().as_str())
}

/// Writes down how far a move has come, unless somebody else has done so since.
pub(super) async fn advance(control: &Db, record: &MoveRecord, before: MoveStep) -> Result<(), MoveError> {
    let text = "UPDATE pim_move SET step = ?, map_version = ?, report = ?, changed_at = ? WHERE id = ? AND step = ? \
                RETURNING 1";
    let update = Statement::same(text).bind(record.step.name()).bind(record.map_version).bind(json(&record.report));
    let update = update.bind(record.changed_at).bind(record.id).bind(before.name());
    // Some of these are made while writers wait.
    if control.change(update).await?.is_empty() {
        return Err(MoveError::Step { id: record.id, step: before });
    }
    Ok(())
}

/// One move.
pub(super) async fn find(control: &Db, id: Uuid) -> Result<MoveRecord, MoveError> {
    let text = format!("SELECT {COLUMNS} FROM pim_move WHERE id = ?");
    let select = Statement::of(SqlPair::generated(text)).bind(id);
    let rows = control.query(select).await?;
    Ok(MoveRecord::of(rows.first().ok_or(MoveError::Unknown(id))?)?)
}

/// The newest moves, at most `most`.
pub(super) async fn list(control: &Db, most: u32) -> Result<Vec<MoveRecord>, DbError> {
    let text = format!("SELECT {COLUMNS} FROM pim_move ORDER BY began_at DESC, id DESC LIMIT {most}");
    let rows = control.query(Statement::of(SqlPair::generated(text))).await?;
    rows.iter().map(MoveRecord::of).collect()
}

/// Moves that are not over, oldest first.
pub(super) async fn open(control: &Db) -> Result<Vec<MoveRecord>, DbError> {
    let rows = control.query(Statement::of(SqlPair::generated(open_moves()))).await?;
    rows.iter().map(MoveRecord::of).collect()
}

fn open_moves() -> String {
    format!("SELECT {COLUMNS} FROM pim_move WHERE step NOT IN ('done', 'cancelled') ORDER BY began_at, id")
}

fn json<T: Serialize>(value: &T) -> Value {
    // Plain lists and structs: writing them cannot fail.
    Value::Text(serde_json::to_string(value).unwrap_or_default())
}
