//! Reading across shards: denied unless the call says why, bounded in shards, rows and time, honest about who did not answer.

#[cfg(test)]
mod tests;

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use pim_core::context::RequestContext;
use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::rbac::{Permit, Read};
use pim_core::shard::{MapVersion, ShardId};
use uuid::Uuid;

use crate::backend::DbError;
use crate::cluster::{Cluster, name_of};
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

    /// The request, with no more time than there is for all shards together.
    pub(crate) fn hurry(&self, cx: &RequestContext) -> RequestContext {
        cx.clone().capped(self.time_max)
    }

    /// Whether so many shards may be asked.
    pub(crate) const fn admit(&self, shards: usize) -> Result<(), FanOutError> {
        let Self { reason, shards_max, .. } = *self;
        if shards > shards_max { Err(FanOutError::TooManyShards { reason, shards, shards_max }) } else { Ok(()) }
    }

    /// Asks each of the shards for its part of a page, [`PARALLEL_MAX`] at a time.
    pub(crate) async fn ask<R, A>(&self, shards: Vec<ShardId>, ask: impl Fn(ShardId) -> A) -> Shown<R>
    where
        A: Future<Output = Result<Vec<R>, ReadError>>,
    {
        let reason = self.reason;
        let ask = |shard| {
            let answer = ask(shard);
            async move { (shard, answer.await) }
        };
        let answers: Vec<_> = stream::iter(shards).map(ask).buffer_unordered(PARALLEL_MAX).collect().await;
        let (mut parts, mut failed) = (Vec::new(), Vec::new());
        for (shard, answer) in answers {
            match answer {
                Ok(rows) => parts.push((shard, rows)),
                Err(error) => failed.push(ShardFailure { shard, reason, error }),
            }
        }
        failed.sort_by_key(|failure| failure.shard);
        Shown { parts, failed }
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
    /// The permit's scope is narrower than what is to be looked through.
    #[error("{reason:?} needs a permit for every row")]
    Narrow {
        /// Why it was to be done.
        reason: &'static str,
    },
    /// A shard of the newest map is not open here: what it has would seem not to be there.
    #[error("not every shard could be asked {reason:?}")]
    NotWhole {
        /// Why it was to be done.
        reason: &'static str,
        /// Which shard.
        #[source]
        error: DbError,
    },
}

impl IntoProblem for FanOutError {
    fn into_problem(self) -> Problem {
        match self {
            Self::TooManyShards { .. } => Problem::of(problem::INTERNAL).because("fan_out.too_many_shards"),
            Self::Narrow { .. } => Problem::of(problem::FORBIDDEN),
            Self::NotWhole { error, .. } => error.into_problem(),
        }
    }
}

/// A shard that did not answer.
#[derive(Debug, thiserror::Error)]
#[error("{} did not answer {reason:?}", name_of(*shard))]
pub struct ShardFailure {
    /// Which; the control database is [`CONTROL`](crate::cluster::CONTROL).
    pub shard: ShardId,
    /// What it was asked for.
    pub reason: &'static str,
    /// Why it did not.
    #[source]
    pub error: ReadError,
}

/// Where a reader of many pages goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<P = Uuid> {
    /// Every shard has shown all it has.
    End,
    /// Behind this id or place.
    After(P),
    /// At the same place: a shard did not answer, or buckets changed hands meanwhile, and nothing must be passed over.
    Again,
}

/// One page from all shards, by id or by whatever else its rows are in order of.
#[derive(Debug)]
pub struct Gathered<E, P = Uuid> {
    /// Rows, each from the shard that owns it. Incomplete when a shard failed.
    pub rows: Vec<E>,
    /// Who did not answer.
    pub failed: Vec<ShardFailure>,
    /// Where to go on.
    pub next: Next<P>,
}

/// What each shard has shown of a page.
pub(crate) struct Shown<R> {
    parts: Vec<(ShardId, Vec<R>)>,
    failed: Vec<ShardFailure>,
}

impl<R> Shown<R> {
    /// The page that these are parts of. Nothing is said of what comes behind it while a shard has not told what it has.
    pub(crate) fn page<P: Copy + Ord>(
        self,
        bound: usize,
        place_of: impl Fn(&R) -> P,
        is_home: impl Fn(ShardId, &R) -> bool,
    ) -> Gathered<R, P> {
        let Self { parts, failed } = self;
        let (rows, next) = merge(parts, bound, place_of, is_home);
        let next = if failed.is_empty() { next } else { Next::Again };
        Gathered { rows, failed, next }
    }
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
    /// // However often maps change meanwhile, it ends.
    /// for _ in 0..10_000 {
    ///     let gathered = cluster.list_across::<E>(cx, permit, FanOut::because("census"), page, &Consistency::Eventual).await?;
    ///     if let Some(failure) = gathered.failed.into_iter().next() {
    ///         return Err(failure.into());
    ///     }
    ///     match gathered.next {
    ///         Next::After(id) => page.after = Some(id),
    ///         Next::End => return Ok(count + gathered.rows.len()),
    ///         // A bucket moved while its rows were looked for: the page is not whole.
    ///         Next::Again => continue,
    ///     }
    ///     count += gathered.rows.len();
    /// }
    /// Err("the census has no end".into())
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
        fan_out.admit(shards.len())?;
        let cx = fan_out.hurry(cx);
        // A token speaks of single keys, and a page of many: only the newest commits are known to be new enough.
        let strong = matches!(consistency, Consistency::ReadYourWrites(token) if !token.is_empty());
        let consistency = if strong { &Consistency::Strong } else { consistency };
        let shown = fan_out.ask(shards, |shard| self.page_of::<E>(&cx, permit, shard, page, consistency)).await;
        // While a bucket moves, two shards have its rows; the map says whose are meant.
        let is_home = |shard: ShardId, row: &E| self.router().route(&row.home()).shard == shard;
        let gathered = shown.page(page.bound() as usize, |row: &E| row.id().uuid(), is_home);
        Ok(self.unless_remapped(&cx, map.version(), gathered).await)
    }

    /// A bucket that changed hands meanwhile may have been looked for where it was not, and a shard that came meanwhile was not
    /// asked: nothing is said of what comes behind the page.
    pub(crate) async fn unless_remapped<R, P>(
        &self,
        cx: &RequestContext,
        asked_by: MapVersion,
        gathered: Gathered<R, P>,
    ) -> Gathered<R, P> {
        let _late = self.refresh_map_until(cx.deadline().instant()).await;
        // A map that is there and not in use yet counts, as does one that cannot be read.
        let is_newest = self.0.directory.newest_map().is_ok_and(|newest| newest.version() == asked_by);
        let next = if is_newest && self.map().version() == asked_by { gathered.next } else { Next::Again };
        Gathered { next, ..gathered }
    }
}

/// The first `bound` rows in order, and where the next page begins.
fn merge<R, P: Copy + Ord>(
    shown: Vec<(ShardId, Vec<R>)>,
    bound: usize,
    id_of: impl Fn(&R) -> P,
    is_home: impl Fn(ShardId, &R) -> bool,
) -> (Vec<R>, Next<P>) {
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
