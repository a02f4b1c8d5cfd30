//! Handlers that show rows as they are: one by its id, or a page of a list.

use axum::extract::State;
use pim_core::id::Id;
use pim_core::problem::{self, Problem};
use pim_core::rbac::Read;
use pim_data::cluster::Cluster;
use pim_data::entity::Entity;

use super::{Answer, Asked, Caller, Failure, May, PageQuery, PathId, page_of};
use crate::ids::PatientId;

/// Shows a row of a shard.
///
/// # Errors
/// [`Failure`] when there is none within reach, or the shard does not answer.
pub async fn show<E: Entity>(
    State(cluster): State<Cluster>,
    May(permit): May<Read>,
    caller: Caller,
    PathId(id): PathId<Id<E::Kind>>,
) -> Result<Answer, Failure> {
    let row = cluster.read::<E>(&caller.cx, &permit, id, &caller.consistency).await?;
    Answer::ok(&row.ok_or_else(|| Problem::of(problem::NOT_FOUND))?)
}

/// Lists the rows of a patient, in pages by id.
///
/// # Errors
/// [`Failure`] when the page is none, or the shard does not answer.
pub async fn list<E: Entity>(
    State(cluster): State<Cluster>,
    May(permit): May<Read>,
    caller: Caller,
    PathId(patient_id): PathId<PatientId>,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer, Failure> {
    let page = query.by_id()?;
    let rows = cluster.list::<E>(&caller.cx, &permit, patient_id, page, &caller.consistency).await?;
    Answer::ok(&page_of(&rows, page.limit, |row| row.id().to_string()))
}

/// Shows a row of the control database.
///
/// # Errors
/// [`Failure`] when there is none within reach, or the database does not answer.
pub async fn show_control<E: Entity>(
    State(cluster): State<Cluster>,
    May(permit): May<Read>,
    caller: Caller,
    PathId(id): PathId<Id<E::Kind>>,
) -> Result<Answer, Failure> {
    let row = cluster.read_control::<E>(&caller.cx, &permit, id).await?;
    Answer::ok(&row.ok_or_else(|| Problem::of(problem::NOT_FOUND))?)
}

/// Lists rows of the control database, in pages by id.
///
/// # Errors
/// [`Failure`] when the page is none, or the database does not answer.
pub async fn list_control<E: Entity>(
    State(cluster): State<Cluster>,
    May(permit): May<Read>,
    caller: Caller,
    Asked(query): Asked<PageQuery>,
) -> Result<Answer, Failure> {
    let page = query.by_id()?;
    let rows = cluster.list_control::<E>(&caller.cx, &permit, page).await?;
    Answer::ok(&page_of(&rows, page.limit, |row| row.id().to_string()))
}
