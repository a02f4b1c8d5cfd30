//! Letting a shard's primary acknowledge commits that no standby has, by an operator's audited word.
//!
//! Without it, a shard that has lost its last synchronous standby takes no writes: what it acknowledged could be lost with it.
//! Whoever would rather take that risk than wait says so for one shard ([`Cluster::degrade`]). The setting is kept in the
//! shard's own database, with a record in its audit trail, so every program on the shard follows it, and so does one that is
//! started later. It holds until it is taken back ([`Cluster::end_degrading`]), whether a standby is there or not, and is told
//! all that time: [`ShardHealth::degraded`](crate::cluster::ShardHealth::degraded), the finding
//! [`Degraded`](crate::cluster::EndpointFinding::Degraded) and its gauge.
//!
//! Taking it back also asks for the proof that nothing can be lost any more: a commit of its own that waits for the standbys,
//! behind everything that was acknowledged without them. Until that has come, the shard is told as [`DegradedStage::Ending`].

mod error;
mod reason;

pub use error::DegradeError;
pub use reason::{Reason, ReasonError};

use std::time::Duration;

use pim_core::clock::Timestamp;
use pim_core::context::RequestContext;
use pim_core::rbac::{Permit, Scope, SystemScope, Write};
use pim_core::role::ClosedEnum as _;
use pim_core::shard::{Lane, ShardId};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use crate::audit::{LaneHead, Record};
use crate::backend::{Db, DbError, Row, SqlPair, Statement, Value};
use crate::cluster::{CONTROL, Cluster, Group, Shard};
use crate::unit::SETTLE;

/// How long the standbys have to confirm, unless the request gives up before.
const CONFIRM_MAX: Duration = Duration::from_secs(3);

pim_core::closed_enum! {
    /// How far a shard's degrading is.
    pub enum DegradedStage {
        /// Commits are acknowledged by the primary alone.
        On = "on",
        /// Commits wait again, but no standby has confirmed yet what was acknowledged before.
        Ending = "ending",
    }
}

impl Serialize for DegradedStage {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

/// What a shard has acknowledged that may be lost with its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Degraded {
    /// Whatever was acknowledged since then.
    pub since: Timestamp,
    /// Whether more comes.
    pub stage: DegradedStage,
}

impl Degraded {
    /// From the two columns of a row that begin at `from`; `None` where they are empty.
    pub(crate) fn of(row: &Row, from: usize) -> Result<Option<Self>, DbError> {
        if *row.get(from) == Value::Null {
            return Ok(None);
        }
        let stage = if row.int(from + 1)? == 0 { DegradedStage::Ending } else { DegradedStage::On };
        Ok(Some(Self { since: row.time(from)?, stage }))
    }
}

/// How often it is tried while others hold what it needs; each time those who wait for a standby in vain are ended first.
const TRIES_MAX: usize = 5;
/// Whoever turns it waits neither for a standby, which may not be there, nor long for anybody else.
const UNHURRIED: SqlPair =
    SqlPair::postgres("SELECT set_config('synchronous_commit', 'local', true), set_config('lock_timeout', '2s', true)");
/// Everybody whose commit waits for no standby has committed then, and nobody begins to until it is known that it is off.
const LAST: SqlPair = SqlPair::postgres("SELECT pg_advisory_xact_lock(7463, 0)");
/// What was acknowledged since an earlier time, and is not confirmed yet, still counts.
const TURN_ON: SqlPair = SqlPair::postgres(
    "INSERT INTO pim_degraded AS d (one, is_on, since) VALUES (1, true, ?) \
     ON CONFLICT (one) DO UPDATE SET is_on = true WHERE NOT d.is_on RETURNING since, is_on",
);
const TURN_OFF: SqlPair = SqlPair::postgres("UPDATE pim_degraded SET is_on = false WHERE is_on RETURNING since, is_on");
/// Which turn it is the last of is told by the transaction that wrote the row.
const PRESENT: SqlPair = SqlPair::postgres("SELECT since, is_on, xmin::text FROM pim_degraded");
/// What somebody has turned on and off again meanwhile is confirmed to nobody yet.
const CONFIRMED: SqlPair = SqlPair::postgres("DELETE FROM pim_degraded WHERE NOT is_on AND xmin::text = ?");

