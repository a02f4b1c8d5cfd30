//! Durable jobs, safe with many workers: each is a row in the control database that a worker leases, and goes on where it stopped.

mod cycle;
mod http;
mod worker;

pub use cycle::{BillingCycle, CycleState};
pub use http::routes;
pub use worker::{LEASE, run};
