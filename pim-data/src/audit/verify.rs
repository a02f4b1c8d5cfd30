//! Verifying the trail: every chain against itself and the checkpoints, and what it tells against the history.

use std::collections::BTreeMap;

use pim_core::clock::Timestamp;
use pim_core::shard::Lane;
use serde::Serialize;
use serde_json::Value as Json;
use uuid::Uuid;

use super::agreement;
use super::chain::{GENESIS, hex, link, unhex};
use super::checkpoint::{CheckpointError, Head, Signed};
use crate::backend::{DbError, Row, SqlPair, Statement};
use crate::cluster::Cluster;

const FINDINGS_MAX: usize = 100;
const RESTORES_MAX: usize = 100;
const LOSSES_MAX: usize = 100;

/// What is wrong with a record, or missing from the trail.
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
    /// A checkpoint signed another record here.
    Rewritten,
    /// A line of the checkpoint file is not signed by our key; `seq` is the line.
    Forged,
    /// A line of the checkpoint file does not follow the one before it; `seq` is the line.
    CheckpointGap,
    /// A line of the checkpoint file signs less than the one before it, and neither says that everything was restored nor was
    /// the loss given up: records were cut off or rewritten between the two; `seq` is the line.
    SetBack,
    /// The history has a change of [`AuditFinding::row`] that no record tells of.
    Unrecorded,
    /// It tells of a change that the history does not have.
    NotInHistory,
    /// History and trail tell of different changes under the same version, or of a different number of them.
    Differs,
    /// What the row is now is not what its history ends with.
    Present,
    /// The home key's number is not that of its newest record: records were cut off, or the number was changed. The row
    /// is the key, its version the number.
    Number,
}

impl AuditFindingKind {
    /// Whether trail and data disagree, where the others are of the trail alone.
    #[must_use]
    pub const fn is_disagreement(self) -> bool {
        matches!(self, Self::Unrecorded | Self::NotInHistory | Self::Differs | Self::Present | Self::Number)
    }
}

/// One broken link, or one disagreement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditFinding {
    /// Which shard; `None` for the control database.
    pub shard: Option<u16>,
    /// Which lane.
    pub lane: u64,
    /// Which record; zero for one that is missing.
    pub seq: u64,
    /// What is wrong.
    pub kind: AuditFindingKind,
    /// Which change, where trail and data disagree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row: Option<AuditedRow>,
}

/// A restore that the checkpoint file tells of: it may set all chains back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditRestore {
    /// The number of the line that says so, and signs where the chains stood then.
    pub checkpoint: u64,
    /// When.
    pub at: Timestamp,
    /// The instant that was restored; none for as far as there was something.
    pub to: Option<Timestamp>,
    /// The number of the last line that holds of those before it.
    pub kept: u64,
    /// How many lines behind that one name records that were given up.
    pub given_up: u64,
}

/// What a shard has lost with its primary, given up by somebody's word. From then on the trail holds without it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditLoss {
    /// The number of the line that says so, and signs where the chains stood then.
    pub checkpoint: u64,
    /// When.
    pub at: Timestamp,
    /// Which shard; `None` for the control database.
    pub shard: Option<u16>,
    /// By whose word.
    pub user: String,
    /// Why.
    pub reason: String,
    /// Earlier lines that had signed less of the shard, which holds with them now.
    pub lines: Vec<u64>,
}

/// A change of a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditedRow {
    /// Which entity.
    pub entity: String,
    /// Its id.
    pub id: Uuid,
    /// Its version after the change.
    pub version: u64,
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
    /// Whether history and trail tell of the same changes, rows are what their history ends with, and each home key's
    /// number is that of its newest record.
    pub agrees: bool,
    /// Changes of the history that were compared; those of before [`Retained`](crate::retention::Retained) are not.
    pub changes: u64,
    /// Home keys whose number was compared.
    pub keys: u64,
    /// The newest restores, at most a hundred. Each of them is one that somebody should remember.
    pub restores: Vec<AuditRestore>,
    /// The newest losses that were given up, at most a hundred. Somebody should remember each of them, too.
    pub losses: Vec<AuditLoss>,
    /// What is wrong, at most a hundred.
    pub findings: Vec<AuditFinding>,
    /// The first record of each chain that is another than a checkpoint signed.
    #[serde(skip)]
    pub(crate) forks: BTreeMap<(Option<u16>, u64), u64>,
}

