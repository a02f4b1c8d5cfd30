//! A loopback proxy in front of a PostgreSQL server: counts the trips of its clients, and cuts one off when told to.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use pim_data::backend::{SecretError, Secrets};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// What a client sent before it waited for the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trip {
    /// A script in the simple protocol.
    Script(String),
    /// A statement that is prepared.
    Prepare,
    /// A prepared statement that runs.
    Run,
    /// Nothing at all: whether the server is still there.
    Ping,
}

/// When the connection breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Before the server sees what was sent.
    Unseen,
    /// When the server has done it and says so.
    Unanswered,
    /// Not at all: the server has done it, and what it says is held back.
    Withheld,
}

/// Which trip is meant.
pub(crate) type Wanted = fn(&Trip) -> bool;

#[derive(Debug, Default)]
struct State {
    trips: Mutex<Vec<Trip>>,
    cut: Mutex<Option<(Cut, Wanted)>>,
    last: Mutex<Option<Wanted>>,
    is_deaf: AtomicBool,
}

/// The proxy; ends with its runtime.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    address: SocketAddr,
    state: Arc<State>,
}

impl Wire {
    /// In front of the server of a connection string.
    pub(crate) async fn before(dsn: &str) -> Self {
        let server = address_of(dsn).to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let wire = Self { address: listener.local_addr().expect("an address"), state: Arc::default() };
        let state = Arc::clone(&wire.state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, state) = (server.clone(), Arc::clone(&state));
                tokio::spawn(async move {
                    let server = TcpStream::connect(server).await.expect("the server answers");
                    carry(client, server, state).await;
                });
            }
        });
        wire
    }

    /// Forgets the trips so far.
    pub(crate) fn begin(&self) {
        self.state.trips.lock().expect("no panic").clear();
    }

    /// The trips since then, pings left out, and the number of pings.
    pub(crate) fn trips(&self) -> (Vec<Trip>, usize) {
        let all = self.state.trips.lock().expect("no panic").clone();
        let pings = all.iter().filter(|trip| **trip == Trip::Ping).count();
        (all.into_iter().filter(|trip| *trip != Trip::Ping).collect(), pings)
    }

    /// Cuts the next connection that makes such a trip.
    pub(crate) fn cut_next(&self, cut: Cut, wanted: Wanted) {
        *self.state.cut.lock().expect("no panic") = Some((cut, wanted));
    }

    /// Whether a cut that was asked for has been made.
    pub(crate) fn has_cut(&self) -> bool {
        self.state.cut.lock().expect("no panic").is_none()
    }

    /// The next connection that makes such a trip gets its answer, and none after that.
    pub(crate) fn fall_silent_after(&self, wanted: Wanted) {
        *self.state.last.lock().expect("no panic") = Some(wanted);
    }

    /// From here on nothing that a client sends arrives, and nothing is answered.
    pub(crate) fn fall_silent(&self) {
        self.state.is_deaf.store(true, Ordering::SeqCst);
    }

    /// The secrets of a test with one of them leading through here.
    pub(crate) fn secrets(&self, inner: Arc<dyn Secrets>, name: &'static str) -> Arc<dyn Secrets> {
        Arc::new(Through { inner, name, address: self.address })
    }
}

#[derive(Debug)]
struct Through {
    inner: Arc<dyn Secrets>,
    name: &'static str,
    address: SocketAddr,
}

impl Secrets for Through {
    fn secret(&self, name: &str) -> Result<String, SecretError> {
        let dsn = self.inner.secret(name)?;
        if name != self.name {
            return Ok(dsn);
        }
        Ok(format!("{}?sslmode=disable", dsn.replace(address_of(&dsn), &self.address.to_string())))
    }
}

/// `host:port` of a connection string.
fn address_of(dsn: &str) -> &str {
    let behind = dsn.split_once('@').map_or(dsn, |(_, behind)| behind);
    behind.split(['/', '?']).next().unwrap_or_default()
}

