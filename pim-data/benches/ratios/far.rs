//! A server that stands some way off: what goes to it and what it answers takes a while, as between two machines of one site.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// Listens for connections and hands them on to `server`, each message a while later; the address to connect to. Ends with
/// the process.
pub(super) fn away_from(server: &str, each_way: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let (here, server) = (listener.local_addr().expect("is bound"), server.to_owned());
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let far = TcpStream::connect(&server).expect("the server answers");
            for (from, into) in [(&near, &far), (&far, &near)] {
                let (from, into) = (from.try_clone().expect("clones"), into.try_clone().expect("clones"));
                into.set_nodelay(true).expect("sets");
                thread::spawn(move || carry(from, into, each_way));
            }
        }
    });
    here
}

#[expect(clippy::disallowed_methods, reason = "a thread of its own, which has nothing else to do")]
fn carry(mut from: TcpStream, mut into: TcpStream, each_way: Duration) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        thread::sleep(each_way);
        if into.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    let _gone = into.shutdown(Shutdown::Both);
}
