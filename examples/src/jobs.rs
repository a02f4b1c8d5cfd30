//! Durable jobs, safe with many workers: each is a row in the control database that a worker leases, and goes on where it stopped.

mod chore;
mod cycle;
mod http;
mod signals;
mod upkeep;
mod worker;

pub use chore::{Chore, ChoreName};
pub use cycle::{BillingCycle, CycleState};
pub use http::{PERIOD_SETTLES, endpoints};
pub use signals::{CHORE_OVERDUE, CHORE_RUNS, ChoreOutcome, ChoreSignals, SWEPT_RECORDS};
pub use upkeep::{CHORE_LEASE, Upkeep, UpkeepError, UpkeepSettings, UpkeepSettingsError};
pub use worker::{JobError, LEASE, Worker, run};
