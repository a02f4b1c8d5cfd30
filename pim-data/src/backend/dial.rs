//! How an endpoint of a server is reached, and what its server must be.

use std::sync::Arc;

use tokio::sync::{Notify, Semaphore};

use super::ServerSettings;
use super::resolver::{Resolver, SystemResolver};
use super::secret::Secrets;

/// Most look-ups of a pool's host at a time.
const LOOKUPS_MAX: usize = 2;

/// How an endpoint is reached.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "only the server's backend reads some of it"))]
pub(crate) struct Dial {
    /// Where connection strings come from.
    pub(crate) secrets: Arc<dyn Secrets>,
    /// Where their host names lead.
    pub(crate) resolver: Arc<dyn Resolver>,
    /// How it is used.
    pub(crate) settings: ServerSettings,
    /// Most of its connections that those who write have at once; the others are left to reads.
    pub(crate) writes_max: usize,
    /// Places for look-ups of host names: one that hangs keeps a thread of the process until it ends.
    pub(crate) lookups: Arc<Semaphore>,
    /// Rung when a call finds that something is wrong with the server.
    pub(crate) alarm: Arc<Notify>,
}

impl Dial {
    /// By the machine's own resolver, with an alarm that nobody listens to.
    pub(crate) fn new(secrets: Arc<dyn Secrets>, settings: ServerSettings) -> Self {
        Self::with(secrets, Arc::new(SystemResolver), settings)
    }

    /// By this resolver.
    pub(crate) fn with(secrets: Arc<dyn Secrets>, resolver: Arc<dyn Resolver>, settings: ServerSettings) -> Self {
        let (lookups, alarm) = (Self::lookups(), Arc::default());
        Self { secrets, resolver, settings, writes_max: usize::MAX, lookups, alarm }
    }

    /// Each pool has its own places: whoever asks for another host waits for none of these.
    pub(crate) fn lookups() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(LOOKUPS_MAX))
    }
}

/// What a server must be for a connection to it to be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Whether it must be a primary; a standby will do else.
    pub(crate) primary: bool,
    /// The lowest term that a primary may have: one of a lower term is a former primary, whatever it says of itself.
    pub(crate) term: u64,
}
