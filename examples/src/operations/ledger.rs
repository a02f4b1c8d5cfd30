//! Every operation leaves a row: who asked for what, and what came of it. What it does lies outside of the control database,
//! so the row is written before, and the answer with it afterwards.
//!
//! The row's unit of work carries request and user into the audit trail, and the idempotency key makes a retry the same
//! operation. Whoever is killed in between leaves a row that has begun; a retry after [`LEASE`] does it again. Whoever
//! is at one says every now and then that it goes on.

mod tenure;
#[cfg(test)]
mod tests;

use std::time::Duration;

use pim_core::clock::Timestamp;
use pim_core::context::RequestContext;
use pim_core::deadline::Deadline;
use pim_core::id::Id;
use pim_core::problem::{self, Problem, ProblemType};
use pim_core::rbac::{Permit, Write};
use pim_data::cluster::Cluster;
use pim_data::entity::{Column, ColumnKind, Entity as _};
use pim_data::unit::UnitError;
use pim_events::AppendExt as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use self::tenure::{Tenure, renew};
use crate::ids::{OperationId, OperationKind};
use crate::policy::LabResource;
use crate::reference::ReferenceChanged;
use crate::rig::{Answer, Endpoints, Failure, Operation, is_recent, list_control, write_control};
use crate::workers::Stores;

/// How long an operation that says nothing is taken to go on before a retry does it again.
pub const LEASE: Duration = Duration::from_secs(60);
/// How often it says that it goes on: several times in a lease, should the control database be away.
const RENEWED_EVERY: Duration = Duration::from_secs(15);
/// Time to write down what came of it, also when the caller's own is over.
const CLOSING: Duration = Duration::from_secs(5);

/// An equal operation has begun and not ended.
pub const IN_PROGRESS: ProblemType = ProblemType::new("operation-in-progress", 409, "The operation is being done");

/// Where an operation is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Asked for; being done, or broken off.
    Begun,
    /// Done.
    Done,
    /// It could not be done; nothing was changed, or asking again goes on.
    Refused,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OperationRecord {
    /// Which.
    #[schema(value_type = String, format = "uuid")]
    pub id: OperationId,
    /// Rises by one with each change.
    pub version: u64,
    /// What is done, such as `projection.rebuild`.
    pub name: String,
    /// To what.
    pub target: String,
    /// How.
    #[schema(value_type = Object)]
    pub parameters: Value,
    /// State.
    pub state: OperationState,
    /// When it began last, or said that it goes on.
    #[schema(value_type = String, format = DateTime)]
    pub began_at: Timestamp,
}

