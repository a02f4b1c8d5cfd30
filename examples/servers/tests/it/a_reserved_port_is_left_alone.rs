//! A port that is told to others before its listener starts is still there when it does.

use std::io::ErrorKind;
use std::net::TcpListener;

use pim_servers::port;
use socket2::{Domain, Socket, Type};

#[test]
fn by_all_but_whoever_names_it() {
    let address = port::reserve().expect("a free port");
    // What the kernel thinks when it looks for a port by itself: without `SO_REUSEADDR`, nobody gets it.
    let plain = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let refused = plain.bind(&address.into()).expect_err("the port is in use");
    assert_eq!(refused.kind(), ErrorKind::AddrInUse);
    let listener = TcpListener::bind(address).expect("whoever names it gets it");
    assert_eq!(listener.local_addr().expect("an address"), address);
}
