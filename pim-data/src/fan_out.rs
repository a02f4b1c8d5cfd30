//! Reading across shards: denied unless the call says why, bounded in shards, rows and time, honest about who did not answer.

#[cfg(test)]
mod tests;

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use pim_core::context::RequestContext;
use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::rbac::{Permit, Read};
use pim_core::shard::ShardId;
use uuid::Uuid;

use crate::cluster::Cluster;
use crate::consistency::Consistency;
use crate::entity::Entity;
use crate::repository::{Page, ReadError};

/// How many shards are asked at the same time.
pub const PARALLEL_MAX: usize = 8;

/// Why a call goes to every shard, and how far it may go.
///
/// ```
/// use std::time::Duration;
/// use pim_data::fan_out::FanOut;
///
/// let few = FanOut::because("nightly census").shards_max(16).time_max(Duration::from_secs(1));
/// assert_eq!(few.reason(), "nightly census");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FanOut {
    reason: &'static str,
    shards_max: usize,
    time_max: Duration,
}

impl FanOut {
    /// Names the reason; it stands in every error. At most 64 shards and two seconds.
    #[must_use]
    pub const fn because(reason: &'static str) -> Self {
        Self { reason, shards_max: 64, time_max: Duration::from_secs(2) }
    }

    /// Most shards that the map may have. More is refused before any is asked.
    #[must_use]
    pub const fn shards_max(mut self, shards: usize) -> Self {
        self.shards_max = shards;
        self
    }

    /// Most time for all shards together; the request's own deadline holds anyway.
    #[must_use]
    pub const fn time_max(mut self, time: Duration) -> Self {
        self.time_max = time;
        self
    }

    /// Why.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        self.reason
    }
}

/// A fan-out that was not begun.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FanOutError {
    /// It would have had to ask more shards than it said.
    #[error("{reason:?} may ask {shards_max} shards, and there are {shards}")]
    TooManyShards {
        /// Why it was to be done.
        reason: &'static str,
        /// How many there are.
        shards: usize,
        /// How many it may ask.
        shards_max: usize,
    },
}

impl IntoProblem for FanOutError {
    fn into_problem(self) -> Problem {
        Problem::of(problem::INTERNAL)
    }
}

/// A shard that did not answer.
#[derive(Debug, thiserror::Error)]
#[error("shard {shard} did not answer {reason:?}")]
pub struct ShardFailure {
    /// Which.
    pub shard: ShardId,
    /// What it was asked for.
    pub reason: &'static str,
    /// Why it did not.
    #[source]
    pub error: ReadError,
}

/// Where a reader of many pages goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Every shard has shown all it has.
    End,
    /// Behind this id.
    After(Uuid),
    /// At the same place: a shard did not answer, or buckets changed hands meanwhile, and nothing must be passed over.
    Again,
}

/// One page from all shards, by id.
#[derive(Debug)]
pub struct Gathered<E> {
    /// Rows, each from the shard that owns it. Incomplete when a shard failed.
    pub rows: Vec<E>,
    /// Who did not answer.
    pub failed: Vec<ShardFailure>,
    /// Where to go on.
    pub next: Next,
}

