//! Host names to addresses, asked again for each new connection and in between, so that a changed answer is picked up.

use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};

/// Where a host name leads. It may block: it is asked on a thread that may.
pub trait Resolver: Send + Sync + fmt::Debug {
    /// The addresses of a host, in the order in which they are tried.
    ///
    /// # Errors
    /// When nobody knows it.
    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// Asks the machine's own resolver.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        Ok((host, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
    }
}
