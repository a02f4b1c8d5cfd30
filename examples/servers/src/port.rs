//! Ports that are chosen before whoever listens on them starts.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

/// An address of loopback that the kernel hands to nobody for a minute, neither to a listener on port 0 nor to a
/// connection that goes out; whoever names it, with `SO_REUSEADDR` as servers do, gets it.
///
/// A port that is looked up and closed again is the next one to be handed out. This one stays in `TIME_WAIT` (RFC 9293, 3.6):
/// the end of a connection that closes first keeps its port.
///
/// # Errors
/// When no port is free.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// let address = pim_servers::port::reserve()?;
/// // Tell others where it will be, and then:
/// let listener = std::net::TcpListener::bind(address)?;
/// # Ok(())
/// # }
/// ```
pub fn reserve() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let caller = TcpStream::connect(address)?;
    let (called, _) = listener.accept()?;
    drop(called);
    drop(caller);
    Ok(address)
}