/// Every statement of this room.
pub(crate) fn pairs() -> [SqlPair; 6] {
    [UNHURRIED, LAST, TURN_ON, TURN_OFF, PRESENT, CONFIRMED]
}

/// What the setting is after a turn.
struct Turned {
    degraded: Degraded,
    /// The transaction that made it so.
    by: String,
}

impl Turned {
    fn of(row: &Row) -> Result<Option<Self>, DbError> {
        let Some(degraded) = Degraded::of(row, 0)? else { return Ok(None) };
        Ok(Some(Self { degraded, by: row.text(2)?.to_owned() }))
    }
}

/// One turn of the setting.
struct Turn<'a> {
    cluster: &'a Cluster,
    cx: &'a RequestContext,
    shard: ShardId,
    group: &'a Group,
    owner: &'a Db,
    system: Option<SystemScope>,
    until: Instant,
}

impl Cluster {
    /// Has a shard's primary acknowledge commits alone from now on, until [`Cluster::end_degrading`]. What it acknowledges
    /// meanwhile is lost if another server takes its place that does not have it.
    ///
    /// Commits that wait for a standby at this moment are acknowledged too, to whoever still waits for them. Saying it again
    /// changes nothing. The permit must reach every row; the reason goes into the audit trail of the shard.
    ///
    /// # Errors
    /// [`DegradeError`]; unless the shard's database failed while it committed, or did not answer in time
    /// ([`DbError::is_ambiguous`]), nothing was changed then.
    pub async fn degrade(
        &self,
        cx: &RequestContext,
        permit: &Permit<Write>,
        shard: ShardId,
        reason: &Reason,
    ) -> Result<Degraded, DegradeError> {
        let open = self.to_degrade(permit, shard)?;
        let turn = Turn::new(self, cx, permit.system_scope(), &open)?;
        let change = Statement::of(TURN_ON).bind(self.clock().now());
        let turned = turn.make("degrade", reason, &[change]).await?;
        turn.group.heed(turn.until, Some(DegradedStage::On)).await;
        turned.map(|turned| turned.degraded).ok_or(DegradeError::Shard { shard, source: DbError::Closed })
    }

    /// Has a shard's commits wait for its standbys again, and asks these to confirm what was acknowledged without them.
    /// `None` once they have: then it can be lost no more than anything else. Otherwise new commits wait already, and saying
    /// this again asks again.
    ///
    /// # Errors
    /// [`DegradeError`]; unless the shard's database failed while it committed, or did not answer in time
    /// ([`DbError::is_ambiguous`]), nothing was changed then.
    pub async fn end_degrading(
        &self,
        cx: &RequestContext,
        permit: &Permit<Write>,
        shard: ShardId,
        reason: &Reason,
    ) -> Result<Option<Degraded>, DegradeError> {
        let open = self.to_degrade(permit, shard)?;
        let turn = Turn::new(self, cx, permit.system_scope(), &open)?;
        let change = [Statement::of(LAST), Statement::of(TURN_OFF)];
        let degraded = match turn.make("end_degrading", reason, &change).await? {
            Some(turned) if turn.is_confirmed().await? => turn.forget(turned.by).await?,
            turned => turned.map(|turned| turned.degraded),
        };
        turn.group.heed(turn.until, degraded.map(|degraded| degraded.stage)).await;
        Ok(degraded)
    }
}

impl Cluster {
    fn to_degrade(&self, permit: &Permit<Write>, shard: ShardId) -> Result<Shard, DegradeError> {
        if *permit.scope() != Scope::All {
            return Err(DegradeError::Scope);
        }
        self.shard(shard).ok_or(DegradeError::UnknownShard(shard))
    }
}

