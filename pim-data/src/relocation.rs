//! Moving buckets between shards while both serve: copy, verify, fence, drain, activate, remove.
//!
//! A move is a row of the control database. It is carried out in steps, each of which may be interrupted at any instant and
//! be done again: until the new map is published the source owns everything, from then on the target does. Writers that
//! meet the fence wait in the stale-router retry of their own unit.
//!
//! What moves: rows and history of every entity, numbers of home keys, idempotency records, and the tables that other
//! crates name by [`SchemaBuilder::moved`](crate::schema::SchemaBuilder::moved). What does not: events, which leave the
//! source's outbox before the target takes its first write, and audit records, which stay in the chain that they were
//! written to; a record at both ends ties the two together.
//!
//! On servers a mover needs the owner's connection string of every shard, see [`Mover::may_move`]: nobody else may change who
//! owns a bucket, or remove rows. The fence takes the buckets' locks first, so it waits for the writes in flight.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use pim_data::{cluster::Cluster, relocation::{MoveError, Mover, Outlet}};
//! # use pim_core::{context::RequestContext, shard::{Bucket, ShardId}};
//! # async fn f(cluster: Cluster, outlet: Arc<dyn Outlet>, cx: RequestContext) -> Result<(), MoveError> {
//! let mover = Mover::new(&cluster, outlet);
//! let planned = mover.plan(&cx, [Bucket::new(7).expect("a bucket")], ShardId(3)).await?;
//! let done = mover.run(&cx, planned.id).await?;
//! println!("{} rows, writers waited {} µs", done.report.rows, done.report.paused_us);
//! # Ok(())
//! # }
//! ```

mod batch;
mod collect;
mod compare;
mod copy;
mod error;
mod hand_over;
mod journal;
mod layout;
mod link;
mod mover;
mod outlet;
mod records;
mod run;
mod stamp;
mod tally;

pub use error::MoveError;
pub(crate) use hand_over::{copied_by, lift_abandoned};
pub use journal::{BucketReport, MoveRecord, MoveReport, MoveStep};
pub use layout::{Belongs, MovedTable};
pub use mover::{BUCKETS_MAX, MoveSettings, Mover};
pub use outlet::{Outflow, Outlet};
pub use run::Run;
