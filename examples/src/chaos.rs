//! Where faults may strike in the lab, and who says so. Every fault is a lease that ends by itself.
//!
//! A fault that an operator arms is a row of the control database with its end inside. Every program looks at these rows and
//! takes the leases of its own points; from then on they end there, whatever becomes of the database, of the admin service,
//! or of whoever asked.

mod bus;
mod flag;
mod http;
mod watch;

pub use bus::{StruckPublisher, StruckSubscriber};
pub use flag::{ChaosFlag, FaultName};
pub use http::endpoints;
pub use watch::{flags_in, watch, watch_over_http};

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pim_core::chaos::{ChaosRegistry, Fault, Injected, Lease, LeaseError, Share};
use pim_core::clock::Clock;
use pim_core::role::ClosedEnum as _;

pim_core::closed_enum! {
    /// Where faults may strike. The admin service is no point: whoever arms a fault must be able to end it.
    pub enum ChaosPoint {
        /// Before the gateway looks at a request; operations and sign-ins stay reachable.
        Gateway = "gateway",
        /// Before the patient service looks at a request.
        PatientService = "patient-service",
        /// Before the encounter service looks at a request.
        EncounterService = "encounter-service",
        /// Before the billing service looks at a request.
        BillingService = "billing-service",
        /// Before the relay publishes a batch.
        OutboxRelay = "outbox-relay",
        /// Before a consumer fetches a batch.
        Consumer = "consumer",
    }
}

/// The faults in force in this process.
#[derive(Debug)]
pub struct Chaos {
    registry: ChaosRegistry<ChaosPoint>,
    clock: Clock,
    /// By point: the version of the row that was taken last, so that looking again changes nothing.
    taken: Mutex<[u64; ChaosPoint::ALL.len()]>,
}

impl Chaos {
    /// No fault is in force.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let registry = ChaosRegistry::new(clock.clone());
        Self { registry, clock, taken: Mutex::new([0; ChaosPoint::ALL.len()]) }
    }

    /// Lets the fault in force at a point strike, if there is one.
    ///
    /// # Errors
    /// [`Injected`] when the fault is an error.
    pub async fn inject(&self, point: ChaosPoint) -> Result<(), Injected> {
        self.registry.inject(point).await
    }

    /// The fault in force at a point.
    #[must_use]
    pub fn lease(&self, point: ChaosPoint) -> Option<Lease> {
        self.registry.lease(point)
    }

    /// How many calls were struck at a point, in this process.
    #[must_use]
    pub fn struck(&self, point: ChaosPoint) -> u64 {
        self.registry.struck(point)
    }

    /// Ends every fault of this process: one that stops keeps nobody waiting.
    pub fn end_all(&self) {
        self.registry.disarm_all();
    }

    /// Takes what the rows say: a lease until the row's own end, or none. A row that was taken before changes nothing.
    pub fn take(&self, flags: &[ChaosFlag]) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for flag in flags {
            let Some(point) = ChaosPoint::from_name(&flag.point) else { continue };
            let known = &mut taken[usize::from(point.code())];
            if *known >= flag.version {
                continue;
            }
            *known = flag.version;
            let left = flag.ends_at.since(self.clock.now());
            let armed = match (left.is_zero(), check(flag)) {
                (false, Ok((fault, share))) => self.registry.arm(point, fault, share, left).is_ok(),
                _ => self.registry.disarm(point).is_some(),
            };
            pim_core::warn!("chaos.taken", point = point.name(), version = flag.version, armed = armed);
        }
    }
}

/// Whether a flag is one that a point would take.
///
/// # Errors
/// [`LeaseError`] naming the bound.
fn check(flag: &ChaosFlag) -> Result<(Fault, Share), LeaseError> {
    let fault = match flag.fault {
        FaultName::Latency => Fault::Latency(Duration::from_millis(flag.latency_ms)),
        FaultName::Error => Fault::Error,
        FaultName::Stall => Fault::Stall,
    };
    Ok((fault, Share::percent(flag.percent)?))
}

#[cfg(test)]
mod tests {
    use pim_core::clock::Timestamp;

    use super::*;

    fn flag(version: u64, began: i64, ends: i64) -> ChaosFlag {
        let point = ChaosPoint::OutboxRelay;
        ChaosFlag {
            id: ChaosFlag::id_of(point),
            version,
            point: point.name().to_owned(),
            fault: FaultName::Error,
            latency_ms: 0,
            percent: 50,
            began_at: Timestamp::from_micros(began),
            ends_at: Timestamp::from_micros(ends),
        }
    }

    #[tokio::test]
    async fn a_row_is_taken_once_and_only_a_newer_one_changes_its_lease() {
        let clock = Clock::manual(Timestamp::from_micros(0));
        let chaos = Chaos::new(clock.clone());
        let lease = || chaos.lease(ChaosPoint::OutboxRelay);
        chaos.take(&[flag(1, 0, 10_000_000)]);
        let first = lease().expect("in force");
        clock.advance(Duration::from_secs(1));
        // Looking again must not begin it anew: of two calls one is struck, whatever happens in between.
        chaos.take(&[flag(1, 0, 10_000_000)]);
        assert_eq!(lease(), Some(first));
        chaos.take(&[flag(2, 0, 1_000_000)]);
        assert_eq!(lease(), None, "ended by hand");
        chaos.take(&[flag(1, 0, 10_000_000)]);
        assert_eq!(lease(), None, "an older row brings nothing back");
        chaos.take(&[flag(3, 1_000_000, 3_000_000)]);
        assert_eq!(lease().map(|lease| lease.ends_at), Some(Timestamp::from_micros(3_000_000)));
        clock.advance(Duration::from_secs(2));
        assert_eq!(lease(), None, "ended by itself");
    }
}
