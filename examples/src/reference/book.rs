//! The reference book: facilities and providers as this program knows them, until an event says that they have changed.

use std::sync::Arc;
use std::time::Duration;

use pim_core::context::{RequestContext, RequestId};
use pim_core::deadline::Deadline;
use pim_core::id::Id;
use pim_core::problem::{self, Problem, ProblemType};
use pim_core::rbac::{Permit, Read, SystemScope};
use pim_data::cache::{CacheSettings, Loaded, ReferenceCache};
use pim_data::cluster::Cluster;
use pim_data::consistency::ConsistencyToken;
use pim_data::entity::Entity;
use pim_events::{Event, Tail};

use super::record::{Facility, Provider, ReferenceChanged};
use crate::policy::LabAction;
use crate::rig::Failure;
use crate::workers::service_actor;

/// A body names a row of reference data that is not there; `pointer` says where in the body.
pub const UNKNOWN_REFERENCE: ProblemType =
    ProblemType::new("unknown-reference", 422, "The body refers to something that is not there");
/// A body names a row of reference data that is not in use any more; `pointer` says where in the body.
pub const INACTIVE_REFERENCE: ProblemType =
    ProblemType::new("inactive-reference", 422, "The body refers to something that is not in use any more");

const PATIENCE: Duration = Duration::from_secs(2);
const REASON: SystemScope = SystemScope::new("check what a body refers to");

/// Rows of reference data, held in memory. Clones share them.
///
/// Each row is held until [`ReferenceBook::follow`] sees the event of a newer version, until a caller brings a token that has
/// seen a newer one, or for a minute at most.
#[derive(Clone, Debug)]
pub struct ReferenceBook {
    cluster: Cluster,
    facilities: ReferenceCache<Facility>,
    providers: ReferenceCache<Provider>,
}

/// A record that bodies refer to.
pub trait Referable: Entity + Clone {
    /// Whether new records may refer to it.
    fn is_active(&self) -> bool;
    /// Where a book holds it.
    fn held_in(book: &ReferenceBook) -> &ReferenceCache<Self>;
}

macro_rules! referable {
    ($record:ident, $held:ident) => {
        impl Referable for $record {
            fn is_active(&self) -> bool {
                self.active
            }

            fn held_in(book: &ReferenceBook) -> &ReferenceCache<Self> {
                &book.$held
            }
        }
    };
}

referable!(Facility, facilities);
referable!(Provider, providers);

impl ReferenceBook {
    /// An empty book over the control database.
    #[must_use]
    pub fn over(cluster: Cluster) -> Self {
        let settings = CacheSettings::default();
        Self { cluster, facilities: ReferenceCache::new(settings), providers: ReferenceCache::new(settings) }
    }

    /// A row as it is known here, at least as new as `seen`; `None` when there is none.
    ///
    /// # Errors
    /// An `unavailable` problem when it is not known and the control database does not answer.
    pub async fn find<R: Referable>(
        &self,
        id: Id<R::Kind>,
        seen: &ConsistencyToken,
    ) -> Result<Option<Arc<Loaded<R>>>, Failure> {
        let key = id.uuid();
        // What fell out of an overflowed token may be anything.
        let n_min = seen.n_of(key).unwrap_or(if seen.is_met_by(key, 0) { 0 } else { u64::MAX });
        let found = R::held_in(self).get(key, n_min, || self.load::<R>(id)).await;
        found.map_err(|_failed| {
            pim_core::warn!("reference_book.load_failed", entity = R::TABLE.name);
            Problem::of(problem::UNAVAILABLE).detail("reference data cannot be read").retry_after_secs(1).into()
        })
    }

    /// Refuses an id in a body that names nothing, or nothing that is in use.
    ///
    /// # Errors
    /// An [`UNKNOWN_REFERENCE`] or [`INACTIVE_REFERENCE`] problem with the JSON pointer; those of [`Self::find`].
    pub async fn check<R: Referable>(
        &self,
        pointer: impl Into<String> + Send,
        id: Id<R::Kind>,
        seen: &ConsistencyToken,
    ) -> Result<(), Failure> {
        let kind = match self.find::<R>(id, seen).await? {
            Some(found) if found.value.is_active() => return Ok(()),
            Some(_) => INACTIVE_REFERENCE,
            None => UNKNOWN_REFERENCE,
        };
        Err(Problem::of(kind).with("pointer", pointer.into()).with("entity", R::TABLE.name).into())
    }

    /// Drops the row that an event tells of, if it is held in an older version.
    pub async fn heed(&self, event: &Event) {
        let Ok(changed) = event.decode::<ReferenceChanged>() else { return };
        if changed.table == Facility::TABLE.name {
            self.facilities.invalidate(changed.id, changed.version).await;
        } else if changed.table == Provider::TABLE.name {
            self.providers.invalidate(changed.id, changed.version).await;
        }
    }

    /// Heeds every event until told to stop. Nothing is missed of what was read after the tail was opened.
    pub async fn follow(self, tail: Tail, stop: impl Future<Output = ()>) {
        let heed = move |event: Event| {
            let book = self.clone();
            async move { book.heed(&event).await }
        };
        tail.run(stop, heed).await;
    }

    /// In a context of its own: the row is read for everybody who waits, not for the one who asked first.
    async fn load<R: Referable>(&self, id: Id<R::Kind>) -> anyhow::Result<Option<Loaded<R>>> {
        let cx = RequestContext::new(RequestId::mint(), service_actor("reference-book")?, Deadline::after(PATIENCE));
        let permit = Permit::<Read>::system(REASON, LabAction::Read, R::resource());
        Ok(self.cluster.load_control::<R>(&cx, &permit, id).await?)
    }
}
