//! Sign-ins: what anybody may send, before anything is known of them.

use axum::body::Body;
use axum::response::Response;
use http::request::Parts;
use pim_core::deadline::Deadline;
use pim_core::problem::Problem;
use tokio::time::timeout_at;

use super::answer::whole;
use super::forward::{Outgoing, forward, received};
use super::http::{Gateway, overloaded};
use crate::routes::Route;

/// More than any sign-in says.
const BYTES_MAX: usize = 4 * 1024;

/// Forwards a sign-in.
///
/// Its place is held while the broker works, and neither while the sender takes its time nor while nobody reads the answer: else whoever
/// wants to could keep everybody from signing in, those too who have to end it.
pub(super) async fn sign_in(
    gateway: &Gateway,
    route: &'static Route,
    head: &Parts,
    body: Body,
) -> Result<Response, Problem> {
    let deadline = Deadline::after(route.class.timeout());
    let body = received(body, deadline, BYTES_MAX).await?;
    let place = timeout_at(deadline.instant(), gateway.slots().sign_in()).await.ok().flatten();
    let _place = place.ok_or_else(overloaded)?;
    let outgoing = Outgoing { upstream: route.upstream, head, body, txn_token: None, deadline };
    whole(forward(gateway, outgoing).await?, deadline).await
}
