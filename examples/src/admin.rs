//! Administration and operations: reference data, audit and its retention, shards, outbox, lineage.

mod audit;
mod lineage;
mod operation;
mod reference;
mod relocation;
mod retention;

use axum::Router;

use crate::rig::{Declaration, document};
use crate::routes::Upstream;
use crate::workers::Stores;

/// The admin service.
pub const SERVICE: Declaration = Declaration {
    name: Upstream::Admin.name(),
    port: 8085,
    routes,
    openapi: || document(Upstream::Admin, reference::OPERATIONS),
};

/// The routes, with those of operations over read store and bus.
pub fn routes(stores: Stores) -> Router {
    let over_shards = Router::new()
        .merge(audit::routes())
        .merge(operation::routes())
        .merge(relocation::routes())
        .merge(retention::routes())
        .merge(lineage::routes())
        .merge(crate::operations::record_routes())
        .with_state(stores.cluster.clone());
    let reference = reference::routes().with_state(stores.clone());
    over_shards.merge(reference).merge(crate::operations::routes(stores))
}