impl<'a> Turn<'a> {
    fn new(
        cluster: &'a Cluster,
        cx: &'a RequestContext,
        system: Option<SystemScope>,
        open: &'a Shard,
    ) -> Result<Self, DegradeError> {
        let shard = open.id();
        let group = open.group().ok_or(DegradeError::NoServers(shard))?;
        let owner = group.owner().ok_or(DegradeError::NotOwner(shard))?;
        let until = cx.deadline().instant();
        Ok(Self { cluster, cx, shard, group, owner, system, until })
    }

    /// Changes the setting and leaves a record in the trail, in one transaction, unless it is as asked for already; what it is
    /// then. The last statement answers with the row when it has changed.
    async fn make(
        &self,
        action: &'static str,
        reason: &Reason,
        change: &[Statement],
    ) -> Result<Option<Turned>, DegradeError> {
        let mut tries = 1;
        loop {
            // Whoever waits for a standby holds a lane of the audit trail meanwhile, and perhaps this one. Whoever has only begun
            // to wait is not ended yet.
            self.group.release().await;
            match self.try_once(action, reason, change).await {
                Err(DegradeError::Shard { source: DbError::Busy, .. }) if tries < TRIES_MAX => tries += 1,
                made => return made,
            }
        }
    }

    async fn try_once(
        &self,
        action: &'static str,
        reason: &Reason,
        change: &[Statement],
    ) -> Result<Option<Turned>, DegradeError> {
        let lane = Lane::all().next().ok_or(DbError::Closed).map_err(self.failed())?;
        let mut first = vec![Statement::of(UNHURRIED)];
        first.extend_from_slice(change);
        let changed = first.len() - 1;
        first.push(Statement::of(PRESENT));
        first.extend(LaneHead::hold(self.owner.engine(), lane));
        first.push(LaneHead::look_up(lane));
        let made = async {
            let (tx, answers) = self.owner.begin_until(self.until, &first).await?;
            let row = |index: usize| answers.get(index).and_then(|rows| rows.first());
            let present = row(changed + 1).map(Turned::of).transpose()?.flatten();
            if row(changed).is_none() {
                // Nothing has changed, whatever becomes of that.
                let _unanswered = tx.rollback().await;
                return Ok(present);
            }
            let mut head = LaneHead::of(answers.last().and_then(|rows| rows.first()))?;
            let facts = json!({
                "reason": reason.as_str(),
                "shard": (self.shard != CONTROL).then_some(self.shard.0),
                "since": present.as_ref().map(|present| present.degraded.since.as_micros()),
                "system": self.system.map(SystemScope::reason),
            });
            let record = Record::of_shard(self.cx, self.cluster.clock().now(), lane, action, facts);
            tx.commit_with(vec![head.append(&record)]).await?;
            Ok(present)
        };
        made.await.map_err(self.failed())
    }

    /// Commits something behind everything that was acknowledged alone; whether those whom commits wait for have confirmed it.
    async fn is_confirmed(&self) -> Result<bool, DegradeError> {
        let until = self.until.min(Instant::now() + CONFIRM_MAX);
        let settled = async { self.owner.read_until(until).await?.query(Statement::of(SETTLE)).await };
        match settled.await {
            Ok(_) => Ok(true),
            Err(DbError::Unanswered | DbError::Late) => Ok(false),
            Err(source) => Err(self.failed()(source)),
        }
    }

    /// What is confirmed need not be told any more. That this waits for nobody is safe: lost, it is told once more.
    async fn forget(&self, by: String) -> Result<Option<Degraded>, DegradeError> {
        let forgotten = async {
            let tx = self.owner.begin_until(self.until, &[Statement::of(UNHURRIED)]).await?.0;
            let answers = tx.commit_with(vec![Statement::of(CONFIRMED).bind(by), Statement::of(PRESENT)]).await?;
            let row = answers.last().and_then(|rows| rows.first());
            Ok(row.map(Turned::of).transpose()?.flatten().map(|turned| turned.degraded))
        };
        forgotten.await.map_err(self.failed())
    }

    fn failed(&self) -> impl FnOnce(DbError) -> DegradeError + use<> {
        let shard = self.shard;
        move |source| DegradeError::Shard { shard, source }
    }
}
