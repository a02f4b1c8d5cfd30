//! Running a command against its unit of work until it commits, has been answered before, or fails for good.

use pim_core::context::RequestContext;
use pim_core::shard::HomeKey;
use pim_data::cluster::Cluster;
use pim_data::unit::{Tries, Unit, UnitError};

use super::{Answer, Failure};

/// Runs `change` in a unit on the home key and commits it together with the answer.
///
/// `change` is given the unit and gives it back with the answer. It may run several times; only its last run counts. An equal submission gets the answer of the first.
///
/// # Errors
/// [`Failure`] of the change or of the commit.
pub async fn write<Fut>(
    cluster: &Cluster,
    cx: &RequestContext,
    home: impl Into<HomeKey>,
    change: impl Fn(Unit) -> Fut,
) -> Result<Answer, Failure>
where
    Fut: Future<Output = Result<(Unit, Answer), Failure>>,
{
    let home = home.into();
    run(cluster, cx, || cluster.begin(cx, home), change).await
}

/// The same for a row of the control database, which is its own home key.
///
/// # Errors
/// [`Failure`] of the change or of the commit.
pub async fn write_control<Fut>(
    cluster: &Cluster,
    cx: &RequestContext,
    key: impl Into<HomeKey>,
    change: impl Fn(Unit) -> Fut,
) -> Result<Answer, Failure>
where
    Fut: Future<Output = Result<(Unit, Answer), Failure>>,
{
    let key = key.into();
    run(cluster, cx, || cluster.begin_control(cx, key), change).await
}

async fn run<Fut>(
    cluster: &Cluster,
    cx: &RequestContext,
    begin: impl Fn() -> Unit,
    change: impl Fn(Unit) -> Fut,
) -> Result<Answer, Failure>
where
    Fut: Future<Output = Result<(Unit, Answer), Failure>>,
{
    let mut tries = Tries::of(cluster, cx);
    loop {
        let outcome = match change(begin()).await {
            Ok((mut unit, answer)) => {
                unit.answer(answer.status, &answer.body);
                unit.commit().await.map(|committed| answer.with_token(committed.token))
            }
            Err(Failure::Unit(error)) => Err(error),
            Err(failure) => return Err(failure),
        };
        match outcome {
            Ok(answer) => return Ok(answer),
            Err(UnitError::Replay(stored)) => return Ok(Answer::replayed(stored)),
            Err(error) if tries.again(&error).await => {}
            Err(error) => return Err(error.into()),
        }
    }
}