impl VerifyReport {
    pub(super) fn add(&mut self, finding: AuditFinding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    /// Adds what was signed and is not there, but for what has had its time since.
    fn truncated(&mut self, Signed { heads, tombstones, .. }: Signed) {
        for (place, (seq, _)) in heads {
            if tombstones.get(&place).is_none_or(|(end, _)| seq > *end) {
                let (shard, lane) = place;
                self.add(AuditFinding { shard, lane, seq, kind: AuditFindingKind::Truncated, row: None });
            }
        }
    }

    pub(super) fn restored(&mut self, restore: AuditRestore) {
        if self.restores.len() == RESTORES_MAX {
            self.restores.remove(0);
        }
        self.restores.push(restore);
    }

    pub(super) fn lost(&mut self, loss: AuditLoss) {
        if self.losses.len() == LOSSES_MAX {
            self.losses.remove(0);
        }
        self.losses.push(loss);
    }
}

impl Cluster {
    /// Checks every chain of every shard, all signed checkpoints against them, and that history and trail agree.
    ///
    /// Each database is read in one snapshot while all serve. Memory is bounded by the home keys of one lane, and by
    /// one record for each checkpoint and lane of what [retention](crate::retention) has not removed.
    ///
    /// # Errors
    /// [`CheckpointError`] when a shard or the checkpoint file cannot be read.
    pub async fn verify_audit(&self) -> Result<VerifyReport, CheckpointError> {
        let mut report = VerifyReport::default();
        // Before the chains: they only grow, so what was signed by now must be in them.
        let mut signed = self.checkpointed(&mut report).await?;
        // Behind what was signed: shards that it speaks of are known by now.
        self.is_whole().await?;
        let mut disagreements = Vec::new();
        for is_control in [false, true] {
            let chains = Chains { signed: &mut signed, report: &mut report, at: None };
            disagreements.extend(agreement::look(self, is_control, chains).await?);
        }
        report.truncated(signed);
        report.agrees = disagreements.is_empty();
        disagreements.into_iter().for_each(|finding| report.add(finding));
        report.verified = report.findings.is_empty();
        Ok(report)
    }
}

impl Cluster {
    /// Checks the chains of one lane in every database, and what signed checkpoints say of them. A key's records
    /// are in its bucket's lane, also those that were written before the bucket moved. Data and trail are not compared, so
    /// [`VerifyReport::agrees`] says nothing beyond the chains.
    ///
    /// It reads a sixty-fourth of what [`verify_audit`](Self::verify_audit) reads of the trail.
    ///
    /// # Errors
    /// [`CheckpointError`] when a shard or the checkpoint file cannot be read.
    pub async fn verify_audit_lane(&self, lane: Lane) -> Result<VerifyReport, CheckpointError> {
        let mut report = VerifyReport::default();
        let mut signed = self.checkpointed(&mut report).await?;
        self.is_whole().await?;
        signed.keep_lane(u64::from(lane.get()));
        agreement::walk_lane(self, lane, &mut Chains { signed: &mut signed, report: &mut report, at: None }).await?;
        report.truncated(signed);
        report.verified = report.findings.is_empty();
        report.agrees = report.verified;
        Ok(report)
    }
}

/// What was signed, and what is found, while chains are walked one after the other.
pub(super) struct Chains<'a> {
    signed: &'a mut Signed,
    pub(super) report: &'a mut VerifyReport,
    at: Option<At>,
}

/// Where a walk along one chain is.
struct At {
    place: (Option<u16>, u64),
    seq: u64,
    hash: [u8; 32],
    purged: Option<Head>,
}

