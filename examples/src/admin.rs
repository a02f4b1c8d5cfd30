//! Administration and operations: reference data, audit and its retention, backups, shards, outbox, lineage.

mod audit;
mod degradation;
mod examination;
mod lineage;
mod operation;
mod reference;
mod relocation;
mod retention;

use crate::rig::{Declaration, Endpoints};
use crate::routes::Upstream;
use crate::workers::Stores;

/// The admin service.
pub const SERVICE: Declaration = Declaration { upstream: Upstream::Admin, port: 8085, endpoints };

/// The operations, with those over read store and bus.
fn endpoints() -> Endpoints<Stores> {
    reference::endpoints()
        .merge(audit::endpoints())
        .merge(operation::endpoints())
        .merge(examination::endpoints())
        .merge(relocation::endpoints())
        .merge(degradation::endpoints())
        .merge(retention::endpoints())
        .merge(lineage::endpoints())
        .merge(crate::operations::endpoints())
        .merge(crate::chaos::endpoints())
        .merge(crate::backup::endpoints())
}
