//! As much of the audit trail of all shards as one answer needs.

use std::time::Duration;

use pim_core::context::RequestContext;
use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::rbac::{Permit, Read};
use pim_data::audit::{AuditEntry, AuditFilter};
use pim_data::cluster::Cluster;
use pim_data::fan_out::{FanOut, FanOutError, Gathered, Next, ShardFailure};
use pim_data::repository::{Page, ReadError};
use tokio::time::sleep;

use crate::rig::Failure;

/// Before the same page is asked for once more: all shards answer for it.
const PAUSE: Duration = Duration::from_millis(20);

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
        let ask = |page| cluster.audit(cx, permit, fan_out, filter, page);
        let (entries, complete) = pages(pages_max, ask).await?;
        Ok(Self { entries, complete })
    }
}

/// What is on so many pages at most, and whether it is all.
async fn pages<R, P: Copy, A>(pages_max: usize, ask: impl Fn(Page<P>) -> A) -> Result<(Vec<R>, bool), TrailError>
where
    A: Future<Output = Result<Gathered<R, P>, FanOutError>>,
{
    let (mut page, mut rows, mut whole) = (Page::FIRST, Vec::new(), 0);
    while whole < pages_max {
        let part = ask(page).await?;
        if let Some(failure) = part.failed.into_iter().next() {
            return Err(failure.into());
        }
        match part.next {
            // The map has changed meanwhile: the same page once more. Ends: shards answer nobody whose time is over.
            Next::Again => {
                sleep(PAUSE).await;
                continue;
            }
            Next::After(place) => page.after = Some(place),
            Next::End => page.after = None,
        }
        whole += 1;
        rows.extend(part.rows);
        if page.after.is_none() {
            return Ok((rows, true));
        }
    }
    Ok((rows, false))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::ready;
    use std::time::Instant;

    use pim_core::shard::ShardId;

    use super::*;

    /// What is on two pages at most, the first of which is whole once the map has changed so often.
    async fn found(changes: usize, then: Next<u8>) -> (Vec<usize>, bool) {
        let asked = Cell::new(0);
        let ask = |page: Page<u8>| {
            let before = asked.replace(asked.get() + 1);
            assert_eq!(page.after.is_some(), before > changes, "the same page as long as the map changes");
            let next = if before < changes { Next::Again } else { then };
            ready(Ok(Gathered { rows: vec![before], failed: Vec::new(), next }))
        };
        pages(2, ask).await.unwrap()
    }

    /// Guard: what is there is not told to be unknown, nor to be too long, because buckets move.
    #[tokio::test]
    async fn a_page_that_is_asked_for_again_is_one_page() {
        assert_eq!(found(5, Next::End).await, (vec![5], true));
        assert_eq!(found(5, Next::After(7)).await, (vec![5, 6], false), "pages have a bound all the same");
    }

    #[tokio::test]
    async fn a_page_is_not_asked_for_again_in_haste() {
        let since = Instant::now();
        found(3, Next::End).await;
        assert!(since.elapsed() >= PAUSE * 3, "{:?}", since.elapsed());
    }

    #[tokio::test]
    async fn whoever_runs_out_of_time_is_told_so() {
        let ask = |_: Page<u8>| {
            let failed = vec![ShardFailure { shard: ShardId(1), reason: "a test", error: ReadError::Deadline }];
            ready(Ok(Gathered { rows: vec![0], failed, next: Next::Again }))
        };
        let late = pages(2, ask).await.unwrap_err();
        assert!(matches!(late, TrailError::Shard(ShardFailure { error: ReadError::Deadline, .. })), "{late}");
    }
}
