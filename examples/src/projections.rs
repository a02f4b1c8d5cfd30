//! The lab's read models: each folds the events of the bus into tables for one question.

mod audit_index;
mod distribution;
mod hops;
mod http;
mod revenue;
mod search;
mod sight;
mod summary;
mod timeline;

pub use audit_index::{AuditIndex, AuditLine, audit_lines};
pub use distribution::{Distribution, DistributionLine, distribution};
pub use hops::{HOPS, HOPS_MAX, Hop, Hops, hops_of};
pub use http::{billing_endpoints, encounter_endpoints, patient_endpoints};
pub use revenue::{Revenue, RevenueLine, revenue};
pub use search::{Found, Search, SearchQuery, search};
pub use sight::{QueryError, Sight};
pub use summary::{Summaries, Summary, summary};
pub use timeline::{Timeline, TimelineEntry, timeline};

use std::sync::Arc;

use pim_events::Projection;

/// Every read model of the lab.
#[must_use]
pub fn all() -> Vec<Arc<dyn Projection>> {
    vec![
        Arc::new(Summaries),
        Arc::new(Search),
        Arc::new(Timeline),
        Arc::new(Revenue),
        Arc::new(AuditIndex),
        Arc::new(Distribution),
        Arc::new(Hops),
    ]
}
