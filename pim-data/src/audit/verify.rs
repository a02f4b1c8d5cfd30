//! Verifying every chain: changed, removed, reordered and appended records are found by lane and number.

use serde::Serialize;
use serde_json::Value as Json;

use super::chain::{GENESIS, hex, link, unhex};
use super::checkpoint::{CheckpointError, Head, Signed};
use crate::backend::{Db, DbError, Row, SqlPair, Statement};
use crate::cluster::{CONTROL, Cluster};

const PAGE: i64 = 2_000;
const FINDINGS_MAX: usize = 100;

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AuditFindingKind {
    /// Its hash is not that of its content.
    Changed,
    /// The number before it is missing.
    Gap,
    /// It does not continue the record before it.
    Broken,
    /// A column that is looked up by disagrees with the content.
    Index,
    /// The newest checkpoint signed a record here that is gone.
    Truncated,
    /// The newest checkpoint signed another record here.
    Rewritten,
    /// A line of the checkpoint file is not signed by our key; `seq` is the line.
    Forged,
    /// A line of the checkpoint file does not follow the one before it; `seq` is the line.
    CheckpointGap,
}

/// One broken link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditFinding {
    /// Which shard; `None` for the control database.
    pub shard: Option<u16>,
    /// Which lane.
    pub lane: u64,
    /// Which record.
    pub seq: u64,
    /// What is wrong.
    pub kind: AuditFindingKind,
}

/// What verifying found.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Whether everything holds.
    pub verified: bool,
    /// Lanes that have records.
    pub lanes: u64,
    /// Records checked.
    pub records: u64,
    /// Signed checkpoints read.
    pub checkpoints: u64,
    /// Broken links, at most a hundred.
    pub findings: Vec<AuditFinding>,
}

impl VerifyReport {
    pub(super) fn add(&mut self, finding: AuditFinding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }
}

impl Cluster {
    /// Checks every chain of every shard, and the newest signed checkpoint against them.
    ///
    /// # Errors
    /// [`CheckpointError`] when a shard or the checkpoint file cannot be read.
    pub async fn verify_audit(&self) -> Result<VerifyReport, CheckpointError> {
        let mut report = VerifyReport::default();
        // Before the chains: they only grow, so what was signed by now must be in them.
        let mut signed = self.checkpointed(&mut report).await?;
        for source in self.sources() {
            let Some(db) = self.database(source) else { continue };
            verify_shard(db, (source != CONTROL).then_some(source.0), &mut signed, &mut report).await?;
        }
        for ((shard, lane), (seq, _)) in signed.heads {
            report.add(AuditFinding { shard, lane, seq, kind: AuditFindingKind::Truncated });
        }
        report.verified = report.findings.is_empty();
        Ok(report)
    }
}

pub(super) const RECORDS: SqlPair = SqlPair::same(
    "SELECT lane, seq, previous, hash, body, at, request_id, user_id, home_key, entity_id FROM audit \
     WHERE (lane, seq) > (?, ?) ORDER BY lane, seq LIMIT ?",
);
pub(super) const HEADS: SqlPair = SqlPair::same(
    "SELECT lane, seq, hash FROM audit a WHERE seq = (SELECT MAX(seq) FROM audit b WHERE b.lane = a.lane) ORDER BY lane",
);

async fn verify_shard(
    db: &Db,
    shard: Option<u16>,
    signed: &mut Signed,
    report: &mut VerifyReport,
) -> Result<(), DbError> {
    let (mut lane, mut seq, mut hash) = (-1_i64, 0_u64, GENESIS);
    let mut purged: Option<Head> = None;
    loop {
        let rows = db.query(Statement::of(RECORDS).bind(lane).bind(seq).bind(PAGE)).await?;
        for row in &rows {
            if row.int(0)? != lane {
                lane = row.int(0)?;
                purged = signed.tombstones.get(&(shard, row.count(0)?)).cloned();
                (seq, hash) = begin(row, purged.as_ref())?;
                report.lanes += 1;
            }
            let found = check(row, seq, &hash)?;
            seq = row.count(1)?;
            hash = row.digest(3)?;
            report.records += 1;
            let place = (shard, row.count(0)?);
            if let Some(kind) = found {
                report.add(AuditFinding { shard, lane: place.1, seq, kind });
            }
            if purged.as_ref().is_some_and(|(end, signed_hash)| *end == seq && *signed_hash != hex(&hash)) {
                report.add(AuditFinding { shard, lane: place.1, seq, kind: AuditFindingKind::Rewritten });
            }
            if signed.heads.get(&place).is_some_and(|(signed_seq, _)| *signed_seq == seq) {
                let is_same = signed.heads.remove(&place).is_some_and(|(_, signed_hash)| signed_hash == hex(&hash));
                if !is_same {
                    report.add(AuditFinding { shard, lane: place.1, seq, kind: AuditFindingKind::Rewritten });
                }
            }
        }
        if rows.len() < usize::try_from(PAGE).unwrap_or(usize::MAX) {
            return Ok(());
        }
    }
}

/// Behind what a lane's first record must stand: nothing, or what a tombstone says of the last one that went. Of records
/// that a broken-off run has left before that, the first vouches for its place itself; the last must be the tombstone's.
fn begin(first: &Row, purged: Option<&Head>) -> Result<(u64, [u8; 32]), DbError> {
    let seq = first.count(1)?;
    Ok(match purged {
        Some((end, hash)) if seq > *end => (*end, unhex(hash)),
        Some(_) if seq > 1 => (seq - 1, first.digest(2)?),
        _ => (0, GENESIS),
    })
}

fn check(row: &Row, seq_before: u64, hash_before: &[u8; 32]) -> Result<Option<AuditFindingKind>, DbError> {
    let (previous, hash, body) = (row.digest(2)?, row.digest(3)?, row.text(4)?);
    Ok(if row.count(1)? != seq_before + 1 {
        Some(AuditFindingKind::Gap)
    } else if previous != *hash_before {
        Some(AuditFindingKind::Broken)
    } else if link(&previous, body) != hash {
        Some(AuditFindingKind::Changed)
    } else if !index_agrees(row, body)? {
        Some(AuditFindingKind::Index)
    } else {
        None
    })
}

fn index_agrees(row: &Row, body: &str) -> Result<bool, DbError> {
    let Ok(body) = serde_json::from_str::<Json>(body) else { return Ok(false) };
    let same = |member: &str, uuid: uuid::Uuid| body[member] == uuid.as_hyphenated().to_string();
    Ok(body["at"] == row.int(5)?
        && same("request", row.uuid(6)?)
        && body["user"] == row.text(7)?
        && same("home", row.uuid(8)?)
        && same("id", row.uuid(9)?))
}

/// The heads of all lanes as text, for a checkpoint: `shard/lane:seq:hash`, sorted.
pub(crate) async fn heads(cluster: &Cluster) -> Result<Vec<String>, DbError> {
    let mut heads = Vec::new();
    for source in cluster.sources() {
        let Some(db) = cluster.database(source) else { continue };
        for row in db.query(Statement::of(HEADS)).await? {
            heads.push(format!("{}/{}:{}:{}", source.0, row.count(0)?, row.count(1)?, hex(&row.digest(2)?)));
        }
    }
    Ok(heads)
}