pim_data::entity! {
    impl Entity for OperationRecord {
        kind: OperationKind,
        resource: LabResource::Operation,
        table: "operation",
        home: id,
        columns: [
            Column::new("name", ColumnKind::Text).shown(),
            Column::new("target", ColumnKind::Text).shown(),
            Column::new("parameters", ColumnKind::Json).shown(),
            Column::new("state", ColumnKind::Text).shown(),
            Column::new("began_at", ColumnKind::Time).shown(),
        ],
    }
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Intent {
    name: &'static str,
    target: String,
    parameters: Value,
}

impl Intent {
    /// An operation on something.
    pub fn new(name: &'static str, target: impl Into<String>, parameters: Value) -> Self {
        Self { name, target: target.into(), parameters }
    }
}

/// Does what is intended, once for each idempotency key: writes down that it begins, lets `effect` happen, and keeps the answer.
///
/// The effect must bear being done again: a caller who was told nothing asks again.
///
/// # Errors
/// [`IN_PROGRESS`] while an equal operation has begun and not ended, also when that one has taken over since; `already-exists` when
/// it was done longer ago than answers are kept; `idempotency-mismatch` for another one under the same key; and the effect's own failures, which are not kept, so that a retry tries again.
pub async fn operate(
    cluster: &Cluster,
    permit: &Permit<Write>,
    cx: &RequestContext,
    intent: Intent,
    effect: impl Future<Output = Result<Answer, Failure>>,
) -> Result<Answer, Failure> {
    let permit = &permit.for_resource(LabResource::Operation);
    let doing = Doing { cluster, permit, cx, id: id_of(cx)? };
    doing.through(&intent, RENEWED_EVERY, effect).await
}

/// What came of an equal submission before, for whoever refuses what the present state of things does not allow: it did when
/// that one was done, and is no reason to keep its answer back.
///
/// # Errors
/// `idempotency-mismatch` for another one under the same key, and what reading the row fails by.
pub async fn answered(
    cluster: &Cluster,
    permit: &Permit<Write>,
    cx: &RequestContext,
) -> Result<Option<Answer>, Failure> {
    let (permit, id) = (permit.for_resource(LabResource::Operation), id_of(cx)?);
    match cluster.begin_control(cx, id).load::<OperationRecord>(&permit, id).await {
        Err(UnitError::Replay(stored)) => Ok(Some(Answer::replayed(stored))),
        other => other.map(|_| None).map_err(Failure::from),
    }
}

/// As [`operate`], in a task of its own, for what goes on when the caller's time is over and takes as long as it takes.
///
/// # Errors
/// As [`operate`].
pub async fn operate_to_its_end(
    cluster: Cluster,
    permit: &Permit<Write>,
    cx: RequestContext,
    intent: Intent,
    effect: impl Future<Output = Result<Answer, Failure>> + Send + 'static,
) -> Result<Answer, Failure> {
    let permit = permit.for_resource(LabResource::Operation);
    let operated = async move { operate(&cluster, &permit, &cx, intent, effect).await };
    tokio::spawn(operated).await.map_err(|_| Problem::of(problem::INTERNAL))?
}

/// The operation that a request is.
///
/// # Errors
/// `idempotency-key-missing`: without a key it is none.
pub fn id_of(cx: &RequestContext) -> Result<OperationId, Problem> {
    let scope = cx.idempotency().ok_or_else(|| Problem::of(problem::IDEMPOTENCY_KEY_MISSING))?;
    Ok(Id::derive(scope.scope(), 0))
}

fn in_progress() -> Failure {
    Problem::of(IN_PROGRESS).retry_after_secs(1).into()
}

/// An operation of somebody's.
#[derive(Clone, Copy)]
struct Doing<'a> {
    cluster: &'a Cluster,
    permit: &'a Permit<Write>,
    cx: &'a RequestContext,
    id: OperationId,
}

/// What has begun, and when.
enum Begun {
    /// It has ended before: what came of it.
    Before(Answer),
    /// It is this one's to do.
    Now(Tenure),
}

