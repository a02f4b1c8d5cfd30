//! Database servers as local processes and as containers: for the suites of this workspace, and for the lab.
//!
//! Knows none of our crates, so that each of them can use it in its tests without being built twice.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // One server that all tests of a process share: given, in a container, or local.
//! let server = pim_servers::shared::postgres()?;
//! println!("{}", server.dsn());
//!
//! // A primary with a streaming standby, which go away with the value.
//! let servers = pim_servers::temporary::TemporaryServers::new()?;
//! let primary = servers.primary("shard_0")?;
//! let standby = servers.standby(&primary, "shard_0_standby")?;
//! primary.kill()?;
//! standby.promote()?;
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "containers")]
pub mod container;
pub mod fleet;
pub mod guard;
pub mod image;
pub mod local;
pub mod port;
pub mod programs;
pub mod shared;
pub mod signal;
pub mod small_disk;
pub mod temporary;
mod wait;
