//! Running a command until it commits, has been answered before, or fails for good.

use pim_core::context::RequestContext;
use pim_core::shard::HomeKey;
use pim_data::cluster::Cluster;
use pim_data::unit::Unit;

use super::{Answer, Failure};

/// Runs `change` in a unit on the home key and commits it together with the answer, as [`Cluster::write`] says.
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
    cluster.write(cx, home, change).await.map(Answer::from)
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
    cluster.write_control(cx, key, change).await.map(Answer::from)
}
