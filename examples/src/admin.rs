//! Administration and operations: reference data, audit and its retention, backups, shards, outbox, lineage.

mod audit;
mod degradation;
mod examination;
mod lineage;
mod operation;
mod outbox;
mod reference;
mod relocation;
mod retention;

use pim_core::problem::Problem;
use pim_core::shard::ShardId;
use serde_json::{Value, json};

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
        .merge(outbox::endpoints())
        .merge(examination::endpoints())
        .merge(relocation::endpoints())
        .merge(degradation::endpoints())
        .merge(retention::endpoints())
        .merge(lineage::endpoints())
        .merge(crate::operations::endpoints())
        .merge(crate::chaos::endpoints())
        .merge(crate::backup::endpoints())
}

/// A shard, or the control database, whose part is missing from an answer that looks at all of them.
fn unanswered(shard: Option<ShardId>, problem: Problem) -> Value {
    json!({ "shard": shard, "problem": problem.kind().slug })
}
