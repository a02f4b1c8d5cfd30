//! Giving up what a shard has lost with its primary, by an operator's audited word.
//!
//! A promotion that takes a server without everything that was acknowledged, such as that of a
//! [degraded](crate::degradation) shard, sets the shard back: its audit trail is shorter than a checkpoint signed, and home
//! keys give numbers of events out again that others have seen. [`Cluster::accept_loss`] says that somebody knows of it. It
//! raises the epochs of the shard's buckets first, so that consumers hold the keys that were set back as rewound instead of
//! taking what comes next for repeats. Then it signs, beside the databases, where the shard's chains stand now, and which
//! earlier checkpoints had signed less of it. From then on the trail verifies without what was lost, and nothing else may be missing;
//! each loss is told for ever ([`VerifyReport::losses`](crate::audit::VerifyReport::losses)).
//!
//! Say it right after the promotion. A key that is written before that under numbers that were lost is held as well, but only
//! when it comes by the number that a consumer is at; until then what is new is taken for repeats.

mod error;

pub use error::LossError;

use pim_core::context::RequestContext;
use pim_core::rbac::{Permit, Scope, SystemScope, Write};
use pim_core::shard::{Lane, MapVersion, ShardId};
use serde::Serialize;
use serde_json::json;

use crate::audit::{self, AuditFinding, AuditFindingKind, LaneHead, Record, Signed, VerifyReport};
use crate::backend::{Db, DbError};
use crate::cluster::{CONTROL, Cluster};
use crate::degradation::Reason;
use crate::fence::PublishError;

/// What was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AcceptedLoss {
    /// Of which shard.
    pub shard: ShardId,
    /// The map under which it numbers anew; none for the control database, which no map speaks of.
    pub map_version: Option<MapVersion>,
    /// The number of the signed line that says so.
    pub checkpoint: u64,
    /// Earlier lines that had signed less of the shard, counted from one.
    pub lines: Vec<u64>,
    /// How many numbers of records the newest checkpoint named that the shard has not reached again: no more than were lost.
    /// What was acknowledged and lost behind that checkpoint is not known.
    pub records: u64,
}

impl Cluster {
    /// Gives up what the shard has lost, after looking at all of the trail. Said again, it raises the epochs again and changes
    /// nothing else.
    ///
    /// `lines` names the earlier checkpoints that had signed less of the shard and are given up too, by their place in the file,
    /// as verifying tells them; right after a promotion there are none. The permit must reach every row. Who, when and why goes
    /// into the audit trail of the shard and into the signed line.
    ///
    /// # Errors
    /// [`LossError`]; [`LossError::Unsound`] when something is wrong with the trail that no loss explains, and
    /// [`LossError::Unnamed`] when a line has signed less of the shard that is not among `lines`. Epochs may have risen then.
    pub async fn accept_loss(
        &self,
        cx: &RequestContext,
        permit: &Permit<Write>,
        shard: ShardId,
        reason: &Reason,
        lines: &[u64],
    ) -> Result<AcceptedLoss, LossError> {
        if *permit.scope() != Scope::All {
            return Err(LossError::Scope);
        }
        let db = self.database(shard).ok_or(LossError::UnknownShard(shard))?;
        let map_version = self.number_anew(shard).await?;
        let report = self.verify_audit().await?;
        let others = report.findings.iter().filter(|finding| !is_of_a_loss(finding)).count();
        if others > 0 || !report.agrees {
            return Err(LossError::Unsound { findings: others.max(1) });
        }
        let place = (shard != CONTROL).then_some(shard.0);
        let signed = self.checkpointed(&mut VerifyReport::default()).await?;
        are_named(&signed, place, lines)?;
        let records = signed.missing(place, &audit::heads(self).await.map_err(audit::CheckpointError::from)?);
        let told = self.tell(&db, cx, permit.system_scope(), shard, reason).await;
        told.map_err(|source| LossError::Shard { shard, source })?;
        let of_shard = report.forks.iter().filter(|((shard, _), _)| *shard == place);
        let loss = audit::Loss {
            forks: of_shard.map(|((_, lane), seq)| (*lane, *seq)).collect(),
            shard: shard.0,
            user: cx.actor().subject().as_str().to_owned(),
            request: cx.request_id().to_string(),
            reason: reason.as_str().to_owned(),
            lines: lines.to_vec(),
        };
        let checkpoint = self.sign_audit(Some(audit::Reason::Loss(loss))).await?;
        // Somebody may have signed a checkpoint just before, which has less of the shard and was named by nobody.
        are_named(&self.checkpointed(&mut VerifyReport::default()).await?, place, &[])?;
        Ok(AcceptedLoss { shard, map_version, checkpoint, lines: lines.to_vec(), records })
    }

    /// Publishes a map under which the shard's events can be told from those of before.
    async fn number_anew(&self, shard: ShardId) -> Result<Option<MapVersion>, LossError> {
        if shard == CONTROL {
            return Ok(None);
        }
        self.refresh_map().await.map_err(PublishError::from)?;
        let next = self.map().fenced_on(shard).map_err(PublishError::Map)?;
        self.publish_map(&next).await?;
        Ok(Some(next.version()))
    }

    async fn tell(
        &self,
        db: &Db,
        cx: &RequestContext,
        system: Option<SystemScope>,
        shard: ShardId,
        reason: &Reason,
    ) -> Result<(), DbError> {
        let lane = Lane::all().next().ok_or(DbError::Closed)?;
        let mut first = LaneHead::hold(db.engine(), lane);
        first.push(LaneHead::look_up(lane));
        let (tx, answers) = db.begin_with(&first).await?;
        let mut head = LaneHead::of(answers.last().and_then(|rows| rows.first()))?;
        let facts = json!({
            "reason": reason.as_str(),
            "shard": (shard != CONTROL).then_some(shard.0),
            "system": system.map(SystemScope::reason),
        });
        let record = Record::of_shard(cx, self.clock().now(), lane, "accept_loss", facts);
        tx.commit_with(vec![head.append(&record)]).await?;
        Ok(())
    }
}

/// Whether `lines` has every line that signed less of the shard and was not given up.
fn are_named(signed: &Signed, place: Option<u16>, lines: &[u64]) -> Result<(), LossError> {
    let of_shard = signed.set_back.iter().filter(|(_, shards)| shards.contains(&place)).map(|(line, _)| *line);
    let unnamed: Vec<u64> = of_shard.filter(|line| !lines.contains(line)).collect();
    if unnamed.is_empty() { Ok(()) } else { Err(LossError::Unnamed { lines: unnamed }) }
}

/// Whether it is what a shard shows that was set back, whichever; only one is given up at a time.
fn is_of_a_loss(finding: &AuditFinding) -> bool {
    use AuditFindingKind::{Rewritten, SetBack, Truncated};
    matches!(finding.kind, Truncated | Rewritten | SetBack)
}