impl Doing<'_> {
    /// Does it and says every now and then that it goes on.
    async fn through(
        self,
        intent: &Intent,
        every: Duration,
        effect: impl Future<Output = Result<Answer, Failure>>,
    ) -> Result<Answer, Failure> {
        let tenure = match self.begin(intent).await? {
            Begun::Before(answered) => return Ok(answered),
            Begun::Now(tenure) => tenure,
        };
        let (going_on, ended) = tokio::sync::oneshot::channel::<()>();
        let effect = async move {
            let outcome = effect.await;
            drop(going_on);
            outcome
        };
        // The effect never waits for what the row says, and the row is left alone once it has ended.
        let (outcome, tenure) = tokio::join!(effect, self.renewed(tenure, every, ended));
        self.end(tenure, outcome).await
    }

    /// Writes down that the operation begins, unless it has ended before.
    async fn begin(self, intent: &Intent) -> Result<Begun, Failure> {
        let Self { cluster, permit, cx, id } = self;
        let mut tries = pim_data::unit::Tries::of(cluster, cx);
        loop {
            let mut unit = cluster.begin_control(cx, id);
            let known = match unit.load::<OperationRecord>(permit, id).await {
                Err(UnitError::Replay(stored)) => return Ok(Begun::Before(Answer::replayed(stored))),
                Err(error) if tries.again(&error).await => continue,
                loaded => loaded?,
            };
            let now = unit.at();
            if let Some(known) = &known {
                let is_other =
                    known.name != intent.name || known.target != intent.target || known.parameters != intent.parameters;
                if is_other {
                    return Err(UnitError::IdempotencyMismatch.into());
                }
                if known.state == OperationState::Begun && is_recent(known.began_at, LEASE, now) {
                    return Err(in_progress());
                }
                // What came of it was answered, longer ago than answers are kept.
                if known.state == OperationState::Done {
                    let done = Problem::of(problem::ALREADY_EXISTS).detail("the operation of this key is done");
                    return Err(done.with("entity", OperationRecord::TABLE.name).with("id", id.to_string()).into());
                }
            }
            let record = OperationRecord {
                id,
                version: known.map_or(0, |known| known.version),
                name: intent.name.to_owned(),
                target: intent.target.clone(),
                parameters: intent.parameters.clone(),
                state: OperationState::Begun,
                began_at: now,
            };
            let version = unit.save(permit, &record)?;
            unit.append(&ReferenceChanged { table: OperationRecord::TABLE.name.to_owned(), id: id.uuid(), version })?;
            match unit.commit().await {
                Ok(_) => return Ok(Begun::Now(Tenure::since(version))),
                // Somebody else has begun it in between.
                Err(UnitError::AlreadyExists { .. } | UnitError::Stale { .. }) => return Err(in_progress()),
                Err(error) if tries.again(&error).await => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Has the row say that it goes on until it has ended, or is somebody else's.
    async fn renewed(
        self,
        mut tenure: Tenure,
        every: Duration,
        mut ended: tokio::sync::oneshot::Receiver<()>,
    ) -> Tenure {
        loop {
            tokio::select! {
                _ = &mut ended => return tenure,
                () = tokio::time::sleep(every) => {}
            }
            // One that cannot be written is written the next time.
            let _not_this_time = renew(self.cluster, self.permit, &self.closing(), self.id, &mut tenure).await;
        }
    }

    /// Writes down what came of it, and tells the caller.
    async fn end(self, tenure: Tenure, outcome: Result<Answer, Failure>) -> Result<Answer, Failure> {
        match outcome {
            Ok(answer) => {
                let scope = self.cx.idempotency().cloned();
                let cx = scope.map_or_else(|| self.closing(), |scope| self.closing().with_idempotency(scope));
                self.close(&cx, &tenure, OperationState::Done, &answer).await
            }
            Err(failure) => {
                let nothing = Answer::ok(&Value::Null)?;
                // The failure is what the caller is told, whether or not it could be written down.
                let _unwritten = self.close(&self.closing(), &tenure, OperationState::Refused, &nothing).await;
                Err(failure)
            }
        }
    }

    /// The same request with time to write, and no key.
    fn closing(self) -> RequestContext {
        let cx = RequestContext::new(self.cx.request_id(), self.cx.actor().clone(), Deadline::after(CLOSING));
        cx.with_trace(self.cx.trace())
    }

    async fn close(
        self,
        cx: &RequestContext,
        tenure: &Tenure,
        state: OperationState,
        answer: &Answer,
    ) -> Result<Answer, Failure> {
        let Self { cluster, permit, id, .. } = self;
        write_control(cluster, cx, id, move |mut unit| async move {
            let known = unit.load::<OperationRecord>(permit, id).await?;
            let mut record = known.ok_or_else(|| Problem::of(problem::NOT_FOUND))?;
            // Somebody took it for broken off and does it again: what comes of that is the answer.
            if !tenure.is_of(&record) {
                return Err(in_progress());
            }
            record.state = state;
            let version = unit.save(permit, &record)?;
            unit.append(&ReferenceChanged { table: OperationRecord::TABLE.name.to_owned(), id: id.uuid(), version })?;
            Ok((unit, answer.clone()))
        })
        .await
    }
}

/// The list of operations, for the admin service.
pub(super) fn endpoints() -> Endpoints<Stores> {
    let listed = Operation::list::<OperationRecord>("/v1/admin/operations", "Lists what was done by whom");
    Endpoints::new().serve(listed, list_control::<OperationRecord>)
}
