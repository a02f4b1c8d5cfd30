//! Running a change against units of work until one commits, the request turns out to be answered, or it fails for good.

use std::sync::{Arc, Mutex, PoisonError};

use pim_core::context::RequestContext;
use pim_core::shard::HomeKey;
use serde::Serialize;
use serde_json::Value as Json;

use super::tries::Why;
use super::{Tries, Unit, UnitError};
use crate::cluster::Cluster;
use crate::consistency::ConsistencyToken;
use crate::idempotency::StoredAnswer;

/// What a change answers when its unit commits: a status and a JSON body. It is kept for whoever submits the same again.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    status: u16,
    body: Json,
}

impl Answer {
    /// An HTTP status with a body.
    #[must_use]
    pub const fn new(status: u16, body: Json) -> Self {
        Self { status, body }
    }

    /// 200 with what was written.
    ///
    /// # Errors
    /// [`UnitError::Given`] when it has no JSON.
    pub fn ok(body: &impl Serialize) -> Result<Self, UnitError> {
        Self::of(200, body)
    }

    /// 201 with what was made.
    ///
    /// # Errors
    /// [`UnitError::Given`] when it has no JSON.
    pub fn created(body: &impl Serialize) -> Result<Self, UnitError> {
        Self::of(201, body)
    }

    fn of(status: u16, body: &impl Serialize) -> Result<Self, UnitError> {
        let body = serde_json::to_value(body).map_err(|error| UnitError::given("unit.answer", error))?;
        Ok(Self { status, body })
    }
}

/// What a write came to: the same for whoever asks first and for whoever asks again.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Written {
    /// HTTP status.
    pub status: u16,
    /// JSON body.
    pub body: Json,
    /// Lets a later read see at least what was written.
    pub token: ConsistencyToken,
    /// Whether an earlier submission has written it; this one has written nothing.
    pub is_replay: bool,
}

impl From<StoredAnswer> for Written {
    fn from(stored: StoredAnswer) -> Self {
        Self { status: stored.status, body: stored.body, token: stored.token, is_replay: true }
    }
}

/// What a unit was told when it read. The unit may be gone by then, and its error be another one's.
#[derive(Clone, Debug, Default)]
pub(super) struct Told(Arc<Mutex<Option<Outcome>>>);

/// What becomes of a change whatever its own error is.
#[derive(Debug)]
enum Outcome {
    Answered(StoredAnswer),
    Again(Why),
}

impl Told {
    pub(super) fn note(&self, error: &UnitError) {
        let outcome = match error {
            UnitError::Replay(stored) => Outcome::Answered(stored.clone()),
            error => match Why::of(error) {
                Some(why) => Outcome::Again(why),
                None => return,
            },
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }

    fn take(&self) -> Option<Outcome> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Cluster {
    /// Runs a change in a unit on a home key, and commits it together with its answer.
    ///
    /// `change` is given a unit and gives it back with the answer; it loads, decides, saves and appends. It is run again, in a
    /// unit of its own, where others were faster or a server was away: as [`Tries`] says, eight times at most and never past the
    /// deadline. Only what the last run has collected is written, so whatever else a change does it may do several times.
    ///
    /// Under the key of [`RequestContext::with_idempotency`] an equal submission gets the answer of the first, with its token,
    /// and writes nothing ([`Written::is_replay`]). Without a key each submission is one of its own.
    ///
    /// The error may be any that a [`UnitError`] becomes: what is run again, and what was answered before, is known from what
    /// the unit was told when it loaded, not from the error that `change` has made of it.
    ///
    /// ```no_run
    /// # use pim_core::context::RequestContext;
    /// # use pim_core::id::{Id, IdKind};
    /// # use pim_core::rbac::{Permit, Write};
    /// # use pim_data::cluster::Cluster;
    /// # use pim_data::entity::Entity;
    /// use pim_data::unit::{Answer, UnitError, Written};
    ///
    /// #[derive(Debug, thiserror::Error)]
    /// enum Refused {
    ///     #[error("there is no such card")]
    ///     NoSuchCard,
    ///     #[error(transparent)]
    ///     Unit(#[from] UnitError),
    /// }
    ///
    /// # trait Level { fn promote(&mut self); }
    /// # async fn promote<Card: Entity + Level + serde::Serialize>(
    /// #     cluster: &Cluster, cx: &RequestContext, may_enrol: &Permit<Write>, id: Id<Card::Kind>,
    /// # ) -> Result<Written, Refused> where Card::Kind: IdKind {
    /// cluster
    ///     .write(cx, id, move |mut unit| async move {
    ///         let mut card = unit.load::<Card>(may_enrol, id).await?.ok_or(Refused::NoSuchCard)?;
    ///         card.promote();
    ///         unit.save(may_enrol, &card)?;
    ///         // and an event, or whatever else a part of yours collects
    ///         Ok((unit, Answer::ok(&card)?))
    ///     })
    ///     .await
    /// # }
    /// ```
    ///
    /// # Errors
    /// The change's own, from its last run; nothing was written then. Or what [`Unit::commit`] refused, when it is not worth another
    /// run or the last one: [`UnitError::IdempotencyMismatch`] when the key was used with another body, [`UnitError::Conflict`]
    /// when others were faster each time, [`UnitError::Unknown`] when nobody can say whether it was written.
    pub async fn write<E, A, Fut>(
        &self,
        cx: &RequestContext,
        home: impl Into<HomeKey>,
        change: impl Fn(Unit) -> Fut,
    ) -> Result<Written, E>
    where
        E: From<UnitError>,
        A: Into<Answer>,
        Fut: Future<Output = Result<(Unit, A), E>>,
    {
        let home = home.into();
        run(self, cx, || self.begin(cx, home), change).await
    }

    /// The same for a row of the control database, which is its own home key.
    ///
    /// # Errors
    /// As [`Cluster::write`].
    pub async fn write_control<E, A, Fut>(
        &self,
        cx: &RequestContext,
        key: impl Into<HomeKey>,
        change: impl Fn(Unit) -> Fut,
    ) -> Result<Written, E>
    where
        E: From<UnitError>,
        A: Into<Answer>,
        Fut: Future<Output = Result<(Unit, A), E>>,
    {
        let key = key.into();
        run(self, cx, || self.begin_control(cx, key), change).await
    }
}

async fn run<E, A, Fut>(
    cluster: &Cluster,
    cx: &RequestContext,
    begin: impl Fn() -> Unit,
    change: impl Fn(Unit) -> Fut,
) -> Result<Written, E>
where
    E: From<UnitError>,
    A: Into<Answer>,
    Fut: Future<Output = Result<(Unit, A), E>>,
{
    let mut tries = Tries::of(cluster, cx);
    loop {
        let mut unit = begin();
        let told = unit.told.insert(Told::default()).clone();
        let (why, error) = match change(unit).await {
            Ok((unit, answer)) => match close(unit, answer.into()).await {
                Ok(written) => return Ok(written),
                Err(UnitError::Replay(stored)) => return Ok(stored.into()),
                Err(error) => (Why::of(&error), error.into()),
            },
            Err(error) => match told.take() {
                Some(Outcome::Answered(stored)) => return Ok(stored.into()),
                Some(Outcome::Again(why)) => (Some(why), error),
                None => return Err(error),
            },
        };
        if !tries.again_because(why).await {
            return Err(error);
        }
    }
}

async fn close(mut unit: Unit, Answer { status, body }: Answer) -> Result<Written, UnitError> {
    unit.answer(status, &body);
    let token = unit.commit().await?.token;
    Ok(Written { status, body, token, is_replay: false })
}
