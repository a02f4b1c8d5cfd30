//! Doing chores when they are due: of many workers one leases the chore's row, does it, and writes down when it is due again.
//!
//! A chore done twice does no harm: a worker that was thought dead removes what is old, or signs once more.

#[cfg(test)]
mod tests;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pim_core::clock::Timestamp;
use pim_core::context::{RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::rbac::{Permit, Read, SystemScope, Write};
use pim_core::role::ClosedEnum as _;
use pim_data::audit::CheckpointError;
use pim_data::cluster::Cluster;
use pim_data::idempotency::SweepError;
use pim_data::repository::ReadError;
use pim_data::unit::{Unit, UnitError};
use pim_events::{AppendError, AppendExt as _};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::chore::{Chore, ChoreName};
use super::signals::{ChoreOutcome, ChoreSignals};
use crate::policy::{LabAction, LabResource};
use crate::reference::ReferenceChanged;
use crate::rig::{CLOCKS_APART_MAX, holds};
use crate::workers::service_actor;

/// How long a worker may take before another does its chore, and how long one that failed is left alone.
pub const CHORE_LEASE: Duration = Duration::from_secs(60);
/// Longest time of one run; what is left is done by the next.
const RUN_MAX: Duration = Duration::from_secs(45);
/// Rounds of one sweep; each removes a bounded number of records a shard.
const ROUNDS_MAX: u32 = 100;
/// Tries of writing down that a chore is done.
const TRIES_MAX: u32 = 5;
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Spreads the looks of many programs over time.
const JITTER_MS: u128 = 500;
const PATIENCE: Duration = Duration::from_secs(10);
const REASON: SystemScope = SystemScope::new("do a chore that is due");
const DAY_SECS: u64 = 24 * 3600;

/// How often chores are done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpkeepSettings {
    /// Seconds between two sweeps of idempotency records, which are kept for a day: 1 to a day.
    pub idempotency_sweep_secs: u64,
    /// Seconds between two signed checkpoints of the audit chains: 1 to a day. Each adds up to 20 KB to their file. Another is
    /// signed whenever the program is told to stop.
    pub audit_checkpoint_secs: u64,
}

impl Default for UpkeepSettings {
    fn default() -> Self {
        Self { idempotency_sweep_secs: 3600, audit_checkpoint_secs: 900 }
    }
}

/// A setting that is out of its bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("upkeep setting {key} must be between 1 and {DAY_SECS}, not {found}")]
pub struct UpkeepSettingsError {
    /// Which setting.
    pub key: &'static str,
    /// What it is.
    pub found: u64,
}

impl UpkeepSettings {
    pub(crate) fn check(&self) -> Result<(), UpkeepSettingsError> {
        let all = [
            ("idempotency_sweep_secs", self.idempotency_sweep_secs),
            ("audit_checkpoint_secs", self.audit_checkpoint_secs),
        ];
        let broken = all.into_iter().find(|(_, found)| !(1..=DAY_SECS).contains(found));
        broken.map_or(Ok(()), |(key, found)| Err(UpkeepSettingsError { key, found }))
    }

    const fn every(&self, chore: ChoreName) -> Duration {
        Duration::from_secs(match chore {
            ChoreName::IdempotencySweep => self.idempotency_sweep_secs,
            ChoreName::AuditCheckpoint => self.audit_checkpoint_secs,
        })
    }
}

/// A chore that was not done; it is tried again when its lease is over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpkeepError {
    /// The chore's row could not be written.
    #[error("write the chore's row")]
    Unit(#[from] UnitError),
    /// The chore's event was refused.
    #[error("append the chore's event")]
    Append(#[from] AppendError),
    /// The chore's row could not be read.
    #[error("read the chore's row")]
    Read(#[from] ReadError),
    /// A database does not answer.
    #[error("sweep a database")]
    Sweep(#[from] SweepError),
    /// The checkpoint could not be signed.
    #[error("sign a checkpoint")]
    Checkpoint(#[from] CheckpointError),
    /// It took longer than a run may.
    #[error("the chore took too long")]
    Late,
    /// The worker's name is no subject.
    #[error("the worker's name is no subject")]
    Actor,
}

/// Does chores, beside any number of others over the same stores.
#[derive(Debug)]
#[must_use = "upkeep does nothing until `run`"]
pub struct Upkeep {
    cluster: Cluster,
    settings: UpkeepSettings,
    signals: ChoreSignals,
    worker: Uuid,
    disbelieved: Disbelieved,
}

/// When this worker last did a chore before its row said so. Where others have other settings, or a clock that is wrong, they
/// would otherwise do it in turns, without end.
#[derive(Debug, Default)]
struct Disbelieved(Mutex<Vec<(ChoreName, Timestamp)>>);

impl Disbelieved {
    fn at(&self, name: ChoreName) -> Option<Timestamp> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(known, _)| *known == name).map(|(_, at)| *at)
    }

    fn note(&self, name: ChoreName, now: Timestamp) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(known, _)| *known != name);
        known.push((name, now));
    }
}