impl Cluster {
    /// The rows of every shard, by id, a page at a time.
    ///
    /// A row that is there from the first page to the last is shown exactly once, whatever is inserted meanwhile. A page may
    /// have fewer rows than its limit and yet not be the last: [`Gathered::next`] tells. A token that asks
    /// for anything is answered with the newest commits.
    ///
    /// ```no_run
    /// # use pim_core::{context::RequestContext, rbac::{Permit, Read}};
    /// # use pim_data::{cluster::Cluster, consistency::Consistency, entity::Entity};
    /// use pim_data::fan_out::{FanOut, Next};
    /// use pim_data::repository::Page;
    ///
    /// # async fn census<E: Entity>(cluster: &Cluster, cx: &RequestContext, permit: &Permit<Read>)
    /// # -> Result<usize, Box<dyn std::error::Error>> {
    /// let (mut count, mut page) = (0, Page { after: None, limit: 500 });
    /// loop {
    ///     let gathered = cluster.list_across::<E>(cx, permit, FanOut::because("census"), page, &Consistency::Eventual).await?;
    ///     if let Some(failure) = gathered.failed.into_iter().next() {
    ///         return Err(failure.into());
    ///     }
    ///     count += gathered.rows.len();
    ///     let Next::After(id) = gathered.next else { return Ok(count) };
    ///     page.after = Some(id);
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`FanOutError`] when there are more shards than the reason allows; a shard that fails is told in [`Gathered::failed`].
    pub async fn list_across<E: Entity>(
        &self,
        cx: &RequestContext,
        permit: &Permit<Read>,
        fan_out: FanOut,
        page: Page,
        consistency: &Consistency,
    ) -> Result<Gathered<E>, FanOutError> {
        let map = self.map();
        let shards: Vec<_> = map.serving().map(|shard| shard.id).collect();
        let FanOut { reason, shards_max, time_max } = fan_out;
        if shards.len() > shards_max {
            return Err(FanOutError::TooManyShards { reason, shards: shards.len(), shards_max });
        }
        let cx = cx.clone().capped(time_max);
        // A token speaks of single keys, and a page of many: only the newest commits are known to be new enough.
        let strong = matches!(consistency, Consistency::ReadYourWrites(token) if !token.is_empty());
        let consistency = if strong { &Consistency::Strong } else { consistency };
        let ask = async |shard: ShardId| {
            let answer = self.page_of::<E>(&cx, permit, shard, page, consistency).await;
            answer.map(|rows| (shard, rows)).map_err(|error| ShardFailure { shard, reason, error })
        };
        let answers: Vec<_> = stream::iter(shards).map(ask).buffer_unordered(PARALLEL_MAX).collect().await;
        let (mut shown, mut failed) = (Vec::new(), Vec::new());
        for answer in answers {
            match answer {
                Ok(part) => shown.push(part),
                Err(failure) => failed.push(failure),
            }
        }
        failed.sort_by_key(|failure| failure.shard);
        // While a bucket moves, two shards have its rows; the map says whose are meant.
        let is_home = |shard: ShardId, row: &E| self.router().route(&row.home()).shard == shard;
        let (rows, next) = merge(shown, page.bound() as usize, |row: &E| row.id().uuid(), is_home);
        let next = if failed.is_empty() { next } else { Next::Again };
        // A bucket that changed hands meanwhile may have been looked for where it was not: nothing is said of its rows.
        let _newest = self.refresh_map_until(cx.deadline().instant()).await;
        let next = if self.map().version() == map.version() { next } else { Next::Again };
        Ok(Gathered { rows, failed, next })
    }
}

/// The first `bound` rows by id, and where the next page begins.
fn merge<R>(
    shown: Vec<(ShardId, Vec<R>)>,
    bound: usize,
    id_of: impl Fn(&R) -> Uuid,
    is_home: impl Fn(ShardId, &R) -> bool,
) -> (Vec<R>, Next) {
    // Beyond the end of a full page its shard may have more, which would come before what others show there.
    let full = shown.iter().filter(|(_, rows)| rows.len() >= bound).filter_map(|(_, rows)| rows.last());
    let known_to = full.map(&id_of).min();
    let mut rows = Vec::with_capacity(bound);
    for (shard, part) in shown {
        rows.extend(part.into_iter().filter(|row| is_home(shard, row)));
    }
    rows.retain(|row| known_to.is_none_or(|end| id_of(row) <= end));
    rows.sort_unstable_by_key(&id_of);
    let cut = rows.len() > bound;
    rows.truncate(bound);
    let next = match rows.last() {
        Some(last) if cut => Next::After(id_of(last)),
        _ => known_to.map_or(Next::End, Next::After),
    };
    (rows, next)
}
