//! Whose an operation's row is: two may be at the same one, when the first was taken for broken off.

use pim_core::clock::Timestamp;
use pim_core::context::RequestContext;
use pim_core::rbac::{Permit, Write};
use pim_data::cluster::Cluster;
use pim_data::entity::Entity as _;
use pim_data::unit::UnitError;
use pim_events::AppendExt as _;

use super::{OperationRecord, OperationState};
use crate::ids::OperationId;
use crate::reference::ReferenceChanged;
use crate::rig::Failure;

/// How somebody who is at an operation knows the row again that says so.
#[derive(Clone, Debug)]
pub(super) struct Tenure {
    version: u64,
    /// The time that was written last without an answer: whether that row is there is not known.
    unanswered: Option<Timestamp>,
}

impl Tenure {
    /// Begun with this version of the row.
    pub(super) const fn since(version: u64) -> Self {
        Self { version, unanswered: None }
    }

    /// Whether nobody else has begun it since.
    pub(super) fn is_of(&self, row: &OperationRecord) -> bool {
        let is_unanswered = row.version == self.version + 1 && Some(row.began_at) == self.unanswered;
        row.state == OperationState::Begun && (row.version == self.version || is_unanswered)
    }
}

/// Has the row say that whoever is at it is so still. Does nothing to one that is somebody else's.
pub(super) async fn renew(
    cluster: &Cluster,
    permit: &Permit<Write>,
    cx: &RequestContext,
    id: OperationId,
    tenure: &mut Tenure,
) -> Result<(), Failure> {
    let mut unit = cluster.begin_control(cx, id);
    let Some(mut record) = unit.load::<OperationRecord>(permit, id).await?.filter(|row| tenure.is_of(row)) else {
        return Ok(());
    };
    record.began_at = unit.at();
    *tenure = Tenure { version: record.version, unanswered: Some(record.began_at) };
    let version = unit.save(permit, &record)?;
    unit.append(&ReferenceChanged { table: OperationRecord::TABLE.name.to_owned(), id: id.uuid(), version })?;
    let committed: Result<_, UnitError> = unit.commit().await;
    committed?;
    *tenure = Tenure::since(version);
    Ok(())
}