/// Columns of a record in a walk.
pub(super) const RECORDS: SqlPair = SqlPair::same(
    "SELECT lane, seq, previous, hash, body, at, request_id, user_id, home_key, entity_id FROM audit \
     WHERE lane = ? AND seq > ? ORDER BY seq LIMIT ?",
);
/// The last record of each chain, looked up lane by lane: of a long trail no more is read than of a short one.
pub(super) const HEADS: SqlPair = SqlPair::of(
    "SELECT l.lane, h.seq, h.hash FROM generate_series(0::bigint, 63) AS l(lane) \
     CROSS JOIN LATERAL (SELECT a.seq, a.hash FROM audit a WHERE a.lane = l.lane ORDER BY a.seq DESC LIMIT 1) h ORDER BY l.lane",
    "WITH RECURSIVE l(lane) AS (SELECT 0 UNION ALL SELECT lane + 1 FROM l WHERE lane < 63) \
     SELECT a.lane, a.seq, a.hash FROM l CROSS JOIN audit a ON a.lane = l.lane \
     AND a.seq = (SELECT MAX(b.seq) FROM audit b WHERE b.lane = l.lane) ORDER BY a.lane",
);

impl Chains<'_> {
    /// Reads the tombstones again, once what is walked is seen in a snapshot: they are signed before anything goes, so that
    /// what is missing there is named by now.
    pub(super) async fn know_tombstones(&mut self, cluster: &Cluster) -> Result<(), CheckpointError> {
        self.signed.tombstones = cluster.checkpointed(&mut VerifyReport::default()).await?.tombstones;
        Ok(())
    }

    /// Checks the next record of a chain, whose content is `body`.
    pub(super) fn check(&mut self, shard: Option<u16>, row: &Row, body: &Json) -> Result<(), DbError> {
        let place = (shard, row.count(0)?);
        let before = match self.at.take() {
            Some(at) if at.place == place => at,
            _ => {
                self.report.lanes += 1;
                let purged = self.signed.tombstones.get(&place).cloned();
                let (seq, hash) = begin(row, purged.as_ref())?;
                At { place, seq, hash, purged }
            }
        };
        let found = check(row, body, before.seq, &before.hash)?;
        let (seq, hash) = (row.count(1)?, row.digest(3)?);
        self.report.records += 1;
        let mut add = |kind| self.report.add(AuditFinding { shard, lane: place.1, seq, kind, row: None });
        found.into_iter().for_each(&mut add);
        if before.purged.as_ref().is_some_and(|(end, signed_hash)| *end == seq && *signed_hash != hex(&hash)) {
            add(AuditFindingKind::Rewritten);
        }
        if self.signed.denies(place, seq, &hash) {
            add(AuditFindingKind::Rewritten);
            self.report.forks.entry(place).or_insert(seq);
        }
        self.at = Some(At { place, seq, hash, purged: before.purged });
        Ok(())
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

fn check(row: &Row, body: &Json, seq_before: u64, hash_before: &[u8; 32]) -> Result<Option<AuditFindingKind>, DbError> {
    let (previous, hash) = (row.digest(2)?, row.digest(3)?);
    Ok(if row.count(1)? != seq_before + 1 {
        Some(AuditFindingKind::Gap)
    } else if previous != *hash_before {
        Some(AuditFindingKind::Broken)
    } else if link(&previous, row.text(4)?) != hash {
        Some(AuditFindingKind::Changed)
    } else if !index_agrees(row, body)? {
        Some(AuditFindingKind::Index)
    } else {
        None
    })
}

fn index_agrees(row: &Row, body: &Json) -> Result<bool, DbError> {
    let same = |member: &str, uuid: Uuid| body[member] == uuid.as_hyphenated().to_string();
    Ok(body["at"] == row.int(5)?
        && same("request", row.uuid(6)?)
        && body["user"] == row.text(7)?
        && same("home", row.uuid(8)?)
        && same("id", row.uuid(9)?))
}

/// The heads of all lanes as text, for a checkpoint: `shard/lane:seq:hash`, sorted.
pub(crate) async fn heads(cluster: &Cluster) -> Result<Vec<String>, DbError> {
    cluster.is_whole().await?;
    let mut heads = Vec::new();
    for source in cluster.sources() {
        let Some(db) = cluster.database(source) else { continue };
        for row in db.query(Statement::of(HEADS)).await? {
            heads.push(format!("{}/{}:{}:{}", source.0, row.count(0)?, row.count(1)?, hex(&row.digest(2)?)));
        }
    }
    Ok(heads)
}
