//! Reads that a replica may answer: who is asked, whether the answer is fresh enough, and what comes next.

use std::time::{Duration, Instant};

use pim_core::context::RequestContext;
use pim_core::shard::Bucket;
use tokio::sync::OwnedSemaphorePermit;

use super::{ReadError, in_time};
use crate::backend::{DbError, Row, Statement, Value};
use crate::cluster::{Endpoint, Group, Need, Shard};
use crate::consistency::Consistency;
use crate::signals::Nearby;

/// Most replicas that one read asks.
const ASKED_MAX: usize = 2;
/// First pause of a read that waits for a replica; it doubles.
const PAUSE_FIRST: Duration = Duration::from_millis(1);

/// A read on its way.
#[derive(Clone, Copy)]
pub(super) struct NearbyRead<'r> {
    pub(super) cx: &'r RequestContext,
    pub(super) shard: &'r Shard,
    /// Of the rows that are looked for, if they are of one.
    pub(super) bucket: Option<Bucket>,
    pub(super) consistency: &'r Consistency,
    /// How old an answer may be.
    pub(super) most: Option<Duration>,
    pub(super) select: &'r Statement,
    pub(super) one: bool,
}

/// What came of it.
pub(super) enum Answer {
    /// Fresh enough.
    Rows(Vec<Row>),
    /// The primary has to be asked, and this is the place among those who do.
    Primary(Option<OwnedSemaphorePermit>),
}

