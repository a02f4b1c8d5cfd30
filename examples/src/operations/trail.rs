//! As much of the audit trail of all shards as one answer needs.

use pim_core::context::RequestContext;
use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::rbac::{Permit, Read};
use pim_data::audit::{AuditEntry, AuditFilter};
use pim_data::cluster::Cluster;
use pim_data::fan_out::{FanOut, FanOutError, Next, ShardFailure};
use pim_data::repository::{Page, ReadError};

use crate::rig::Failure;

/// Records that match, oldest first.
#[derive(Debug)]
pub struct Trail {
    /// At most as many as there are in the pages that were asked for.
    pub entries: Vec<AuditEntry>,
    /// Whether these are all.
    pub complete: bool,
}

/// A trail that cannot be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrailError {
    /// It was not begun.
    #[error(transparent)]
    Begin(#[from] FanOutError),
    /// A shard did not answer: what it has would seem not to be there.
    #[error(transparent)]
    Shard(#[from] ShardFailure),
}

impl From<TrailError> for Failure {
    fn from(error: TrailError) -> Self {
        match error {
            TrailError::Begin(error) => error.into_problem(),
            TrailError::Shard(ShardFailure { error: ReadError::Deadline, .. }) => {
                Problem::of(problem::DEADLINE_EXCEEDED)
            }
            TrailError::Shard(_) => Problem::of(problem::UNAVAILABLE).retry_after_secs(1),
        }
        .into()
    }
}

impl Trail {
    /// Goes through so many pages of [`PAGE_MAX`](pim_data::repository::PAGE_MAX) records at most.
    ///
    /// # Errors
    /// [`TrailError`] as soon as one shard does not answer.
    pub async fn gather(
        (cluster, cx, permit): (&Cluster, &RequestContext, &Permit<Read>),
        fan_out: FanOut,
        filter: &AuditFilter,
        pages_max: usize,
    ) -> Result<Self, TrailError> {
        let (mut page, mut entries) = (Page::FIRST, Vec::new());
        for _ in 0..pages_max {
            let part = cluster.audit(cx, permit, fan_out, filter, page).await?;
            if let Some(failure) = part.failed.into_iter().next() {
                return Err(failure.into());
            }
            match part.next {
                // The map has changed meanwhile: the same page once more.
                Next::Again => continue,
                Next::After(place) => page.after = Some(place),
                Next::End => page.after = None,
            }
            entries.extend(part.rows);
            if page.after.is_none() {
                return Ok(Self { entries, complete: true });
            }
        }
        Ok(Self { entries, complete: false })
    }
}