/// One client and its server, until either goes or the proxy cuts them off.
async fn carry(client: TcpStream, server: TcpStream, state: Arc<State>) {
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let way_back = Arc::<WayBack>::default();
    let back = tokio::spawn(answer(from_server, to_client, Arc::clone(&way_back), Arc::clone(&state)));
    // The first message has no type.
    let Some(length) = from_client.read_u32().await.ok() else { return };
    let mut hello = length.to_be_bytes().to_vec();
    if rest(&mut from_client, length, &mut hello).await.is_none() {
        return;
    }
    if state.is_deaf.load(Ordering::SeqCst) {
        // The server must not wait for a password meanwhile: nobody could drop a database until it gives up.
        std::future::pending::<()>().await;
    }
    if to_server.write_all(&hello).await.is_err() {
        return;
    }
    let (mut trip, mut sent) = (Trip::Ping, Vec::new());
    while let Some((kind, message)) = message(&mut from_client).await {
        match kind {
            b'P' => trip = Trip::Prepare,
            b'E' => trip = Trip::Run,
            b'Q' => trip = Trip::Script(String::from_utf8_lossy(&message[5..message.len() - 1]).into_owned()),
            _ => {}
        }
        sent.extend_from_slice(&message);
        if way_back.is_last.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if matches!(kind, b'S' | b'Q') {
            let made = std::mem::replace(&mut trip, Trip::Ping);
            let cut = state.cut.lock().expect("no panic").take_if(|(_, wanted)| wanted(&made)).map(|(cut, _)| cut);
            let is_last = state.last.lock().expect("no panic").take_if(|wanted| wanted(&made)).is_some();
            way_back.is_last.store(is_last, Ordering::SeqCst);
            state.trips.lock().expect("no panic").push(made);
            match cut {
                Some(Cut::Unseen) => break,
                Some(Cut::Unanswered) => way_back.swallows.store(true, Ordering::SeqCst),
                Some(Cut::Withheld) => way_back.withholds.store(true, Ordering::SeqCst),
                None => {}
            }
        }
        // A password is no trip, and neither is what needs no answer.
        if !matches!(kind, b'S' | b'Q' | b'p' | b'X') {
            continue;
        }
        if state.is_deaf.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if to_server.write_all(&sent).await.is_err() {
            break;
        }
        sent.clear();
    }
    if !way_back.swallows.load(Ordering::SeqCst) {
        back.abort();
    }
}

/// What becomes of answers.
#[derive(Debug, Default)]
struct WayBack {
    swallows: AtomicBool,
    withholds: AtomicBool,
    /// Nothing comes after the next one, not even that the server has hung up.
    is_last: AtomicBool,
}

/// The way back. What is swallowed is read until the server is ready for more; then both sides lose their connection.
async fn answer(mut server: OwnedReadHalf, mut client: OwnedWriteHalf, way_back: Arc<WayBack>, state: Arc<State>) {
    while let Some((kind, bytes)) = message(&mut server).await {
        if way_back.withholds.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        } else if way_back.swallows.load(Ordering::SeqCst) {
            if kind == b'Z' {
                break;
            }
        } else if state.is_deaf.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        } else if client.write_all(&bytes).await.is_err() {
            break;
        }
        if kind == b'Z' && way_back.is_last.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
    let _gone = client.shutdown().await;
}

/// One message with a type, a length and a body.
async fn message(from: &mut OwnedReadHalf) -> Option<(u8, Vec<u8>)> {
    let kind = from.read_u8().await.ok()?;
    let length = from.read_u32().await.ok()?;
    let mut all = vec![kind];
    all.extend_from_slice(&length.to_be_bytes());
    rest(from, length, &mut all).await?;
    Some((kind, all))
}

async fn rest(from: &mut OwnedReadHalf, length: u32, all: &mut Vec<u8>) -> Option<()> {
    let begun = all.len();
    all.resize(begun + length.checked_sub(4)? as usize, 0);
    from.read_exact(&mut all[begun..]).await.ok().map(drop)
}