impl NearbyRead<'_> {
    /// A replica's answer, when one may be asked and is fresh enough.
    pub(super) async fn answer(self) -> Result<Answer, ReadError> {
        if *self.consistency == Consistency::Strong {
            return Ok(Answer::Primary(None));
        }
        in_time(self.cx)?;
        match self.shard.group() {
            Some(group) if group.has_replicas() => self.of_group(group).await,
            // It is the primary itself: its reads know how to wait for one that is lost, and whom to ask for what has left.
            _ if self.shard.replica().is_primary() => Ok(Answer::Primary(None)),
            _ => self.of_snapshot().await,
        }
    }

    /// From a snapshot that is held for a while.
    async fn of_snapshot(self) -> Result<Answer, ReadError> {
        let replica = self.shard.replica();
        if self.most.is_some_and(|most| !replica.is_within(most)) {
            return Ok(Answer::Primary(None));
        }
        let until = self.cx.deadline().instant();
        let mut rows = match replica.query(self.select.clone(), until).await {
            // The primary's reads know how to go on.
            Err(error) if error.speaks_of_the_server() => return Ok(Answer::Primary(None)),
            outcome => outcome?,
        };
        if let (true, Some(bucket)) = (rows.is_empty(), self.bucket) {
            if !replica.has_received(bucket, until).await? {
                return Ok(Answer::Primary(None));
            }
            // The bucket may have come with the next snapshot, and its rows with it.
            rows = replica.query(self.select.clone(), until).await?;
        }
        Ok(if is_met_by(self.consistency, &rows)? { Answer::Rows(rows) } else { Answer::Primary(None) })
    }

    /// From the better of two replicas that are fit; from another one when it fails or is behind; else from the primary.
    async fn of_group(self, group: &Group) -> Result<Answer, ReadError> {
        let (mut asked, mut why) = (Vec::with_capacity(ASKED_MAX), Nearby::Absent);
        group.budget().deposit();
        while let Some((index, endpoint)) = group.replica(self.most, &asked) {
            if !asked.is_empty() && !group.budget().withdraw(Instant::now()) {
                break;
            }
            asked.push(index);
            match self.of_endpoint(group, endpoint).await {
                Ok(Some((rows, how))) => {
                    group.signals().nearby(how);
                    return Ok(Answer::Rows(rows));
                }
                Ok(None) => why = Nearby::Stale,
                Err(ReadError::Database(_) | ReadError::Deadline) => {
                    in_time(self.cx)?;
                    why = Nearby::Failed;
                }
                Err(error) => return Err(error),
            }
            if asked.len() == ASKED_MAX {
                break;
            }
        }
        group.signals().nearby(why);
        self.fall_back(group).await
    }

    /// A place among those who ask the primary. Whoever waits for a lost one waits among those who are bounded and told of it.
    async fn fall_back(self, group: &Group) -> Result<Answer, ReadError> {
        let until = self.cx.deadline().instant();
        if !group.serves(Need::Read) {
            group.ready(until, Need::Read).await?;
        }
        match group.fall_back(until).await {
            Err(DbError::Late) => {
                // Those before it may wait for a server that has been lost meanwhile.
                group.ready(until, Need::Read).await?;
                Err(ReadError::Deadline)
            }
            place => Ok(Answer::Primary(Some(place?))),
        }
    }

    /// One replica's answer, if it is fresh enough, or becomes so in a moment.
    async fn of_endpoint(self, group: &Group, endpoint: &Endpoint) -> Result<Option<(Vec<Row>, Nearby)>, ReadError> {
        let rows = self.ask(group, endpoint).await?;
        if is_met_by(self.consistency, &rows)? {
            return Ok(self.at_home(group, endpoint, rows).await?.map(|rows| (rows, Nearby::Replica)));
        }
        let settings = group.settings();
        if settings.catch_up_max.is_zero() || rows.is_empty() || !endpoint.patience.waits() {
            return Ok(None);
        }
        let (give_up, mut pause) = (Instant::now() + settings.catch_up_max, PAUSE_FIRST);
        loop {
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() || in_time(self.cx).is_err() {
                endpoint.patience.learn(false);
                return Ok(None);
            }
            tokio::time::sleep(pause.min(left)).await;
            pause *= 2;
            let rows = self.ask(group, endpoint).await?;
            if is_met_by(self.consistency, &rows)? {
                endpoint.patience.learn(true);
                return Ok(Some((rows, Nearby::CaughtUp)));
            }
        }
    }

    async fn ask(self, group: &Group, endpoint: &Endpoint) -> Result<Vec<Row>, DbError> {
        self.ask_for(group, endpoint, self.select.clone(), self.one).await
    }

    /// A call of a replica, which has no longer than a probe, and no more than half of the time that is left: another server may
    /// well be quicker.
    async fn ask_for(
        self,
        group: &Group,
        endpoint: &Endpoint,
        select: Statement,
        one: bool,
    ) -> Result<Vec<Row>, DbError> {
        let now = Instant::now();
        let _under_way = endpoint.load.begin(now);
        let probe_max = group.settings().probe_max;
        let patience = probe_max.min(self.cx.deadline().remaining().unwrap_or_default() / 2);
        let until = tokio::time::Instant::now() + patience;
        let asked = async {
            let mut reader = endpoint.reads.read_until(until).await?;
            if one { Ok(reader.first(select).await?.into_iter().collect()) } else { reader.query(select).await }
        };
        let outcome = asked.await;
        match &outcome {
            Ok(_) => endpoint.breaker.succeed(),
            // It was not asked: all of its connections are in use or being opened.
            Err(DbError::Late) if !endpoint.reads.has_room() => {}
            // It was hardly given time.
            Err(DbError::Late | DbError::Unanswered) if patience < probe_max / 4 => {}
            Err(_) => endpoint.breaker.fail(now, Instant::now()),
        }
        outcome
    }

    /// These rows, if there are some. Nothing found says something only of a bucket that was there before it was looked: it may
    /// have come with its rows since, so that they are looked for once more behind it.
    async fn at_home(self, group: &Group, endpoint: &Endpoint, rows: Vec<Row>) -> Result<Option<Vec<Row>>, ReadError> {
        let (true, Some(bucket)) = (rows.is_empty(), self.bucket) else { return Ok(Some(rows)) };
        let here = Statement::of(crate::fence::HERE).bind(bucket.get());
        if self.ask_for(group, endpoint, here, true).await?.is_empty() {
            return Ok(None);
        }
        let rows = self.ask(group, endpoint).await?;
        Ok(is_met_by(self.consistency, &rows)?.then_some(rows))
    }
}

/// Whether these rows show what the token's holder has seen; the key's number is of the same snapshot.
pub(super) fn is_met_by(consistency: &Consistency, rows: &[Row]) -> Result<bool, ReadError> {
    let Consistency::ReadYourWrites(token) = consistency else { return Ok(true) };
    Ok(match rows.first() {
        Some(row) => {
            let n = if *row.get(0) == Value::Null { 0 } else { row.count(0)? };
            token.is_met_by(row.uuid(2)?, n)
        }
        // Not there, or not yet: only a token that has seen nothing of anybody is met by that.
        None => token.is_empty(),
    })
}
