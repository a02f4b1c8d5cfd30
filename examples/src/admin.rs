//! Administration and operations: reference data, audit, shards, outbox, lineage.

mod audit;
mod lineage;
mod operation;
mod reference;

use axum::Router;
use pim_data::cluster::Cluster;

use crate::rig::{Declaration, document};
use crate::routes::Upstream;

/// The admin service.
pub const SERVICE: Declaration = Declaration {
    name: Upstream::Admin.name(),
    port: 8085,
    routes,
    over_stores: crate::operations::routes,
    openapi: || document(Upstream::Admin, reference::OPERATIONS),
};

/// The routes that need the shards alone; those over the read store and the bus are added by their rooms.
pub fn routes(cluster: Cluster) -> Router {
    Router::new()
        .merge(reference::routes())
        .merge(audit::routes())
        .merge(operation::routes())
        .merge(lineage::routes())
        .merge(crate::operations::record_routes())
        .with_state(cluster)
}