impl Upkeep {
    /// Over a cluster.
    ///
    /// # Errors
    /// [`UpkeepSettingsError`] naming the setting.
    pub fn new(
        cluster: Cluster,
        settings: &UpkeepSettings,
        signals: ChoreSignals,
    ) -> Result<Self, UpkeepSettingsError> {
        settings.check()?;
        Ok(Self {
            cluster,
            settings: settings.clone(),
            signals,
            worker: Uuid::new_v4(),
            disbelieved: Disbelieved::default(),
        })
    }

    /// Enters every chore that is not known yet; it is due after its time has passed once.
    ///
    /// # Errors
    /// [`UpkeepError`] when the control database does not answer.
    pub async fn enter(&self) -> Result<(), UpkeepError> {
        for name in ChoreName::ALL.iter().copied() {
            if self.row(name).await?.is_none() {
                self.make(name).await?;
            }
        }
        Ok(())
    }

    /// Looks every second whether something is due, until told to stop; drop it at any point.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let work = async {
            loop {
                for name in ChoreName::ALL.iter().copied() {
                    if self.look(name).await.is_err() {
                        self.signals.runs.get((name, ChoreOutcome::Failed)).inc();
                        pim_core::warn!("chore.failed", chore = name.name());
                    }
                }
                let jitter = u64::try_from(Uuid::new_v4().as_u128() % JITTER_MS).unwrap_or(0);
                tokio::time::sleep(LOOK_EVERY + Duration::from_millis(jitter)).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = stop => {}
        }
    }

    /// Does a chore if it is due and nobody is at it: what it came to.
    ///
    /// # Errors
    /// [`UpkeepError`]; it is tried again when the lease is over.
    pub async fn look(&self, name: ChoreName) -> Result<Option<u64>, UpkeepError> {
        let now = self.cluster.clock().now();
        let Some(row) = self.row(name).await? else {
            self.make(name).await?;
            return Ok(None);
        };
        let overdue = i64::try_from(now.since(row.due_at).as_secs()).unwrap_or(i64::MAX);
        self.signals.overdue.get(name).set(overdue);
        if !self.is_due(name, &row, now) || row.is_taken(now) || !self.take(name).await? {
            return Ok(None);
        }
        let done = tokio::time::timeout(RUN_MAX, self.effect(name)).await;
        let (came_to, is_left) = done.unwrap_or(Err(UpkeepError::Late))?;
        let outcome = if self.finish(name, came_to, is_left).await? { ChoreOutcome::Done } else { ChoreOutcome::Lost };
        self.signals.runs.get((name, outcome)).inc();
        self.signals.overdue.get(name).set(0);
        pim_core::info!("chore.done", chore = name.name(), came_to = came_to);
        Ok(Some(came_to))
    }

    /// Whether it is time: also when the row names a time that these settings would not have named, because somebody's clock
    /// was wrong or the setting was larger.
    fn is_due(&self, name: ChoreName, row: &Chore, now: Timestamp) -> bool {
        row.due_at <= now || (!self.is_credible(name, row, now) && !self.has_disbelieved(name, now))
    }

    fn is_credible(&self, name: ChoreName, row: &Chore, now: Timestamp) -> bool {
        row.due_at <= now.plus(self.settings.every(name) + CLOCKS_APART_MAX)
    }

    /// Whether this worker did so within the chore's time. Of what lies ahead it was this clock that was wrong.
    fn has_disbelieved(&self, name: ChoreName, now: Timestamp) -> bool {
        self.disbelieved.at(name).is_some_and(|at| at <= now && now < at.plus(self.settings.every(name)))
    }

    /// What it came to, and whether something is left.
    async fn effect(&self, name: ChoreName) -> Result<(u64, bool), UpkeepError> {
        match name {
            ChoreName::AuditCheckpoint => Ok((self.cluster.checkpoint_audit().await?, false)),
            ChoreName::IdempotencySweep => {
                let mut swept = 0;
                for _round in 0..ROUNDS_MAX {
                    let (round, failed): (u64, Option<SweepError>) = match self.cluster.sweep_idempotency().await {
                        Ok(round) => (round, None),
                        // What is old on the other shards goes all the same.
                        Err(error) => (error.swept, Some(error)),
                    };
                    self.signals.swept.get(()).inc_by(round);
                    swept += round;
                    if round == 0 {
                        return failed.map_or(Ok((swept, false)), |error| Err(error.into()));
                    }
                }
                Ok((swept, true))
            }
        }
    }

    async fn row(&self, name: ChoreName) -> Result<Option<Chore>, UpkeepError> {
        let permit = Permit::<Read>::system(REASON, LabAction::Read, LabResource::Operation);
        Ok(self.cluster.read_control::<Chore>(&context()?, &permit, Chore::id_of(name)).await?)
    }

    fn begin(&self, name: ChoreName) -> Result<Unit, UpkeepError> {
        Ok(self.cluster.begin_control(&context()?, Chore::id_of(name)))
    }

    /// Writes the row; false when somebody else has written it meanwhile.
    async fn commit(&self, mut unit: Unit, chore: &Chore) -> Result<bool, UpkeepError> {
        let version = unit.save(&permit(), chore)?;
        unit.append(&ReferenceChanged { table: "chore".to_owned(), id: chore.id.uuid(), version })?;
        match unit.commit().await {
            Ok(_) => Ok(true),
            Err(UnitError::Conflict | UnitError::Stale { .. } | UnitError::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn make(&self, name: ChoreName) -> Result<(), UpkeepError> {
        let unit = self.begin(name)?;
        let due_at = unit.at().plus(self.settings.every(name));
        let (id, name) = (Chore::id_of(name), name.name().to_owned());
        let chore = Chore { id, version: 0, name, due_at, runs: 0, came_to: 0, owner: None, lease_until: None };
        // Whoever was faster has made the same row.
        self.commit(unit, &chore).await.map(|_made| ())
    }

    /// Leases a chore: of two workers at once the unit of work lets one win.
    async fn take(&self, name: ChoreName) -> Result<bool, UpkeepError> {
        let mut unit = self.begin(name)?;
        let Some(mut chore) = unit.load::<Chore>(&permit(), Chore::id_of(name)).await? else { return Ok(false) };
        let now = unit.at();
        if !self.is_due(name, &chore, now) || chore.is_taken(now) {
            return Ok(false);
        }
        let is_early = chore.due_at > now;
        // If it fails, it is overdue from now on.
        chore.due_at = chore.due_at.min(now);
        (chore.owner, chore.lease_until) = (Some(self.worker), Some(now.plus(CHORE_LEASE)));
        let is_taken = self.commit(unit, &chore).await?;
        if is_taken && is_early {
            self.disbelieved.note(name, now);
        }
        Ok(is_taken)
    }

    /// Writes down that it is done and when it is due again, which is now when something is left; false when another worker
    /// has taken it over.
    async fn finish(&self, name: ChoreName, came_to: u64, is_left: bool) -> Result<bool, UpkeepError> {
        for _try in 0..TRIES_MAX {
            let mut unit = self.begin(name)?;
            let found = unit.load::<Chore>(&permit(), Chore::id_of(name)).await?;
            let Some(mut chore) = found.filter(|chore| chore.owner == Some(self.worker)) else { return Ok(false) };
            chore.due_at = unit.at().plus(self.settings.every(name));
            if is_left {
                chore.due_at = unit.at();
            }
            (chore.runs, chore.came_to) = (chore.runs + 1, came_to);
            (chore.owner, chore.lease_until) = (None, None);
            if self.commit(unit, &chore).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn context() -> Result<RequestContext, UpkeepError> {
    let actor = service_actor("upkeep").map_err(|_| UpkeepError::Actor)?;
    Ok(RequestContext::new(RequestId::mint(), actor, Deadline::after(PATIENCE)))
}

fn permit() -> Permit<Write> {
    Permit::<Write>::system(REASON, LabAction::Operate, LabResource::Operation)
}

impl Chore {
    /// Whether a lease keeps everybody away, also who has it: nobody is at two runs at once, and whoever failed would try again
    /// with every look, each time with another version, audit record and event.
    fn is_taken(&self, now: Timestamp) -> bool {
        self.lease_until.is_some_and(|until| holds(until, CHORE_LEASE, now))
    }
}
